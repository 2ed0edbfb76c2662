//! Tokens as they come, turned into text as it goes out.

use std::time::{Duration, Instant};

use shoal_api::{FinishReason, Performance, Usage};
use shoal_engine::client::{self, Timing, TokenStream};
use shoal_text::{Decoder, StopMatcher};
use tokio::time::timeout_at;

use crate::error::StreamError;

/// The text of one reply, token by token. Dropping it cancels the request.
pub struct TextStream {
    /// Gone once the reply has ended.
    tokens: Option<TokenStream>,
    decoder: Decoder,
    stops: StopMatcher,
    clock: Clock,
    deadline: Option<(tokio::time::Instant, Duration)>,
    /// An end that has been reached but not yet been told.
    untold: Option<Finished>,
}

/// What happens to a reply.
#[derive(Debug)]
pub enum TextEvent {
    /// It goes on.
    Piece {
        /// The new text; empty while a character is not whole or a stop string may have begun.
        text: String,
        /// The token it came with; `None` for text that was held back and is let go at the end.
        token: Option<u32>,
    },
    /// It is complete. Nothing follows.
    Done(Finished),
    /// It failed. Nothing follows.
    Failed(StreamError),
}

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
    /// How quickly it came.
    pub performance: Performance,
}

impl TextStream {
    pub(crate) fn new(
        tokens: TokenStream,
        decoder: Decoder,
        stops: &[String],
        prompt_tokens: u64,
        submitted: Instant,
    ) -> Self {
        Self {
            tokens: Some(tokens),
            decoder,
            stops: StopMatcher::new(stops),
            clock: Clock {
                prompt_tokens,
                generated_tokens: 0,
                submitted,
                first_token: None,
                last_token: submitted,
            },
            deadline: None,
            untold: None,
        }
    }

    /// Fails the reply if it is not complete within `limit` from now.
    pub fn set_time_limit(&mut self, limit: Duration) {
        self.deadline = Some((tokio::time::Instant::now() + limit, limit));
    }

    /// Waits for the next event; `None` after the last one. Dropping the call loses nothing.
    pub async fn next(&mut self) -> Option<TextEvent> {
        if let Some(finished) = self.untold.take() {
            return Some(TextEvent::Done(finished));
        }
        let tokens = self.tokens.as_mut()?;
        let event = match self.deadline {
            None => tokens.next().await,
            Some((deadline, limit)) => match timeout_at(deadline, tokens.next()).await {
                Ok(event) => event,
                Err(_) => return Some(self.fail(StreamError::TimeLimit { limit })),
            },
        };
        Some(match event {
            Some(client::Event::Token(token)) => self.token(token),
            Some(client::Event::Finished { reason, timing }) => self.finish(reason, &timing),
            Some(client::Event::Failed(failure)) => self.fail(StreamError::Cell(failure)),
            None => self.fail(StreamError::Cut),
        })
    }

    /// Waits for the whole reply and returns its text.
    ///
    /// # Errors
    /// If the reply fails before it is complete.
    pub async fn collect(mut self) -> Result<(String, Finished), StreamError> {
        let mut whole = String::new();
        loop {
            match self.next().await {
                Some(TextEvent::Piece { text, .. }) => whole.push_str(&text),
                Some(TextEvent::Done(finished)) => return Ok((whole, finished)),
                Some(TextEvent::Failed(error)) => return Err(error),
                None => return Err(StreamError::Cut),
            }
        }
    }

    fn token(&mut self, token: u32) -> TextEvent {
        self.clock.tick(Instant::now());
        let outcome = self.stops.push(&self.decoder.push(token));
        if outcome.matched.is_some() {
            // The cell does not know of stop strings: cancel what it would still generate.
            self.tokens = None;
            self.untold = Some(self.clock.finished(FinishReason::Stop, None));
        }
        TextEvent::Piece {
            text: outcome.text,
            token: Some(token),
        }
    }

    fn finish(&mut self, reason: client::FinishReason, timing: &Timing) -> TextEvent {
        self.tokens = None;
        let outcome = self.stops.push(&self.decoder.finish());
        let text = outcome.text + &self.stops.clone().finish();
        let reason = match reason {
            // The last bytes, let go only now, completed a stop string.
            _ if outcome.matched.is_some() => FinishReason::Stop,
            client::FinishReason::Stop => FinishReason::Stop,
            client::FinishReason::Length => FinishReason::Length,
        };
        let finished = self.clock.finished(reason, Some(timing));
        if text.is_empty() {
            return TextEvent::Done(finished);
        }
        self.untold = Some(finished);
        TextEvent::Piece { text, token: None }
    }

    fn fail(&mut self, error: StreamError) -> TextEvent {
        self.tokens = None;
        TextEvent::Failed(error)
    }
}

/// When the tokens of one reply came, as its reader saw it.
struct Clock {
    prompt_tokens: u64,
    generated_tokens: u64,
    submitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

impl Clock {
    fn tick(&mut self, now: Instant) {
        self.generated_tokens += 1;
        self.first_token.get_or_insert(now);
        self.last_token = now;
    }

    /// Sums up. The cell's own `timing` knows the time in the queue and the cached tokens; it is
    /// missing when a stop string ended the reply.
    fn finished(&self, reason: FinishReason, timing: Option<&Timing>) -> Finished {
        let cached = timing.map_or(0, |timing| timing.cached_tokens.into());
        let first_token_ms = self.first_token.map(|first| ms(first - self.submitted));
        let generation_ms = self.first_token.map(|first| ms(self.last_token - first));
        let prompt_ms = timing.map(|timing| timing.prompt_ms).or(first_token_ms);
        Finished {
            reason,
            usage: Usage::new(self.prompt_tokens, cached, self.generated_tokens),
            performance: Performance {
                prompt_tokens_per_second: rate(
                    self.prompt_tokens.saturating_sub(cached),
                    prompt_ms,
                ),
                generation_tokens_per_second: rate(
                    self.generated_tokens.saturating_sub(1),
                    generation_ms,
                ),
                time_to_first_token_ms: first_token_ms,
                cached_tokens: cached,
            },
        }
    }
}

/// Returns events per second; `None` where nothing happened or no time passed.
fn rate(events: u64, elapsed_ms: Option<f64>) -> Option<f64> {
    let elapsed_ms = elapsed_ms?;
    (events > 0 && elapsed_ms > 0.0).then(|| events as f64 / elapsed_ms * 1e3)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
