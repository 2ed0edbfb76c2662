//! How a cell is.

use std::fmt;

use shoal_fabric::Rank;
use shoal_kernels::Isa;
use shoal_scheduler::Limits;

/// What a cell is doing, as its front knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellState {
    /// Its ranks are not all there yet, or no cell is attached.
    Starting,
    /// Its ranks read their weights.
    Loading {
        /// Bytes of weights that have been handed out.
        done_bytes: u64,
        /// Bytes of weights there are.
        total_bytes: u64,
    },
    /// It answers requests.
    Ready,
    /// It fell apart.
    Lost(Loss),
    /// It was told to end.
    Stopping,
}

/// The loss of one rank, which ends its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The rank that is gone.
    pub rank: Rank,
    /// How that was noticed.
    pub reason: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was lost: {}", self.rank, self.reason)
    }
}

/// What a ready cell offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellInfo {
    /// Name under which the model is served.
    pub model_name: String,
    /// Longest prompt and reply together, in tokens.
    pub context: u32,
    /// Number of tokens the model knows.
    pub vocabulary: usize,
    /// Number of ranks.
    pub world: usize,
    /// Every bound of its queue, batch and cache.
    pub limits: Limits,
}

/// What one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankReport {
    /// Which rank.
    pub rank: Rank,
    /// The most memory its process ever had resident.
    pub peak_memory_bytes: u64,
    /// Its slice of the weights.
    pub weight_bytes: u64,
    /// Its KV cache when every page is in use.
    pub kv_bytes: u64,
    /// Its compute threads.
    pub threads: usize,
    /// The instruction set it computes with.
    pub isa: Isa,
    /// Its part of the model, in words.
    pub split: String,
}

/// What one rank is doing, as the front knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankState {
    /// Not there yet.
    Starting,
    /// Reading its weights.
    Loading,
    /// Computing, or ready to.
    Ready,
    /// Gone.
    Lost,
    /// Told to end.
    Stopping,
}

impl fmt::Display for RankState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Lost => "lost",
            Self::Stopping => "stopping",
        })
    }
}

/// Where a rank runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The machine, in words or as an address.
    pub machine: String,
    /// Its process, where the front can know it.
    pub pid: Option<u32>,
}

/// A rank in a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankStatus {
    /// Which rank.
    pub rank: Rank,
    /// Where it runs; empty if nobody said.
    pub place: Place,
    /// What it is doing.
    pub state: RankState,
}

/// A snapshot of a cell from its front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the cell is doing.
    pub state: CellState,
    /// The loss that the cell has not recovered from yet, while it forms again.
    pub last_loss: Option<Loss>,
    /// Its ranks, in order.
    pub ranks: Vec<RankStatus>,
    /// Open requests that no step has worked on yet.
    pub waiting: usize,
    /// Open requests that are worked on.
    pub running: usize,
    /// Its bounds; `None` until a cell has said them.
    pub limits: Option<Limits>,
    /// What has been counted since the client was made.
    pub counters: Counters,
}

/// Counts since the client was made; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken.
    pub requests_total: u64,
    /// Requests refused because the queue was full.
    pub refused_total: u64,
    /// Replies completed.
    pub finished_total: u64,
    /// Replies that broke off.
    pub failed_total: u64,
    /// Requests whose stream was dropped before its end.
    pub cancelled_total: u64,
    /// Prompt tokens of the requests taken.
    pub prompt_tokens_total: u64,
    /// Tokens generated.
    pub generated_tokens_total: u64,
    /// Times the cell fell apart.
    pub losses_total: u64,
}
