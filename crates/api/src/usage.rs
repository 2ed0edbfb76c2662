//! What a request cost.

use serde::Serialize;

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// The sum of both.
    pub total_tokens: u64,
    /// More about the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
    /// More about the reply.
    pub completion_tokens_details: CompletionTokensDetails,
}

impl Usage {
    /// Counts a request of `prompt` tokens, `cached` of which needed no work, and `completion` generated ones.
    pub fn new(prompt: u64, cached: u64, completion: u64) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: cached,
            },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }

    /// Returns the sum with another request's counts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::new(
            self.prompt_tokens + other.prompt_tokens,
            self.prompt_tokens_details.cached_tokens + other.prompt_tokens_details.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )
    }
}

/// More about the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Prompt tokens whose work was already done for an earlier request.
    pub cached_tokens: u64,
}

/// More about the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompletionTokensDetails {
    /// Tokens spent on reasoning.
    pub reasoning_tokens: u64,
}

/// How quickly one request was served; Shoal's own addition to a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Performance {
    /// Prompt tokens processed per second, cached ones not counted; `null` when none were.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens per second after the first; `null` when there was only one.
    pub generation_tokens_per_second: Option<f64>,
    /// From acceptance to the first token, waiting in the queue included; `null` when there was no token.
    pub time_to_first_token_ms: Option<f64>,
    /// Prompt tokens whose work was already done for an earlier request.
    pub cached_tokens: u64,
}
