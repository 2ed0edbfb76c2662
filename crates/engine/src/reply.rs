//! One request as rank 0 answers it.

use std::time::{Duration, Instant};

use crate::request::{FinishReason, Request, Timing};
use crate::sampling::{History, sample};

/// The reply to one request so far.
pub(crate) struct Reply {
    /// Its stop tokens are in order, each once.
    request: Request,
    history: History,
    waited: Duration,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Reply {
    pub(crate) fn new(mut request: Request) -> Self {
        request.stop_tokens.sort_unstable();
        request.stop_tokens.dedup();
        Self {
            history: History::new(&request.prompt),
            request,
            waited: Duration::ZERO,
            started: None,
            first_token: None,
            last_token: None,
        }
    }

    /// The request was given its place after it had `waited`.
    pub(crate) fn start(&mut self, waited: Duration, now: Instant) {
        self.waited = waited;
        self.started = Some(now);
    }

    /// Chooses the next token; `None` if the logits allow none.
    pub(crate) fn sample(&self, logits: &mut [f32]) -> Option<u32> {
        sample(logits, &self.request.sampling, &self.history)
    }

    /// Appends a token; says whether, and why, it is the last.
    pub(crate) fn push(&mut self, token: u32, now: Instant) -> Option<FinishReason> {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        if self.request.stop_tokens.binary_search(&token).is_ok() {
            return Some(FinishReason::Stop);
        }
        self.history.push(token);
        (self.history.generated_tokens() >= self.request.max_tokens).then_some(FinishReason::Length)
    }

    pub(crate) fn timing(&self) -> Timing {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => milliseconds(to.saturating_duration_since(from)),
            _ => 0.0,
        };
        Timing {
            queue_ms: milliseconds(self.waited),
            prompt_ms: between(self.started, self.first_token),
            generation_ms: between(self.first_token, self.last_token),
            prompt_tokens: self.request.prompt.len() as u32,
            generated_tokens: self.history.generated_tokens(),
            cached_tokens: 0,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Sampling;

    #[test]
    fn every_stop_token_ends_the_reply_in_whatever_order_they_were_given() {
        let request = Request {
            prompt: vec![1],
            sampling: Sampling::greedy(),
            max_tokens: 10,
            stop_tokens: vec![9, 2, 9, 5, 2],
        };
        for token in 0..12 {
            let end = Reply::new(request.clone()).push(token, Instant::now());
            let expected = [2, 5, 9].contains(&token).then_some(FinishReason::Stop);
            assert_eq!(end, expected, "token {token}");
        }
    }
}
