//! The receiving end: says what it has, writes what it lacks, hands it on to the next node if there is one.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::lane::Lane;

use super::error::CopyError;
use super::manifest::{CHUNK_BYTES, ENTRIES_MAX, Entry, Manifest};
use super::partial::{Outcome, Partial};
use super::relay::{Onward, Relay};
use super::talk::Talk;
use super::tree::Tree;
use super::wire::{
    Destination, FRAME_BYTES, Frame, Hashes, Message, Origin, SPAN_CHUNKS, Span, out_of_turn,
};
use super::{CopyReport, OnProgress, Progress};

/// Where what is received goes.
pub(super) struct Receiving<'a> {
    /// What was asked for; a sender that was not asked for anything chooses the names itself.
    pub(super) names: Option<HashSet<String>>,
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
    files: usize,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    open: HashMap<u32, Arc<Partial>>,
    done: HashSet<u32>,
    lanes_open: usize,
    done_bytes: u64,
    report: CopyReport,
    failed: Option<CopyError>,
    failed_at: Option<Instant>,
}

/// Receives everything. `relay` connects to the next node once the manifest is known.
pub(super) fn run(
    talk: &Talk,
    lanes: Vec<Lane>,
    receiving: &Receiving<'_>,
    relay: impl FnOnce(&Manifest) -> Option<Relay>,
) -> Result<Received, CopyError> {
    converse(talk, lanes, receiving, relay).inspect_err(|error| talk.hang_up(error))
}

