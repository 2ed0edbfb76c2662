//! What a link test found. The JSON form of a [`Report`] is a contract with scripts.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What rank 0 tells while the test runs; one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// A rank was started. Said by the front itself.
    Started {
        /// Which rank.
        rank: u16,
        /// Its process, where it is one of this machine.
        pid: Option<u32>,
    },
    /// Rank 0 waits for the others at this port.
    Listening {
        /// The port.
        port: u16,
    },
    /// What is being done; said now and then.
    Progress(String),
    /// One measured round; said only when the plan is verbose.
    Round {
        /// What was measured.
        what: String,
        /// How long it took.
        seconds: f64,
    },
    /// The end: everything was done.
    Done(Box<Report>),
    /// The end: it could not be done.
    Failed {
        /// Why not, in one line.
        reason: String,
    },
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Number of ranks.
    pub world: u16,
    /// Repeats the same data.
    pub seed: u64,
    /// What carries bytes between rank 0 and the others: `tcp`, `rdma`, `shared memory`, `mpi`, or several, as
    /// in `shared memory and tcp`.
    pub transport: String,
    /// Time from rank 0 listening to all ranks connected with each other.
    pub join_ms: f64,
    /// Time of a barrier on rank 0.
    pub barrier_us: Spread,
    /// Whether data arrived as it was sent, over all ranks.
    pub correctness: Checked,
    /// Time of one all-reduce of 4 KiB on rank 0, back to back, as a model's layers do it.
    pub all_reduce_4kib_us: Spread,
    /// All-reduce of growing sizes.
    pub sweep: Vec<SweepRow>,
    /// Each link for itself, the others idle.
    pub links: Vec<LinkReport>,
    /// What `--stress` found.
    pub stress: Option<Stress>,
}

/// All-reduces of one size, timed on rank 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SweepRow {
    /// Bytes that every rank brings, and gets.
    pub bytes: usize,
    /// Measured rounds.
    pub rounds: u32,
    /// Half of the rounds took no longer.
    pub median_ms: f64,
    /// What one rank sends, and receives at the same time, divided by the time: 2(N-1)/N of the size. Mean over the rounds.
    pub average_gb_per_s: f64,
    /// The same, of the quickest round.
    pub peak_gb_per_s: f64,
}

/// One link, measured by the lower of its two ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    /// The lower rank, whose clock it is.
    pub from: u16,
    /// The higher rank.
    pub to: u16,
    /// What carries its bytes: `tcp`, `rdma`, `shared memory` or `mpi`.
    pub transport: String,
    /// How many cables carry its bytes: several where a link is striped.
    pub cables: usize,
    /// How many cables like the fastest of them would carry as much: as many, unless some are slower.
    pub breadth: f64,
    /// 4 KiB sent there and 4 KiB sent back.
    pub round_trip_4kib_us: Spread,
    /// Size of the messages in both directions.
    pub message_bytes: usize,
    /// From the lower rank to the higher.
    pub there: Direction,
    /// From the higher rank to the lower.
    pub back: Direction,
}

/// Messages one way, the other way idle. The time of each includes one small message in return.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Direction {
    /// Mean over the messages.
    pub average_gb_per_s: f64,
    /// The quickest message.
    pub peak_gb_per_s: f64,
}

/// Lowest, middle and nearly highest of many values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The lowest.
    pub min: f64,
    /// Half of them are no higher.
    pub median: f64,
    /// 99 of 100 are no higher.
    pub p99: f64,
}

/// Data compared with what it should be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Results compared.
    pub checks: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// Results that were wrong.
    pub wrong: u64,
    /// The first few of those, of each rank.
    pub faults: Vec<Fault>,
}

/// A result that was not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The rank that saw it.
    pub seen_by: u16,
    /// The rank whose data it is; none for a sum, to which all bring theirs.
    pub from: Option<u16>,
    /// What was done.
    pub operation: Operation,
    /// Length of the result.
    pub bytes: usize,
    /// Where the first wrong byte is.
    pub offset: usize,
    /// How many are wrong.
    pub wrong_bytes: usize,
}

/// What the correctness phase tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// The sum over all ranks, compared with a reference sum.
    AllReduce,
    /// The bytes of all ranks.
    AllGather,
    /// The values of all ranks, in one row.
    AllGatherF32,
    /// The bytes of one rank.
    Broadcast,
    /// A message from one rank to another.
    SendRecv,
}

/// What a longer run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stress {
    /// How long it went on.
    pub seconds: f64,
    /// Rounds of every operation.
    pub rounds: u64,
    /// What was compared, over all ranks.
    pub checked: Checked,
}

impl Report {
    /// Returns every fault that was found.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        let stressed = self.stress.iter().flat_map(|it| &it.checked.faults);
        self.correctness.faults.iter().chain(stressed)
    }
}

impl Spread {
    /// Returns the spread of some times in microseconds; of none at all it is 0.
    pub(crate) fn of_us(times: &[Duration]) -> Self {
        let mut us: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        us.sort_by(f64::total_cmp);
        let at = |hundredths: usize| {
            let index = (us.len() * hundredths).div_ceil(100).saturating_sub(1);
            us.get(index).copied().unwrap_or_default()
        };
        Self {
            min: at(0),
            median: at(50),
            p99: at(99),
        }
    }
}

impl Direction {
    /// Returns the rate of messages that carried `bytes` in each of `times`.
    pub(crate) fn of(bytes: f64, times: &[Duration]) -> Self {
        let total: Duration = times.iter().sum();
        let quickest = times.iter().min().copied().unwrap_or_default();
        Self {
            average_gb_per_s: gb_per_s(bytes * times.len() as f64, total),
            peak_gb_per_s: gb_per_s(bytes, quickest),
        }
    }
}

impl Checked {
    /// Adds what another rank has compared.
    pub(crate) fn add(&mut self, other: Self) {
        self.checks += other.checks;
        self.bytes += other.bytes;
        self.wrong += other.wrong;
        self.faults.extend(other.faults);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seen_by,
            operation,
            bytes,
            offset,
            wrong_bytes,
            ..
        } = self;
        write!(f, "rank {seen_by} saw {wrong_bytes} wrong bytes of {bytes}")?;
        write!(f, " from byte {offset} on in {operation}")?;
        match self.from {
            Some(from) => write!(f, " from rank {from}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::AllGatherF32 => "all_gather_f32",
            Self::Broadcast => "broadcast",
            Self::SendRecv => "send/recv",
        })
    }
}

fn gb_per_s(bytes: f64, time: Duration) -> f64 {
    // A clock too coarse to see the time gives no rate, and JSON knows no infinity.
    if time.is_zero() {
        0.0
    } else {
        bytes / time.as_secs_f64() / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_of_the_sorted_values() {
        let times = |us: &[u64]| -> Vec<Duration> {
            us.iter().map(|us| Duration::from_micros(*us)).collect()
        };
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let spread = |min, median, p99| Spread { min, median, p99 };
        assert_eq!(Spread::of_us(&times(&hundred)), spread(1.0, 50.0, 99.0));
        assert_eq!(Spread::of_us(&times(&[7])), spread(7.0, 7.0, 7.0));
        assert_eq!(Spread::of_us(&[]), spread(0.0, 0.0, 0.0));
    }

    #[test]
    fn rates_are_in_decimal_gigabytes() {
        let times = [Duration::from_secs(1), Duration::from_secs(3)];
        let rate = Direction::of(4e9, &times);
        assert_eq!((rate.average_gb_per_s, rate.peak_gb_per_s), (2.0, 4.0));
        assert_eq!(Direction::of(1.0, &[]).peak_gb_per_s, 0.0);
    }
}
