//! `GET /health`, `/queue` and `/`: how the cell is, in Shoal's own shapes.

use serde::Serialize;

/// How the cell is; sent with 200 when it is ready and 503 otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// `starting`, `loading`, `ready`, `lost` or `stopping`.
    pub status: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The name of the model.
    pub model: String,
    /// How many ranks the cell has.
    pub world_size: usize,
    /// The ranks, in order.
    pub ranks: Vec<RankHealth>,
    /// How busy it is.
    pub queue: Queue,
}

/// How one rank is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RankHealth {
    /// Its number.
    pub rank: u16,
    /// Where it runs.
    pub place: String,
    /// Its process, if it is on the front's machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it is doing, such as `ready` or `lost`.
    pub state: String,
}

/// How busy the cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Requests accepted but not started.
    pub waiting: usize,
    /// Requests being worked on.
    pub running: usize,
    /// The bounds; `null` until the cell has said them.
    pub limits: Option<Limits>,
}

/// The bounds of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Most requests that may wait; one more gets status 429.
    pub waiting_max: usize,
    /// Most requests worked on at once.
    pub running_max: usize,
    /// Longest prompt and reply together, in tokens.
    pub context: u32,
}

/// What answers here, for a person who opens the address in a browser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Always `shoal`.
    pub service: &'static str,
    /// The version of the front.
    pub version: &'static str,
    /// The name of the model.
    pub model: String,
    /// Method and path of everything that can be asked.
    pub endpoints: Vec<&'static str>,
}
