//! From text streams to replies, whole or streamed; chat and completions differ only in their wording.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use serde::Serialize;
use shoal_api::{FinishReason, Performance, StreamOptions, Usage};

use crate::error::ApiError;
use crate::stream::{Finished, TextEvent, TextStream};

/// How one endpoint words its replies.
pub(crate) trait Wording: Send + 'static {
    /// A streamed chunk: what is new in one choice, or only the tail.
    fn chunk(&self, news: Option<News>, tail: Tail) -> impl Serialize;

    /// A whole reply.
    fn whole(
        &self,
        choices: Vec<(String, FinishReason)>,
        usage: Usage,
        performance: Performance,
    ) -> impl Serialize;
}

/// What is new in one choice.
pub(crate) struct News {
    pub(crate) index: usize,
    /// Whether it is the first of its choice.
    pub(crate) first: bool,
    pub(crate) what: What,
}

/// What a choice does.
pub(crate) enum What {
    GoesOn(String),
    Ends(FinishReason),
}

/// What a chunk carries besides its choice.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tail {
    pub(crate) usage: Option<Option<Usage>>,
    pub(crate) performance: Option<Performance>,
}

/// Answers when every choice is complete.
pub(crate) async fn whole(
    choices: Vec<TextStream>,
    wording: impl Wording,
) -> Result<Response, ApiError> {
    let finished = try_join_all(choices.into_iter().map(TextStream::collect)).await?;
    let mut total = Total::default();
    let choices = finished
        .into_iter()
        .map(|(text, end)| {
            total.add(&end);
            (text, end.reason)
        })
        .collect();
    Ok(Json(wording.whole(choices, total.usage, total.performance)).into_response())
}

/// Answers as the choices go on, one chunk a token.
pub(crate) fn streamed(
    choices: Vec<TextStream>,
    options: StreamOptions,
    wording: impl Wording,
) -> Response {
    let chunks = Chunks {
        begun: vec![false; choices.len()],
        open: choices.len(),
        choices: choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| indexed(index, choice))
            .collect(),
        include_usage: options.include_usage,
        total: Total::default(),
        ready: VecDeque::new(),
        wording,
    };
    let events = stream::unfold(chunks, |mut chunks| async {
        chunks
            .next()
            .await
            .map(|event| (Ok::<_, Infallible>(event), chunks))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

/// How long a stream may be silent before a comment shows that it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The chunks of one streamed reply.
struct Chunks<W> {
    choices: SelectAll<BoxStream<'static, (usize, TextEvent)>>,
    /// Which choices have had a chunk.
    begun: Vec<bool>,
    /// How many choices have not ended.
    open: usize,
    include_usage: bool,
    total: Total,
    /// Events made but not yet sent.
    ready: VecDeque<Event>,
    wording: W,
}

impl<W: Wording> Chunks<W> {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            let (index, event) = self.choices.next().await?;
            match event {
                TextEvent::Piece { text, .. } => self.news(index, What::GoesOn(text), None),
                TextEvent::Done(end) => self.end(index, &end),
                TextEvent::Failed(error) => {
                    // Dropping the other choices cancels them.
                    self.choices.clear();
                    self.ready
                        .push_back(json_event(&ApiError::from(error).into_body()));
                }
            }
        }
        self.ready.pop_front()
    }

    fn end(&mut self, index: usize, end: &Finished) {
        self.total.add(end);
        self.open -= 1;
        if !self.begun[index] {
            self.news(index, What::GoesOn(String::new()), None);
        }
        let is_last = self.open == 0;
        let performance = is_last.then_some(self.total.performance);
        self.news(
            index,
            What::Ends(end.reason),
            performance.filter(|_| !self.include_usage),
        );
        if !is_last {
            return;
        }
        if self.include_usage {
            let usage = Some(Some(self.total.usage));
            self.push_chunk(None, Tail { usage, performance });
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }

    fn news(&mut self, index: usize, what: What, performance: Option<Performance>) {
        let first = !std::mem::replace(&mut self.begun[index], true);
        let usage = self.include_usage.then_some(None);
        self.push_chunk(
            Some(News { index, first, what }),
            Tail { usage, performance },
        );
    }

    fn push_chunk(&mut self, news: Option<News>, tail: Tail) {
        let event = json_event(&self.wording.chunk(news, tail));
        self.ready.push_back(event);
    }
}

fn json_event(body: &impl Serialize) -> Event {
    Event::default()
        .json_data(body)
        .expect("wire types have string keys and no failing serialiser")
}

fn indexed(index: usize, choice: TextStream) -> BoxStream<'static, (usize, TextEvent)> {
    let events = stream::unfold(choice, |mut choice| async {
        choice.next().await.map(|event| (event, choice))
    });
    events.map(move |event| (index, event)).boxed()
}

/// The sums over all choices. They run side by side, so their rates add up.
#[derive(Default)]
struct Total {
    usage: Usage,
    performance: Performance,
}

impl Total {
    fn add(&mut self, end: &Finished) {
        let (sum, one) = (&mut self.performance, &end.performance);
        self.usage = self.usage.plus(end.usage);
        sum.prompt_tokens_per_second = merge(
            sum.prompt_tokens_per_second,
            one.prompt_tokens_per_second,
            |a, b| a + b,
        );
        sum.generation_tokens_per_second = merge(
            sum.generation_tokens_per_second,
            one.generation_tokens_per_second,
            |a, b| a + b,
        );
        sum.time_to_first_token_ms = merge(
            sum.time_to_first_token_ms,
            one.time_to_first_token_ms,
            f64::min,
        );
        sum.cached_tokens += one.cached_tokens;
    }
}

fn merge(a: Option<f64>, b: Option<f64>, with: fn(f64, f64) -> f64) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(with(a, b)),
        (a, b) => a.or(b),
    }
}
