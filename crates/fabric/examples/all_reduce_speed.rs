//! Measures all-reduce between processes on this machine: `all_reduce_speed [RANKS]`, two by default.
//!
//! Starts one process per rank, over TCP on loopback, each on a core of its own where there are enough, and prints the
//! least and the median time per size, as rank 0 sees it.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shoal_fabric::tcp::{self, Rendezvous};
use shoal_fabric::{Group, Key, Rank};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    if let [address, rank, world, token] = &arguments[..] {
        let (rank, world) = (Rank(rank.parse()?), world.parse()?);
        take_core(rank.index())?;
        let mut group = tcp::join(
            address.parse()?,
            rank,
            world,
            Key::from_token(token),
            deadline,
        )?;
        return measure(&mut group);
    }
    let world: usize = arguments.first().map_or(Ok(2), |ranks| ranks.parse())?;
    let token = "all_reduce_speed";
    let rendezvous = Rendezvous::bind("127.0.0.1:0".parse()?, world, Key::from_token(token))?;
    let members: Result<Vec<Child>, _> = (1..world)
        .map(|rank| start(rendezvous.local_addr(), rank, world, token))
        .collect();
    take_core(0)?;
    let mut group = rendezvous.accept(deadline)?;
    measure(&mut group)?;
    for mut member in members? {
        member.wait()?;
    }
    Ok(())
}

fn start(
    address: SocketAddr,
    rank: usize,
    world: usize,
    token: &str,
) -> Result<Child, Box<dyn Error>> {
    let arguments = [
        address.to_string(),
        rank.to_string(),
        world.to_string(),
        token.to_owned(),
    ];
    Ok(Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()?)
}

/// Binds this process to one of the cores it may use.
#[cfg(target_os = "linux")]
fn take_core(rank: usize) -> Result<(), Box<dyn Error>> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| allowed.is_set(*core))
        .collect();
    let mut own = CpuSet::new();
    own.set(cores[rank % cores.len()]);
    Ok(sched_setaffinity(None, &own)?)
}

/// Elsewhere the system places its processes itself.
#[cfg(not(target_os = "linux"))]
fn take_core(_rank: usize) -> Result<(), Box<dyn Error>> {
    Ok(())
}

fn measure(group: &mut Group) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let is_root = group.rank() == Rank(0);
    if is_root {
        writeln!(
            out,
            "{:>10} {:>8} {:>12} {:>12}",
            "bytes", "rounds", "min µs", "median µs"
        )?;
    }
    for bytes in [4, 2 << 10, 8 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20] {
        let rounds = ((1_usize << 28) / (bytes + (16 << 10))).clamp(5, 5000);
        let mut data = vec![1e-30_f32; bytes / 4];
        let mut times_us = Vec::with_capacity(rounds);
        group.barrier()?;
        for _ in 0..rounds {
            let started = Instant::now();
            group.all_reduce_sum(&mut data)?;
            times_us.push(started.elapsed().as_secs_f64() * 1e6);
        }
        times_us.sort_by(f64::total_cmp);
        if is_root {
            writeln!(
                out,
                "{bytes:>10} {rounds:>8} {:>12.1} {:>12.1}",
                times_us[0],
                times_us[rounds / 2]
            )?;
        }
    }
    Ok(())
}
