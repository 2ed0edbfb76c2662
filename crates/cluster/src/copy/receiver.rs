//! The receiving end: says what it has, writes what it lacks, hands it on to the next node if there is one.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use shoal_fabric::channel::Channel;

use super::error::CopyError;
use super::manifest::{CHUNK_BYTES, ENTRIES_MAX, Entry, Manifest};
use super::partial::{Outcome, Partial};
use super::relay::{Relay, RelayLane};
use super::sender::hang_up;
use super::tree::Tree;
use super::wire::{
    Destination, FRAME_BYTES, Frame, Message, Origin, SPAN_CHUNKS, Span, expect, out_of_turn, send,
};
use super::{CopyReport, OnProgress, Progress};

/// Where what is received goes.
pub(super) struct Receiving<'a> {
    pub(super) base: &'a Path,
    pub(super) destination: &'a Destination,
    pub(super) free_bytes: fn(&Path) -> io::Result<u64>,
    pub(super) on_progress: OnProgress<'a>,
}

/// What has been received.
pub(super) struct Received {
    /// This end's, and those of the nodes behind it.
    pub(super) reports: Vec<CopyReport>,
    pub(super) left_out: Vec<String>,
    pub(super) total_bytes: u64,
}

struct Reception<'a> {
    receiving: &'a Receiving<'a>,
    manifest: &'a Manifest,
    tree: Tree,
    open: Mutex<HashMap<u32, Arc<Partial>>>,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    files_missing: usize,
    lanes_open: usize,
    done_bytes: u64,
    report: CopyReport,
    failed: Option<CopyError>,
}

/// Receives everything. `relay` connects to the next node once the manifest is known.
pub(super) fn run(
    channel: &mut Channel,
    peer: &str,
    lanes: &[TcpStream],
    receiving: &Receiving<'_>,
    relay: impl FnOnce(&Manifest) -> Result<Option<Relay>, CopyError>,
) -> Result<Received, CopyError> {
    let outcome = converse(channel, peer, lanes, receiving, relay);
    if let Err(error) = &outcome {
        hang_up(channel, lanes, error);
    }
    outcome
}

fn converse(
    channel: &mut Channel,
    peer: &str,
    lanes: &[TcpStream],
    receiving: &Receiving<'_>,
    relay: impl FnOnce(&Manifest) -> Result<Option<Relay>, CopyError>,
) -> Result<Received, CopyError> {
    let (manifest, left_out) = listen(channel, peer)?;
    let tree = Tree::open(receiving.base, receiving.destination, &manifest)?;
    tree.check_space(&manifest, receiving.free_bytes)?;
    tree.make_folders(&manifest)?;
    let mut relay = relay(&manifest)?;
    send(channel, &Message::Ready)?;
    let state = State {
        files_missing: manifest.files().count(),
        lanes_open: lanes.len(),
        done_bytes: 0,
        report: CopyReport::default(),
        failed: None,
    };
    let reception = Reception {
        receiving,
        manifest: &manifest,
        tree,
        open: Mutex::default(),
        state: Mutex::new(state),
        moved: Condvar::new(),
    };
    let relay_lanes = relay.as_mut().map_or_else(Vec::new, Relay::take_lanes);
    let mut relay_lanes = relay_lanes.into_iter();
    thread::scope(|scope| {
        for lane in lanes {
            let relay_lane = relay_lanes.next();
            let reception = &reception;
            scope.spawn(move || reception.work(lane, relay_lane));
        }
        let obeyed = reception.obey(channel, peer, &mut relay);
        if obeyed.is_err() {
            for lane in lanes {
                let _ = lane.shutdown(Shutdown::Both);
            }
            if let Some(relay) = &relay {
                relay.close();
            }
        }
        obeyed
    })?;
    let mut reports = vec![std::mem::take(&mut reception.state().report)];
    if let Some(relay) = relay {
        reports.extend(relay.finish());
    }
    send(channel, &Message::Done(reports.clone()))?;
    Ok(Received {
        reports,
        left_out,
        total_bytes: manifest.bytes(),
    })
}

fn listen(channel: &mut Channel, peer: &str) -> Result<(Manifest, Vec<String>), CopyError> {
    let mut entries = Vec::new();
    loop {
        match expect(channel, peer)? {
            Message::Entries(more) if entries.len() + more.len() <= ENTRIES_MAX => {
                entries.extend(more)
            }
            Message::EntriesEnd { left_out } => return Ok((Manifest::new(entries)?, left_out)),
            _ => return Err(out_of_turn()),
        }
    }
}

