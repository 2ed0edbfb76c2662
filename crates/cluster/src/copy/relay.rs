//! Handing on: a node that receives is at the same time the sender for the node behind it.
//!
//! A chunk goes on as soon as it is here, from memory; one that was here already is read from the disk if the next node
//! lacks it. A next node that fails takes nothing from this one: its failure is told at the end.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use shoal_fabric::lane::Lane;

use super::CopyReport;
use super::connect::Link;
use super::error::CopyError;
use super::limit::{self, Limit};
use super::manifest::Manifest;
use super::seal::{Hash, Seal};
use super::sender::{announce, is_something, origin, reason};
use super::talk::Talk;
use super::wire::{FRAME_BYTES, Frame, Hashes, Message, Origin, SPAN_CHUNKS, Span, out_of_turn};

/// The connection to the next node, whether there is one or not: what became of it is in the reports.
pub(super) struct Relay {
    talk: Option<Talk>,
    node: String,
    /// How many nodes are behind the next one.
    behind: usize,
    lanes: Vec<Lane>,
    shared: Arc<Shared>,
}

/// The lanes to the next node, in the hands of all threads that receive. There need not be as many of these.
pub(super) struct Onward {
    free: Mutex<VecDeque<Lane>>,
    freed: Condvar,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    limit: Option<Limit>,
    /// By file and number of the span.
    offers: Mutex<HashMap<(u32, u32), Offered>>,
    broken: Mutex<Option<CopyError>>,
}

/// What the next node has of a span.
struct Offered {
    /// Chunks that have not gone on yet.
    missing: u32,
    hashes: [Hashes; 2],
}

impl Shared {
    fn is_broken(&self) -> bool {
        self.broken
            .lock()
            .expect("no panic under this lock")
            .is_some()
    }

    fn note<T>(&self, outcome: Result<T, CopyError>) -> Option<T> {
        outcome
            .map_err(|error| {
                self.broken
                    .lock()
                    .expect("no panic under this lock")
                    .get_or_insert(error)
                    .to_string()
            })
            .ok()
    }
}

impl Relay {
    /// Tells the next node the manifest.
    pub(super) fn new(
        link: Result<Link, CopyError>,
        node: String,
        behind: usize,
        limit: Option<Limit>,
        manifest: &Manifest,
    ) -> Self {
        let shared = Shared {
            limit,
            ..Shared::default()
        };
        let announced = link.and_then(|link| {
            announce(&link.talk, manifest, &[])?;
            Ok((link.talk, link.lanes))
        });
        let (talk, lanes) = shared.note(announced).unzip();
        Self {
            talk,
            node,
            behind,
            lanes: lanes.unwrap_or_default(),
            shared: Arc::new(shared),
        }
    }

    pub(super) fn take_lanes(&mut self) -> Onward {
        Onward {
            free: Mutex::new(std::mem::take(&mut self.lanes).into()),
            freed: Condvar::new(),
            shared: Arc::clone(&self.shared),
        }
    }

    pub(super) fn ask(&self, span: Span) {
        if let Some(talk) = self.sound() {
            self.shared.note(talk.say(&Message::Prepare(span)));
        }
    }

    pub(super) fn hear(&self, span: Span) {
        let Some(talk) = self.sound() else {
            return;
        };
        let offer = match talk.hear() {
            Ok(Message::Offer { partial, old }) => Ok([partial, old]),
            Ok(_) => Err(out_of_turn()),
            Err(error) => Err(error),
        };
        if let Some(hashes) = self.shared.note(offer)
            && span.count > 0
        {
            let mut offers = self.shared.offers.lock().expect("no panic under this lock");
            let missing = span.count;
            offers.insert(
                (span.file, span.first / SPAN_CHUNKS),
                Offered { missing, hashes },
            );
        }
    }

    fn sound(&self) -> Option<&Talk> {
        self.talk.as_ref().filter(|_| !self.shared.is_broken())
    }

