//! The stream of one request's events.

use std::sync::Arc;

use crate::client::Shared;
use crate::request::Event;

/// The events of one request, in order. Dropping it before its end cancels the request.
#[derive(Debug)]
pub struct TokenStream {
    id: u64,
    /// Never full: the client puts in at most the tokens that were asked for, and one end.
    events: async_channel::Receiver<Event>,
    shared: Arc<Shared>,
    ended: bool,
}

impl TokenStream {
    pub(super) fn new(
        id: u64,
        events: async_channel::Receiver<Event>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id,
            events,
            shared,
            ended: false,
        }
    }

    /// Returns the request's number, for logs.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the next event; `None` after the last one. Dropping the call loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await.ok();
        self.note(event)
    }

    /// Waits for the next event on this thread; `None` after the last one.
    pub fn next_blocking(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv_blocking().ok();
        self.note(event)
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        self.ended = !matches!(event, Some(Event::Token(_)));
        event
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.cancel(self.id);
        }
    }
}
