//! The phases of a link test, as every rank goes through them.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_fabric::{FabricError, Group, Rank};

use super::check::{Brings, Checker};
use super::links::{Load, follow, lead, pairs};
use super::rank::{LinkRankError, Teller};
use super::report::{Checked, Direction, LinkReport, Report, Spread, Stress, SweepRow};
use super::{BANDWIDTH_BYTES_MIN, LATENCY_BYTES, Plan};

/// Goes through all phases together with the other ranks. What it returns on rank 0 is complete; the others see the same
/// but for the times, which are of their own clocks.
pub(crate) fn examine(
    group: &mut Group,
    plan: &Plan,
    brings: &Brings<'_>,
    teller: &mut Teller<'_>,
) -> Result<Report, LinkRankError> {
    let mut test = Test {
        group,
        plan,
        teller,
    };
    let barrier = test.timed("barrier", plan.rounds * LATENCY_FACTOR, |group| {
        group.barrier()
    })?;
    let correctness = test.correctness(brings)?;
    let mut values = vec![0.0; LATENCY_BYTES / size_of::<f32>()];
    let small = test.timed("4 KiB all_reduce", plan.rounds * LATENCY_FACTOR, |group| {
        group.all_reduce_sum(&mut values)
    })?;
    let sweep = test.sweep()?;
    let links = test.links(&sweep)?;
    let stress = match plan.stress_seconds {
        Some(seconds) => Some(test.stress(Duration::from_secs(seconds.into()), brings)?),
        None => None,
    };
    group.barrier()?;
    Ok(Report {
        world: group.world() as u16,
        seed: plan.seed,
        transport: transports(group),
        join_ms: 0.0,
        barrier_us: Spread::of_us(&barrier),
        correctness,
        all_reduce_4kib_us: Spread::of_us(&small),
        sweep,
        links,
        stress,
    })
}

/// Names what carries bytes to and from this rank.
fn transports(group: &Group) -> String {
    let ranks = (0..group.world()).map(|rank| Rank(rank as u16));
    let carriers = ranks.filter_map(|rank| group.transport(rank));
    let mut names: Vec<String> = carriers.map(|carrier| carrier.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" and ")
}

struct Test<'a, 'b> {
    group: &'a mut Group,
    plan: &'a Plan,
    teller: &'a mut Teller<'b>,
}

impl Test<'_, '_> {
    /// Does `work` over and over, back to back, and returns the time of each. All ranks do it equally often: as often as
    /// rank 0, which has tried it, finds time for.
    fn timed(
        &mut self,
        what: &str,
        rounds: u32,
        mut work: impl FnMut(&mut Group) -> Result<(), FabricError>,
    ) -> Result<Vec<Duration>, LinkRankError> {
        self.teller.progress(|| what.to_owned())?;
        let rounds = self.rounds(rounds, &mut work)?;
        let mut times = Vec::with_capacity(rounds as usize);
        for _ in 0..rounds {
            let started = Instant::now();
            work(self.group)?;
            times.push(started.elapsed());
        }
        Ok(times)
    }