impl Reception<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u32, Arc<Partial>>> {
        self.open.lock().expect("no panic under this lock")
    }

    /// Answers the sender until it has sent everything.
    fn obey(
        &self,
        channel: &mut Channel,
        peer: &str,
        relay: &mut Option<Relay>,
    ) -> Result<(), CopyError> {
        loop {
            let heard = expect(channel, peer);
            if let Some(error) = self.state().failed.take() {
                return Err(error);
            }
            match heard? {
                Message::Prepare(span) => {
                    // The next node hashes at the same time.
                    if let Some(relay) = relay {
                        relay.ask(span);
                    }
                    let [partial, old] = self.prepare(span)?;
                    if let Some(relay) = relay {
                        relay.hear(span);
                    }
                    send(channel, &Message::Offer { partial, old })?;
                }
                Message::Finish => return self.finish(),
                _ => return Err(out_of_turn()),
            }
        }
    }

    fn prepare(&self, span: Span) -> Result<[super::wire::Hashes; 2], CopyError> {
        let protocol = |reason: &str| CopyError::Protocol(format!("{reason} ({span:?})"));
        let entry = self
            .manifest
            .file(span.file)
            .ok_or_else(|| protocol("no such file"))?;
        let expected = entry
            .chunks()
            .checked_sub(span.first)
            .map(|left| left.min(SPAN_CHUNKS));
        if expected != Some(span.count) || !span.first.is_multiple_of(SPAN_CHUNKS) {
            return Err(protocol("no such chunks"));
        }
        if span.first == 0 {
            let mut open = self.open();
            if open.len() >= OPEN_MAX || open.contains_key(&span.file) {
                return Err(protocol("a file too many"));
            }
            let partial = self.tree.partial(entry)?;
            if span.count == 0 {
                drop(open);
                self.finish_file(entry, &partial)?;
                return Ok(Default::default());
            }
            open.insert(span.file, Arc::new(partial));
        }
        let partial = self.open().get(&span.file).cloned();
        partial
            .ok_or_else(|| protocol("a file that is not open"))?
            .offer(entry, span)
    }

    fn finish_file(&self, entry: &Entry, partial: &Partial) -> Result<(), CopyError> {
        let outcome = partial.finish(entry, self.receiving.destination.verify)?;
        let mut state = self.state();
        match outcome {
            Outcome::Written => state.report.files_written += 1,
            Outcome::Unchanged => state.report.files_unchanged += 1,
        }
        // A file that is sent twice is caught before: its partial file is not there any more.
        state.files_missing = state.files_missing.saturating_sub(1);
        self.moved.notify_all();
        Ok(())
    }

    fn finish(&self) -> Result<(), CopyError> {
        let mut state = self.state();
        while state.files_missing > 0 && state.lanes_open > 0 && state.failed.is_none() {
            state = self.moved.wait(state).expect("no panic under this lock");
        }
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if state.files_missing > 0 {
            return Err(CopyError::Protocol(
                "it ended before all was sent".to_owned(),
            ));
        }
        drop(state);
        self.tree.finish(self.manifest)
    }

    fn work(&self, mut lane: &TcpStream, mut relay: Option<RelayLane>) {
        let mut buffer = vec![0; FRAME_BYTES + CHUNK_BYTES];
        let outcome = loop {
            match Frame::read(&mut lane) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame, lane, &mut relay, &mut buffer) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let mut state = self.state();
        state.lanes_open -= 1;
        if let Err(error) = outcome {
            state.failed.get_or_insert(error);
            // The sender notices and asks why; that wakes whoever answers.
            let _ = lane.shutdown(Shutdown::Both);
        }
        self.moved.notify_all();
    }

    fn take(
        &self,
        frame: Frame,
        mut lane: &TcpStream,
        relay: &mut Option<RelayLane>,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        let Frame {
            file,
            chunk,
            origin,
            hash,
            ..
        } = frame;
        let unexpected = || CopyError::Protocol("a chunk of a file that is not open".to_owned());
        let entry = self.manifest.file(file).ok_or_else(unexpected)?;
        let partial = self.open().get(&file).cloned().ok_or_else(unexpected)?;
        partial.claim(entry, chunk, origin, hash)?;
        let bytes = entry.chunk_bytes(chunk);
        if frame.bytes as usize != bytes {
            return Err(CopyError::Protocol(format!(
                "{}: a chunk of {} bytes",
                entry.path, frame.bytes
            )));
        }
        let payload = &mut buffer[FRAME_BYTES..FRAME_BYTES + bytes];
        if origin == Origin::Sent {
            lane.read_exact(payload).map_err(CopyError::Cut)?;
            if hash != *blake3::hash(payload).as_bytes() {
                return Err(CopyError::Damaged {
                    path: entry.path.to_string(),
                    chunk,
                });
            }
            partial.write(entry, chunk, payload)?;
        }
        if let Some(relay) = relay {
            relay.forward(frame, &mut buffer[..FRAME_BYTES + bytes], |into| {
                partial.read(origin, entry, chunk, into)
            })?;
        }
        let mut state = self.state();
        state.done_bytes += bytes as u64;
        if origin == Origin::Sent {
            state.report.bytes_received += bytes as u64;
        }
        let done_bytes = state.done_bytes;
        drop(state);
        (self.receiving.on_progress)(Progress {
            done_bytes,
            total_bytes: self.manifest.bytes(),
        });
        if partial.complete() {
            self.open().remove(&file);
            self.finish_file(entry, &partial)?;
        }
        Ok(())
    }
}

/// Files received at once; more than a sender of ours has under way.
const OPEN_MAX: usize = 128;
