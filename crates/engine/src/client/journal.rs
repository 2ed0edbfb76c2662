//! The journal of open requests.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::request::{Event, Failure, Request};

/// Every open request, with all that is needed to take it up again: its prompt and parameters, its tokens so far and,
/// with their number, the position of its sampler.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: BTreeMap<u64, Entry>,
    last_id: u64,
}

/// A token more than a request asked for.
#[derive(Debug)]
pub(super) struct Surplus;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) request: Request,
    pub(super) tokens: Vec<u32>,
    pub(super) submitted: Instant,
    /// Whether the cell works on it.
    pub(super) started: bool,
    events: async_channel::Sender<Event>,
}

impl Journal {
    /// Opens a request; returns its number, which no other ever has, and where its events come out.
    pub(super) fn open(
        &mut self,
        request: Request,
        now: Instant,
    ) -> (u64, async_channel::Receiver<Event>) {
        // Not `bounded`, which would reserve room for the whole reply now: the bound is held by `append` and `close`.
        let (events, stream) = async_channel::unbounded();
        self.last_id += 1;
        let entry = Entry {
            request,
            tokens: Vec::new(),
            submitted: now,
            started: false,
            events,
        };
        self.entries.insert(self.last_id, entry);
        (self.last_id, stream)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn started(&self) -> usize {
        self.entries.values().filter(|entry| entry.started).count()
    }

    /// Notes that the cell works on a request. One that is not open was cancelled meanwhile.
    pub(super) fn start(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.started = true;
        }
    }

    /// Appends a token to an open request and hands it to the stream; says whether the request is open.
    pub(super) fn append(&mut self, id: u64, token: u32) -> Result<bool, Surplus> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(false);
        };
        if entry.tokens.len() >= entry.request.max_tokens as usize {
            return Err(Surplus);
        }
        entry.tokens.push(token);
        // It fails when the stream is being dropped, which cancels the request in a moment.
        let _ = entry.events.try_send(Event::Token(token));
        Ok(true)
    }

    /// Ends an open request with its last event.
    pub(super) fn close(&mut self, id: u64, last: Event) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let _ = entry.events.try_send(last);
        Some(entry)
    }

    /// Forgets a request whose stream is gone; says whether it was open.
    pub(super) fn cancel(&mut self, id: u64) -> bool {
        self.entries.remove(&id).is_some()
    }

    /// Ends every open request with the same failure; returns how many there were.
    pub(super) fn fail_all(&mut self, failure: &Failure) -> usize {
        let entries = std::mem::take(&mut self.entries);
        for entry in entries.values() {
            let _ = entry.events.try_send(Event::Failed(failure.clone()));
        }
        entries.len()
    }
}