    /// Warms up and lets rank 0 say how many rounds fit the time.
    fn rounds(
        &mut self,
        wanted: u32,
        mut work: impl FnMut(&mut Group) -> Result<(), FabricError>,
    ) -> Result<u32, LinkRankError> {
        // Buffers and windows grow in the first.
        work(self.group)?;
        let started = Instant::now();
        work(self.group)?;
        let fitting = PHASE_TIME.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-9);
        let rounds = (fitting as u32).clamp(ROUNDS_MIN, wanted.max(ROUNDS_MIN));
        self.of_root(&rounds)
    }

    /// Returns rank 0's value on every rank.
    fn of_root<T: Serialize + DeserializeOwned>(&mut self, value: &T) -> Result<T, LinkRankError> {
        let mut bytes = encode(value);
        self.group.broadcast(Rank(0), &mut bytes)?;
        decode(&bytes)
    }

    fn correctness(&mut self, brings: &Brings<'_>) -> Result<Checked, LinkRankError> {
        let mut checker = Checker::new(self.group.rank(), brings);
        let len_max = CHECKED_BYTES_MAX / size_of::<f32>() / self.group.world();
        for (round, len) in (0..).zip(CHECKED_LENS) {
            let len = len.min(len_max);
            self.teller
                .progress(|| format!("comparing {len} values of each rank"))?;
            checker.round(self.group, round, len)?;
        }
        self.summed(checker.checked)
    }

    /// Adds up what all ranks have compared.
    fn summed(&mut self, own: Checked) -> Result<Checked, LinkRankError> {
        let mut all = Vec::new();
        self.group.all_gather(&encode(&own), &mut all)?;
        let mut sum = Checked::default();
        for checked in &all {
            sum.add(decode(checked)?);
        }
        Ok(sum)
    }

    fn sweep(&mut self) -> Result<Vec<SweepRow>, LinkRankError> {
        let plan = self.plan;
        let mut rows = Vec::new();
        let largest = plan.sizes_bytes.iter().max().copied().unwrap_or(0);
        // As a model's sums are, in memory that is lent.
        let mut region = self.group.region(largest.min(REGION_BYTES_MAX) / 4)?;
        for &bytes in &plan.sizes_bytes {
            let few = plan.rounds;
            let wanted = if bytes <= BANDWIDTH_BYTES_MIN {
                few * SMALL_FACTOR
            } else {
                few
            };
            let row = match region.get_mut(..bytes / 4) {
                Some(values) => self.sweep_row(values, wanted)?,
                None => self.sweep_row(&mut vec![0.0; bytes / 4], wanted)?,
            };
            rows.push(row);
        }
        Ok(rows)
    }

    fn sweep_row(&mut self, values: &mut [f32], wanted: u32) -> Result<SweepRow, LinkRankError> {
        let bytes = size_of_val(values);
        let what = format!("all_reduce of {bytes} bytes");
        self.teller.progress(|| what.clone())?;
        let brought = super::check::drawn(self.plan.seed, self.group.rank(), 0, values.len());
        let rounds = self.rounds(wanted, |group| {
            values.copy_from_slice(&brought);
            group.all_reduce_sum(values)
        })?;
        let mut times = Vec::with_capacity(rounds as usize);
        for round in 1..=rounds {
            // Sums of sums would grow until they are infinite. All ranks start together, so that no rank's time holds
            // another's copying.
            values.copy_from_slice(&brought);
            self.group.barrier()?;
            let started = Instant::now();
            self.group.all_reduce_sum(values)?;
            let time = started.elapsed();
            times.push(time);
            self.teller.round(&what, time)?;
            self.teller
                .progress(|| format!("{what}, round {round} of {rounds}"))?;
        }
        let world = self.group.world() as f64;
        let sent = 2.0 * (world - 1.0) / world * bytes as f64;
        let rate = Direction::of(sent, &times);
        Ok(SweepRow {
            bytes,
            rounds,
            median_ms: Spread::of_us(&times).median / 1e3,
            average_gb_per_s: rate.average_gb_per_s,
            peak_gb_per_s: rate.peak_gb_per_s,
        })
    }

    fn links(&mut self, sweep: &[SweepRow]) -> Result<Vec<LinkReport>, LinkRankError> {
        let load = Load {
            message_bytes: self.of_root(&stream_bytes(sweep))?,
            round_trips: self.plan.rounds * LATENCY_FACTOR,
            messages: self.plan.rounds,
        };
        let own = self.group.rank();
        let mut led = Vec::new();
        for (low, high) in pairs(self.group.world()) {
            self.teller.progress(|| format!("link {low} to {high}"))?;
            if own == low {
                led.push(lead(self.group, high, load)?);
            } else if own == high {
                follow(self.group, low, load)?;
            }
            // One link at a time: they share the machines.
            self.group.barrier()?;
        }
        let mut all = Vec::new();
        self.group.all_gather(&encode(&led), &mut all)?;
        let mut links = Vec::new();
        for led in &all {
            links.extend(decode::<Vec<LinkReport>>(led)?);
        }
        Ok(links)
    }

    /// Checks every byte of all operations until the time is over or a byte is wrong.
    fn stress(&mut self, duration: Duration, brings: &Brings<'_>) -> Result<Stress, LinkRankError> {
        let started = Instant::now();
        let lens = stress_lens(&self.plan.sizes_bytes, self.group.world());
        let mut checker = Checker::new(self.group.rank(), brings);
        let (mut rounds, mut states) = (0, Vec::new());
        for (round, len) in (STRESS_ROUND_FIRST..).zip(lens.iter().cycle()) {
            checker.round(self.group, round, *len)?;
            rounds += 1;
            let state = [
                u8::from(started.elapsed() < duration),
                u8::from(checker.checked.wrong == 0),
            ];
            self.group.all_gather(&state, &mut states)?;
            let goes_on = states[0].first() == Some(&1);
            let is_whole = |state: &Vec<u8>| state.get(1) == Some(&1);
            if !goes_on || !states.iter().all(is_whole) {
                break;
            }
            self.teller.progress(|| {
                let (done, all) = (started.elapsed().as_secs(), duration.as_secs());
                format!("stress: {done} of {all} s, {rounds} rounds, every byte right so far")
            })?;
        }
        Ok(Stress {
            seconds: started.elapsed().as_secs_f64(),
            rounds,
            checked: self.summed(checker.checked)?,
        })
    }
}

