//! How long a sum over two processes takes, over each kind of link between them: `cargo bench -p shoal-fabric`.
//!
//! Prints the best and the median of many samples: on a busy machine the best comes near to what an idle one does always.
//! A sample is several rounds, because one alone can be quick only since the other rank was ahead.
//! The rate counts the bytes of the values once, which is what each link carries each way.

#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use shoal_fabric::tcp::{self, Config, Rendezvous};
use shoal_fabric::{Group, Key, Rank};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    if let [_, role, address, shared_memory] = arguments.as_slice()
        && role == MEMBER
    {
        let config = Config {
            shared_memory: shared_memory.parse()?,
        };
        let mut group = tcp::join_with(config, address.parse()?, Rank(1), 2, key(), deadline())?;
        for bytes in SIZES {
            measure(&mut group, bytes)?;
        }
        return Ok(());
    }
    println!(
        "{:>10} {:>14} {:>12} {:>12} {:>10}",
        "bytes", "link", "best µs", "median µs", "GiB/s"
    );
    for shared_memory in [true, false] {
        let config = Config { shared_memory };
        let rendezvous = Rendezvous::bind(([127, 0, 0, 1], 0).into(), 2, key())?.with(config);
        let mut member = Command::new(env::current_exe()?)
            .args([
                MEMBER,
                &rendezvous.local_addr().to_string(),
                &shared_memory.to_string(),
            ])
            .spawn()?;
        let mut group = rendezvous.accept(deadline())?;
        let link = group
            .transport(Rank(1))
            .map(|link| link.to_string())
            .unwrap_or_default();
        for bytes in SIZES {
            let mut times = measure(&mut group, bytes)?;
            times.sort_unstable();
            let (best, median) = (times[0].as_secs_f64(), times[times.len() / 2].as_secs_f64());
            let rate = bytes as f64 / best / f64::from(1 << 30);
            println!(
                "{bytes:>10} {link:>14} {:>12.1} {:>12.1} {rate:>10.2}",
                best * 1e6,
                median * 1e6
            );
        }
        member.wait()?;
    }
    Ok(())
}

/// Returns the time of a round in each of many samples.
fn measure(group: &mut Group, bytes: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut values = vec![1.0; bytes / size_of::<f32>()];
    group.all_reduce_sum(&mut values)?;
    assert!(values.iter().all(|value| *value == 2.0), "a sum is wrong");
    // Stays what it is, however often it is summed.
    values.fill(0.0);
    let rounds = (BYTES_PER_SAMPLE / bytes).max(1);
    let mut sample = || {
        let started = Instant::now();
        for _ in 0..rounds {
            group.all_reduce_sum(&mut values)?;
        }
        Ok(started.elapsed() / u32::try_from(rounds)?)
    };
    let samples = (BYTES_PER_SIZE / (bytes * rounds)).clamp(SAMPLES_MIN, SAMPLES_MAX);
    (0..samples).map(|_| sample()).collect()
}

fn key() -> Key {
    Key::from_token("a token of the benchmark")
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The first argument of the other process.
const MEMBER: &str = "member";
/// A decode step's sum, one of a short prompt, and those of long prompts.
const SIZES: [usize; 4] = [8 << 10, 64 << 10, 4 << 20, 64 << 20];
/// Long enough that one rank's being ahead counts little, short enough that a busy machine leaves some alone.
const BYTES_PER_SAMPLE: usize = 1 << 20;
const BYTES_PER_SIZE: usize = 512 << 20;
const SAMPLES_MIN: usize = 10;
const SAMPLES_MAX: usize = 1000;
