//! A request to a cell, and what becomes of it.

use shoal_fabric::Rank;
use thiserror::Error;

/// What is to be generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens to generate at most; cut to what the context leaves beside the prompt.
    pub max_tokens: u32,
    /// Tokens that end the reply. The one that ended it is not part of it.
    pub stop_tokens: Vec<u32>,
}

/// How the next token is chosen from the logits; see [`sample`](crate::sample) for the order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides (or multiplies, below zero) the logits of every token seen in prompt or reply; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token in the reply.
    pub presence_penalty: f32,
    /// Taken from the logit of a token once for each time it is in the reply.
    pub frequency_penalty: f32,
    /// Starts the random generator; the same seed gives the same reply.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next token of the reply.
    Token(u32),
    /// The reply is complete. Nothing follows.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// How long its parts took.
        timing: Timing,
    },
    /// The reply broke off. Nothing follows.
    Failed(Failure),
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token came.
    Stop,
    /// The tokens asked for are there.
    Length,
}

/// How long the parts of a request took, as rank 0 saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// From its arrival at rank 0 to its admission.
    pub queue_ms: f64,
    /// From its admission to its first token.
    pub prompt_ms: f64,
    /// From its first token to its last.
    pub generation_ms: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the reply, without the stop token.
    pub generated_tokens: u32,
    /// Tokens of the prompt that were not computed again.
    pub cached_tokens: u32,
}

/// Why a reply broke off.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// A rank of the cell is gone, and the reply with it.
    #[error("{rank} was lost: {reason}; try again when the cell is ready")]
    RankLost {
        /// The rank that is gone.
        rank: Rank,
        /// How that was noticed.
        reason: String,
    },
    /// Rank 0 did not take the request, or was told to end.
    #[error("the cell did not take or finish the request: {0}")]
    Refused(String),
    /// The cell could not compute it.
    #[error("the cell could not complete the request: {0}")]
    Internal(String),
}