fn converse(
    talk: &Talk,
    lanes: Vec<Lane>,
    receiving: &Receiving<'_>,
    relay: impl FnOnce(&Manifest) -> Option<Relay>,
) -> Result<Received, CopyError> {
    let (manifest, left_out) = listen(talk, receiving.names.as_ref())?;
    let tree = Tree::open(receiving.base, receiving.destination, &manifest)?;
    tree.check_space(&manifest, receiving.free_bytes)?;
    tree.make_folders(&manifest)?;
    let mut relay = relay(&manifest);
    talk.say(&Message::Ready)?;
    let state = State {
        open: HashMap::new(),
        done: HashSet::new(),
        lanes_open: lanes.len(),
        done_bytes: 0,
        report: CopyReport::default(),
        failed: None,
        failed_at: None,
    };
    let reception = Reception {
        receiving,
        manifest: &manifest,
        tree,
        files: manifest.files().count(),
        state: Mutex::new(state),
        moved: Condvar::new(),
    };
    let onward = relay.as_mut().map(Relay::take_lanes).map(Arc::new);
    thread::scope(|scope| {
        for lane in lanes {
            let (reception, onward) = (&reception, onward.clone());
            scope.spawn(move || reception.work(talk, lane, onward));
        }
        // They end when the last one that hands on is done.
        drop(onward);
        let obeyed = reception.obey(talk, relay.as_ref());
        if obeyed.is_err() {
            talk.close_lanes();
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
    talk.say(&Message::Done(reports.clone()))?;
    // A sign of life that comes after this end has gone would take the news back.
    talk.hear_out();
    Ok(Received {
        reports,
        left_out,
        total_bytes: manifest.bytes(),
    })
}

fn listen(
    talk: &Talk,
    names: Option<&HashSet<String>>,
) -> Result<(Manifest, Vec<String>), CopyError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        match talk.hear()? {
            Message::Entries(more) if entries.len() + more.len() <= ENTRIES_MAX => {
                let first = |entry: &Entry| entry.path.split_first().0.to_owned();
                if let Some(names) = names
                    && let Some(entry) = more.iter().find(|it| !names.contains(&first(it)))
                {
                    let reason = format!("{} was not asked for", entry.path);
                    return Err(CopyError::Protocol(reason));
                }
                entries.extend(more);
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

    /// Answers the sender until it has sent everything.
    fn obey(&self, talk: &Talk, relay: Option<&Relay>) -> Result<(), CopyError> {
        loop {
            let heard = self.hear(talk);
            let failed = self.state().failed.take();
            match (failed, heard) {
                // Where a lane was cut the sender knows why.
                (Some(CopyError::Cut(_)), Err(told)) => return Err(told),
                (Some(error @ CopyError::Cut(_)), Ok(_)) => {
                    return Err(talk.hear_out().unwrap_or(error));
                }
                (Some(error), _) => return Err(error),
                (None, heard) => match heard? {
                    Message::Prepare(span) => {
                        // The next node hashes at the same time.
                        relay.inspect(|relay| relay.ask(span));
                        let [partial, old] = self.prepare(span)?;
                        relay.inspect(|relay| relay.hear(span));
                        talk.say(&Message::Offer { partial, old })?;
                    }
                    Message::Finish => return self.finish(talk),
                    _ => return Err(out_of_turn()),
                },
            }
        }
    }

    /// Waits for the sender's next message. One whose lane was cut without a word may not know for as long as its system sends
    /// again and again what nobody answers.
    fn hear(&self, talk: &Talk) -> Result<Message, CopyError> {
        loop {
            if let Some(heard) = talk.hear_for(LOOK_EVERY) {
                return heard;
            }
            let mut state = self.state();
            let is_late = |at: Instant| at.elapsed() > NOTICE_TIME_MAX;
            // It has had its time to say why.
            if state.failed_at.is_some_and(is_late)
                && let Some(error) = state.failed.take()
            {
                return Err(error);
            }
        }
    }

    fn prepare(&self, span: Span) -> Result<[Hashes; 2], CopyError> {
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
            let state = self.wait_for_room();
            if state.open.contains_key(&span.file) || state.done.contains(&span.file) {
                return Err(protocol("a file that was sent before"));
            }
            drop(state);
            let partial = self.tree.partial(entry)?;
            if span.count == 0 {
                self.finish_file(span.file, entry, &partial)?;
                return Ok(Default::default());
            }
            self.state().open.insert(span.file, Arc::new(partial));
        }
        let partial = self.state().open.get(&span.file).cloned();
        partial
            .ok_or_else(|| protocol("a file that is not open"))?
            .offer(entry, span)
    }

    /// Waits until another file may be open. Those that are need no answer any more, so that the lanes finish them.
    fn wait_for_room(&self) -> MutexGuard<'_, State> {
        let full = |state: &mut State| {
            state.open.len() >= OPEN_MAX && state.lanes_open > 0 && state.failed.is_none()
        };
        let waited = self.moved.wait_while(self.state(), full);
        waited.expect("no panic under this lock")
    }

    fn finish_file(&self, file: u32, entry: &Entry, partial: &Partial) -> Result<(), CopyError> {
        let outcome = partial.finish(entry, self.receiving.destination.verify)?;
        let mut state = self.state();
        match outcome {
            Outcome::Written => state.report.files_written += 1,
            Outcome::Unchanged => state.report.files_unchanged += 1,
        }
        state.open.remove(&file);
        state.done.insert(file);
        self.moved.notify_all();
        Ok(())
    }

    fn finish(&self, talk: &Talk) -> Result<(), CopyError> {
        let under_way = |state: &mut State| {
            state.done.len() < self.files && state.lanes_open > 0 && state.failed.is_none()
        };
        let waited = self.moved.wait_while(self.state(), under_way);
        let mut state = waited.expect("no panic under this lock");
        let ended = || CopyError::Protocol("it ended before all was sent".to_owned());
        let failed = state.failed.take();
        let failed = failed.or_else(|| (state.done.len() < self.files).then(ended));
        drop(state);
        match failed {
            Some(error @ (CopyError::Cut(_) | CopyError::Protocol(_))) => {
                Err(talk.hear_out().unwrap_or(error))
            }
            Some(error) => Err(error),
            None => self.tree.finish(self.manifest),
        }
    }

    fn work(&self, talk: &Talk, mut lane: Lane, onward: Option<Arc<Onward>>) {
        let mut buffer = vec![0; FRAME_BYTES + CHUNK_BYTES];
        let outcome = loop {
            match Frame::read(&mut lane) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame, &mut lane, onward.as_deref(), &mut buffer)
                    {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let mut state = self.state();
        state.lanes_open -= 1;
        let Err(error) = outcome else {
            drop(state);
            return self.moved.notify_all();
        };
        let told = (!matches!(error, CopyError::Cut(_))).then(|| error.to_string());
        state.failed.get_or_insert(error);
        state.failed_at.get_or_insert_with(Instant::now);
        drop(state);
        self.moved.notify_all();
        // A sender whose lane is full does not notice that it was closed. Said without the lock, for it may take a while.
        if let Some(reason) = told {
            let _it_may_be_gone = talk.say(&Message::Failed { reason });
        }
        // The sender notices, or has heard why; that wakes whoever answers.
        lane.close();
    }

    fn take(
        &self,
        frame: Frame,
        lane: &mut Lane,
        onward: Option<&Onward>,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        let Frame {
            file,
            chunk,
            origin,
            seal,
            ..
        } = frame;
        let unexpected = || CopyError::Protocol("a chunk of a file that is not open".to_owned());
        let entry = self.manifest.file(file).ok_or_else(unexpected)?;
        let partial = self.state().open.get(&file).cloned();
        let partial = partial.ok_or_else(unexpected)?;
        partial.claim(entry, chunk, origin, seal)?;
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
            if !seal.fits(payload) {
                return Err(CopyError::Damaged {
                    path: entry.path.to_string(),
                    chunk,
                });
            }
            partial.write(entry, chunk, payload)?;
        }
        if let Some(onward) = onward {
            onward.forward(frame, &mut buffer[..FRAME_BYTES + bytes], |into| {
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
            self.finish_file(file, entry, &partial)?;
        }
        Ok(())
    }
}

/// Files received at once. Each has up to three descriptors: what arrives, what it replaces, the folder.
const OPEN_MAX: usize = 32;
/// How often whoever waits for the sender looks after the lanes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a sender may take to notice that a lane was cut: it knows why, and should be the one to say so.
const NOTICE_TIME_MAX: Duration = Duration::from_secs(10);
