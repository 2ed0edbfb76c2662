//! What one step does.

use std::time::Duration;

use crate::RequestId;

/// One step: which tokens to compute, for whom. Empty when there is nothing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// The requests that were given a place at the beginning of this step, in order.
    pub admitted: Vec<Admission>,
    /// The runs of tokens to compute, no two of one request.
    pub spans: Vec<PlannedSpan>,
}

/// A request that was given a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which one.
    pub id: RequestId,
    /// How long it had waited.
    pub waited: Duration,
}

/// A run of consecutive tokens of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSpan {
    /// Whose tokens.
    pub id: RequestId,
    /// The tokens; at least one.
    pub tokens: Vec<u32>,
    /// Position of the first of them in the sequence.
    pub start: u32,
    /// The pages of the whole sequence: position `p` is in `pages[p / page_tokens]`.
    pub pages: Vec<u32>,
    /// Whether the span ends its sequence so far, so that the next token is sampled after it.
    pub wants_logits: bool,
}
