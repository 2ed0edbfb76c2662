//! How long a sum over processes takes, over each kind of link between them: `cargo bench -p shoal-fabric --bench links`.
//!
//! Prints the best and the median of many samples: on a busy machine the best comes near to what an idle one does always.
//! A sample is several rounds, because one alone can be quick only since the other ranks were ahead.
//! The rate counts the bytes of the values once, which is what each of two ranks sends.
//!
//! `links LINK WORLD BYTES ROUNDS SAMPLES [BYTES ROUNDS SAMPLES ...]` prints a line `BYTES SECONDS` for each sample instead,
//! the seconds being those of one round, over `shared`, `tcp` or `tcp-ring`. That is what `cargo xtask peers fabric` runs.

#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::io;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::tcp::{self, Config, Rdma, Rendezvous};
use shoal_fabric::{Group, Key, Rank, Topology};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [MEMBER, address, rank, link, world, sizes @ ..] => {
            let config = config(link);
            let (rank, world) = (Rank(rank.parse()?), world.parse()?);
            let group = tcp::join_with(config, address.parse()?, rank, world, key(), deadline())?;
            let mut group = shaped(group, link)?;
            for size in Size::parse(sizes)? {
                size.measure(&mut group)?;
            }
            Ok(())
        }
        [link, world, sizes @ ..] => {
            let sizes = Size::parse(sizes)?;
            for (size, times) in run(link, world.parse()?, &sizes)? {
                for time in times {
                    println!("{} {:.9}", size.bytes, time.as_secs_f64());
                }
            }
            Ok(())
        }
        _ => show(),
    }
}

/// Prints the table for two ranks.
fn show() -> Result<(), Box<dyn Error>> {
    println!(
        "{:>10} {:>8} {:>12} {:>12} {:>10}",
        "bytes", "link", "best µs", "median µs", "GiB/s"
    );
    for link in [SHARED, TCP] {
        for (size, mut times) in run(link, 2, &BYTES.map(Size::of))? {
            times.sort_unstable();
            let (best, median) = (times[0].as_secs_f64(), times[times.len() / 2].as_secs_f64());
            let bytes = size.bytes;
            let rate = bytes as f64 / best / f64::from(1 << 30);
            println!(
                "{bytes:>10} {link:>8} {:>12.1} {:>12.1} {rate:>10.2}",
                best * 1e6,
                median * 1e6
            );
        }
    }
    Ok(())
}

/// Forms a group of processes and measures `sizes`, as its rank 0.
fn run(link: &str, world: usize, sizes: &[Size]) -> Result<Vec<Measured>, Box<dyn Error>> {
    let local = ([127, 0, 0, 1], 0).into();
    let rendezvous = Rendezvous::bind(local, world, key())?.with(config(link));
    let address = rendezvous.local_addr().to_string();
    let member = |rank: usize| {
        let words = [
            MEMBER,
            &address,
            &rank.to_string(),
            link,
            &world.to_string(),
        ];
        let sizes = sizes.iter().flat_map(Size::words);
        Command::new(env::current_exe()?)
            .args(words)
            .args(sizes)
            .spawn()
    };
    let mut members: Vec<Child> = (1..world).map(member).collect::<Result<_, _>>()?;
    let mut group = shaped(rendezvous.accept(deadline())?, link)?;
    let measured = sizes
        .iter()
        .map(|size| Ok((*size, size.measure(&mut group)?)));
    let measured = measured.collect::<Result<Vec<Measured>, Box<dyn Error>>>()?;
    for member in &mut members {
        member.wait()?;
    }
    Ok(measured)
}

/// The times of its rounds, one for each sample.
type Measured = (Size, Vec<Duration>);

/// What is measured at once.
#[derive(Clone, Copy)]
struct Size {
    bytes: usize,
    rounds: u32,
    samples: usize,
}

impl Size {
    fn of(bytes: usize) -> Self {
        let rounds = (BYTES_PER_SAMPLE / bytes).max(1);
        let samples = (BYTES_PER_SIZE / (bytes * rounds)).clamp(SAMPLES_MIN, SAMPLES_MAX);
        Self {
            bytes,
            rounds: u32::try_from(rounds).unwrap_or(u32::MAX),
            samples,
        }
    }

    fn parse(words: &[&str]) -> Result<Vec<Self>, Box<dyn Error>> {
        let (triples, []) = words.as_chunks() else {
            return Err("sizes are BYTES ROUNDS SAMPLES".into());
        };
        let size = |[bytes, rounds, samples]: &[&str; 3]| {
            Ok(Self {
                bytes: bytes.parse()?,
                rounds: rounds.parse()?,
                samples: samples.parse()?,
            })
        };
        triples.iter().map(size).collect()
    }

    fn words(&self) -> [String; 3] {
        [
            self.bytes.to_string(),
            self.rounds.to_string(),
            self.samples.to_string(),
        ]
    }

    /// Returns the time of a round in each of the samples.
    fn measure(self, group: &mut Group) -> Result<Vec<Duration>, Box<dyn Error>> {
        // As what a model sums.
        let mut values = group.region(self.bytes / size_of::<f32>())?;
        values.fill(1.0);
        group.all_reduce_sum(&mut values)?;
        let sum = group.world() as f32;
        assert!(values.iter().all(|value| *value == sum), "a sum is wrong");
        // Stays what it is, however often it is summed.
        values.fill(0.0);
        let mut sample = || {
            let started = Instant::now();
            for _ in 0..self.rounds {
                group.all_reduce_sum(&mut values)?;
            }
            Ok(started.elapsed() / self.rounds)
        };
        (0..self.samples).map(|_| sample()).collect()
    }
}

fn config(link: &str) -> Config {
    Config {
        shared_memory: link == SHARED,
        rdma: Rdma::Off,
        ..Config::default()
    }
}

/// Gives the group its topology, and this rank a core of its own where there are enough: ranks that come to share one for
/// a while say nothing about links.
fn shaped(mut group: Group, link: &str) -> io::Result<Group> {
    if link == TCP_RING {
        group.set_topology(Topology::Ring);
    }
    if group.world() <= thread::available_parallelism()?.get() {
        take_core(group.rank().index())?;
    }
    Ok(group)
}

/// Binds this process to one of the cores it may use.
#[cfg(target_os = "linux")]
fn take_core(rank: usize) -> io::Result<()> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let mut own = CpuSet::new();
    own.set(cores.nth(rank).ok_or(io::ErrorKind::NotFound)?);
    Ok(sched_setaffinity(None, &own)?)
}

/// Elsewhere the system places its processes itself.
#[cfg(not(target_os = "linux"))]
fn take_core(_rank: usize) -> io::Result<()> {
    Ok(())
}

fn key() -> Key {
    Key::from_token("a token of the benchmark")
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The first argument of the other processes.
const MEMBER: &str = "member";
const SHARED: &str = "shared";
const TCP: &str = "tcp";
const TCP_RING: &str = "tcp-ring";
/// A decode step's sum, one of a short prompt, and those of long prompts.
const BYTES: [usize; 4] = [8 << 10, 64 << 10, 4 << 20, 64 << 20];
/// Long enough that one rank's being ahead counts little, short enough that a busy machine leaves some alone.
const BYTES_PER_SAMPLE: usize = 1 << 20;
const BYTES_PER_SIZE: usize = 512 << 20;
const SAMPLES_MIN: usize = 10;
const SAMPLES_MAX: usize = 1000;
