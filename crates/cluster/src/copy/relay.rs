//! Handing on: a node that receives is at the same time the sender for the node behind it.
//!
//! A chunk goes on as soon as it is here, from memory; one that was here already is read from the disk if the next node
//! lacks it. A next node that fails takes nothing from this one: its failure is told at the end.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use shoal_fabric::channel::Channel;

use super::CopyReport;
use super::error::CopyError;
use super::manifest::Manifest;
use super::sender::{announce, origin, reason};
use super::wire::{
    FRAME_BYTES, Frame, Hashes, Message, Origin, SPAN_CHUNKS, Span, expect, out_of_turn, send,
};

/// The connection to the next node.
pub(super) struct Relay {
    channel: Channel,
    node: String,
    /// How many nodes are behind the next one.
    behind: usize,
    lanes: Vec<TcpStream>,
    shared: Arc<Shared>,
}

/// One lane to the next node, in the hands of the thread that receives on the lane of the same number.
pub(super) struct RelayLane {
    lane: TcpStream,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
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
        mut channel: Channel,
        node: String,
        behind: usize,
        lanes: Vec<TcpStream>,
        manifest: &Manifest,
    ) -> Result<Self, CopyError> {
        announce(&mut channel, &node, manifest, &[])?;
        Ok(Self {
            channel,
            node,
            behind,
            lanes,
            shared: Arc::default(),
        })
    }

    pub(super) fn take_lanes(&mut self) -> Vec<RelayLane> {
        let lanes = self.lanes.iter().map(|lane| {
            let lane = lane.try_clone().map_err(CopyError::Cut);
            let shared = Arc::clone(&self.shared);
            self.shared
                .note(lane)
                .map(|lane| RelayLane { lane, shared })
        });
        lanes.flatten().collect()
    }

    pub(super) fn ask(&mut self, span: Span) {
        if !self.shared.is_broken() {
            let asked = send(&mut self.channel, &Message::Prepare(span));
            self.shared.note(asked);
        }
    }

    pub(super) fn hear(&mut self, span: Span) {
        if self.shared.is_broken() {
            return;
        }
        let offer = match expect(&mut self.channel, &self.node) {
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

    /// Ends the connection without a word, as this end does not know any more what to say.
    pub(super) fn close(&self) {
        for lane in &self.lanes {
            let _ = lane.shutdown(Shutdown::Both);
        }
    }

    /// Returns the reports of the nodes behind, once they have everything.
    pub(super) fn finish(mut self) -> Vec<CopyReport> {
        let broken = self
            .shared
            .broken
            .lock()
            .expect("no panic under this lock")
            .take();
        let outcome = match broken {
            Some(error) => Err(reason(error, &mut self.channel, &self.node, &self.lanes)),
            None => send(&mut self.channel, &Message::Finish)
                .and_then(|()| expect(&mut self.channel, &self.node)),
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

impl RelayLane {
    /// Hands a chunk on. `buffer` has room for the header before the chunk, which `load` reads if it did not just arrive.
    pub(super) fn forward(
        &mut self,
        frame: Frame,
        buffer: &mut [u8],
        load: impl FnOnce(&mut [u8]) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        if self.shared.is_broken() {
            return Ok(());
        }
        let Some(origin) = self.origin(&frame) else {
            return Ok(());
        };
        let (header, payload) = buffer.split_at_mut(FRAME_BYTES);
        if origin == Origin::Sent && frame.origin != Origin::Sent {
            load(payload)?;
        }
        header.copy_from_slice(&Frame { origin, ..frame }.encode());
        let out = if origin == Origin::Sent {
            &*buffer
        } else {
            &buffer[..FRAME_BYTES]
        };
        let written = self.lane.write_all(out).map_err(CopyError::Cut);
        self.shared.note(written);
        Ok(())
    }

    fn origin(&self, frame: &Frame) -> Option<Origin> {
        let mut offers = self.shared.offers.lock().expect("no panic under this lock");
        let key = (frame.file, frame.chunk / SPAN_CHUNKS);
        let offered = offers.get_mut(&key)?;
        let origin = origin(&offered.hashes, frame.chunk % SPAN_CHUNKS, &frame.hash);
        offered.missing -= 1;
        if offered.missing == 0 {
            offers.remove(&key);
        }
        Some(origin)
    }
}

impl Drop for RelayLane {
    fn drop(&mut self) {
        let _ = self.lane.shutdown(Shutdown::Write);
    }
}