    /// Ends the connection without a word, as this end does not know any more what to say.
    pub(super) fn close(&self) {
        if let Some(talk) = &self.talk {
            talk.close_lanes();
        }
    }

    /// Returns the reports of the nodes behind, once they have everything.
    pub(super) fn finish(self) -> Vec<CopyReport> {
        let broken = self
            .shared
            .broken
            .lock()
            .expect("no panic under this lock")
            .take();
        let outcome = match (broken, &self.talk) {
            (Some(error), Some(talk)) => Err(reason(error, talk)),
            (Some(error), None) => Err(error),
            (None, Some(talk)) => talk.say(&Message::Finish).and_then(|()| talk.hear()),
            (None, None) => Err(out_of_turn()),
        };
        let error = match outcome {
            Ok(Message::Done(reports)) if reports.len() == self.behind + 1 => return reports,
            Ok(_) => out_of_turn().to_string(),
            Err(CopyError::Node { reason, .. }) => reason,
            Err(error) => error.to_string(),
        };
        let failed = |error: String| CopyReport {
            error: Some(error),
            ..CopyReport::default()
        };
        let mut reports = vec![failed(error)];
        let behind = format!(
            "not reached, as it was to get the files through {}",
            self.node
        );
        reports.resize(self.behind + 1, failed(behind));
        reports
    }
}

impl Onward {
    /// Hands a chunk on. `buffer` has room for the header before the chunk, which `load` reads if it did not just arrive.
    pub(super) fn forward(
        &self,
        frame: Frame,
        buffer: &mut [u8],
        load: impl FnOnce(&mut [u8]) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        if self.shared.is_broken() {
            return Ok(());
        }
        let Some(offer) = self.offered(&frame) else {
            return Ok(());
        };
        let (header, payload) = buffer.split_at_mut(FRAME_BYTES);
        let seal = match frame.seal {
            // It was new to this end, so it has just arrived; the next one has something to compare it with.
            Seal::Checksum(_) if is_something(&offer) => Seal::hash(payload),
            seal => seal,
        };
        let origin = origin(&offer, &seal);
        if origin == Origin::Sent && frame.origin != Origin::Sent {
            load(payload)?;
        }
        header.copy_from_slice(
            &Frame {
                origin,
                seal,
                ..frame
            }
            .encode(),
        );
        let out = if origin == Origin::Sent {
            &*buffer
        } else {
            &buffer[..FRAME_BYTES]
        };
        let mut lane = self.take_lane();
        let written = limit::write(self.shared.limit.as_ref(), &mut lane, out);
        self.shared.note(written.map_err(CopyError::Cut));
        self.free().push_back(lane);
        self.freed.notify_one();
        Ok(())
    }

    /// Waits for the lane that has been free for the longest.
    fn take_lane(&self) -> Lane {
        let none_is_free = |free: &mut VecDeque<Lane>| free.is_empty();
        let waited = self.freed.wait_while(self.free(), none_is_free);
        let mut free = waited.expect("no panic under this lock");
        free.pop_front().expect("one was waited for")
    }

    fn free(&self) -> MutexGuard<'_, VecDeque<Lane>> {
        self.free.lock().expect("no panic under this lock")
    }

    /// Returns what the next node has in the place of a chunk.
    fn offered(&self, frame: &Frame) -> Option<[Option<Hash>; 2]> {
        let mut offers = self.shared.offers.lock().expect("no panic under this lock");
        let key = (frame.file, frame.chunk / SPAN_CHUNKS);
        let offered = offers.get_mut(&key)?;
        let index = (frame.chunk % SPAN_CHUNKS) as usize;
        let offer = offered
            .hashes
            .each_ref()
            .map(|hashes| hashes.0.get(index).copied());
        offered.missing -= 1;
        if offered.missing == 0 {
            offers.remove(&key);
        }
        Some(offer)
    }
}

impl Drop for Onward {
    fn drop(&mut self) {
        self.free().drain(..).for_each(Lane::finish);
    }
}