/// The size whose messages show a link's bandwidth: large, but one takes no more than half a second.
fn stream_bytes(sweep: &[SweepRow]) -> usize {
    let largest = sweep.iter().map(|row| row.bytes).max().unwrap_or(0);
    let quick = |row: &&SweepRow| row.median_ms <= 500.0 && row.bytes <= STREAM_BYTES_MAX;
    let fitting = sweep.iter().filter(quick).map(|row| row.bytes).max();
    fitting
        .unwrap_or(0)
        .max(largest.min(BANDWIDTH_BYTES_MIN))
        .max(1)
}

/// The lengths that a stress run goes through: the sweep's sizes as far as all ranks' data fits the memory, whole and odd.
fn stress_lens(sizes_bytes: &[usize], world: usize) -> Vec<usize> {
    let fits = |bytes: usize| bytes.min(STRESS_BYTES_MAX / world).max(4) / 4;
    let lens = sizes_bytes.iter().map(|bytes| fits(*bytes));
    lens.flat_map(|len| [len, len - len / 3, (len / 7).max(1)])
        .collect()
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("reports are plain data")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LinkRankError> {
    serde_json::from_slice(bytes).map_err(|error| LinkRankError::Garbled(error.to_string()))
}

/// Values of each rank in the correctness phase: one, few, odd, around the change from one algorithm of the all-reduce to
/// the other (32 KiB, or 64 KiB between 2 ranks), and more than a link's buffers hold.
const CHECKED_LENS: [usize; 8] = [1, 3, 1000, 8192, 8193, 16_384, 16_385, 1_000_003];
/// What all ranks bring to a round of that: every rank draws all of it, and they may all be on one machine.
const CHECKED_BYTES_MAX: usize = 16 << 20;
/// Latencies are of so many times the rounds.
const LATENCY_FACTOR: u32 = 50;
/// More than a step of most models sums, and no more than a device should be asked to know for each peer.
const REGION_BYTES_MAX: usize = 64 << 20;
/// Sizes that pass quickly get so many times the rounds.
const SMALL_FACTOR: u32 = 10;
/// Enough to have a quickest and a slowest.
const ROUNDS_MIN: u32 = 3;
/// What a phase may take, as far as `ROUNDS_MIN` rounds allow.
const PHASE_TIME: Duration = Duration::from_secs(4);
/// Larger messages are no faster and take memory.
const STREAM_BYTES_MAX: usize = 64 << 20;
/// What all ranks bring to a round of a stress run, held by each of them.
const STRESS_BYTES_MAX: usize = 256 << 20;
/// The rounds of a stress run bring other data than those of the correctness phase.
const STRESS_ROUND_FIRST: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: usize, median_ms: f64) -> SweepRow {
        SweepRow {
            bytes,
            rounds: 1,
            median_ms,
            average_gb_per_s: 1.0,
            peak_gb_per_s: 1.0,
        }
    }

    #[test]
    fn streams_are_large_on_quick_links_and_never_take_long() {
        let sweep = |ms: f64| [row(4096, 0.1), row(1 << 20, ms), row(16 << 20, 16.0 * ms)];
        assert_eq!(stream_bytes(&sweep(1.0)), 16 << 20);
        assert_eq!(stream_bytes(&sweep(100.0)), 1 << 20);
        assert_eq!(
            stream_bytes(&sweep(9e3)),
            1 << 20,
            "less shows no bandwidth"
        );
        assert_eq!(stream_bytes(&[row(256 << 20, 1.0)]), 1 << 20);
        assert_eq!(stream_bytes(&[row(4, 1.0)]), 4);
    }

    #[test]
    fn a_stress_run_holds_bounded_memory() {
        for world in [2, 64] {
            let lens = stress_lens(&[4, 256 << 20, 1 << 30], world);
            assert!(
                lens.iter()
                    .all(|len| (1..=STRESS_BYTES_MAX / 4).contains(len))
            );
            assert!(lens.iter().all(|len| len * 4 * world <= STRESS_BYTES_MAX));
        }
    }
}
