//! The link test: are the links between these machines whole, and as fast as such links are?
//!
//! [`LinkTest`] starts one rank for each node, as a cell would, but with an order to measure instead of to load a model.
//! The ranks go through the [`Plan`] together; rank 0 tells what happens, and at the end a [`Report`], in [`Event`]s on its
//! standard output. [`Verdict`] says in words what the figures mean. All of it uses the public collectives of the fabric only,
//! so it measures whatever links the fabric has chosen. With the feature `mpi`, `run_over_mpi` goes through the same plan on
//! ranks that `mpirun` started.

mod check;
mod front;
mod links;
mod measure;
#[cfg(feature = "mpi")]
mod mpi;
mod rank;
mod report;
mod verdict;

use serde::{Deserialize, Serialize};

pub use front::{LinkTest, LinkTestConfig, LinkTestError};
#[cfg(feature = "mpi")]
pub use mpi::run_over_mpi;
pub use rank::{LinkRankError, Listener, run_rank};
pub use report::{
    Checked, Direction, Event, Fault, LinkReport, Operation, Report, Spread, Stress, SweepRow,
};
pub use verdict::{Grade, Place, Verdict};

/// What the ranks of a link test do. Rank 0 hands it to the others over the fabric.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// All data sent is drawn from it, so that every rank knows what every other sends.
    pub seed: u64,
    /// Sizes of the sweep, ascending; each a multiple of 4 bytes, none of them 0.
    pub sizes_bytes: Vec<usize>,
    /// Measured rounds at each size; ten times as many up to 1 MiB, fewer where a link is too slow for them.
    pub rounds: u32,
    /// How long to go on checking every byte after the rest.
    pub stress_seconds: Option<u32>,
    /// Tells the time of each round.
    pub verbose: bool,
}

impl Plan {
    /// Returns a seed that differs each time, short enough to be typed again.
    #[must_use]
    pub fn random_seed() -> u64 {
        let random = getrandom::u32().expect("the operating system gives random bytes");
        random.into()
    }
}

/// Message whose latency is told: a layer's activations of a small model.
pub const LATENCY_BYTES: usize = 4096;
/// Below this a message says more of latency than of bandwidth.
pub(crate) const BANDWIDTH_BYTES_MIN: usize = 1 << 20;
