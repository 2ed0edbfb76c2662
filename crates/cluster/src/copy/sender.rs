//! The sending end: tells the manifest, hears what the other end has, and sends the rest over all lanes.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::{thread, vec};

use shoal_fabric::lane::Lane;

use super::error::CopyError;
use super::limit::{self, Limit};
use super::manifest::{CHUNK_BYTES, Manifest};
use super::seal::{Hash, Seal};
use super::source::Source;
use super::talk::Talk;
use super::wire::{
    ENTRIES_PER_MESSAGE, FRAME_BYTES, Frame, Message, Origin, SPAN_CHUNKS, Span, out_of_turn,
};
use super::{CopyReport, OnProgress, Progress};

/// What is sent, and how.
pub(super) struct Sending<'a> {
    pub(super) source: &'a Source,
    pub(super) limit: Option<Limit>,
    pub(super) on_progress: OnProgress<'a>,
}

/// Chunks to send, with what the receiver has of them.
struct Work {
    span: Span,
    offer: [vec::IntoIter<Hash>; 2],
}

struct Line {
    waiting: VecDeque<Work>,
    /// Nothing follows what is waiting.
    closed: bool,
    failed: Option<CopyError>,
}

struct Crew<'a> {
    sending: &'a Sending<'a>,
    line: Mutex<Line>,
    moved: Condvar,
    done_bytes: AtomicU64,
}

/// Sends everything; returns what each receiving node says of it.
pub(super) fn run(
    talk: &Talk,
    lanes: Vec<Lane>,
    sending: &Sending<'_>,
) -> Result<Vec<CopyReport>, CopyError> {
    converse(talk, lanes, sending).inspect_err(|error| talk.hang_up(error))
}

/// Tells the manifest and waits until the receiver is ready for its files.
pub(super) fn announce(
    talk: &Talk,
    manifest: &Manifest,
    left_out: &[String],
) -> Result<(), CopyError> {
    for entries in manifest.entries().chunks(ENTRIES_PER_MESSAGE) {
        talk.say(&Message::Entries(entries.to_vec()))?;
    }
    let mut named: Vec<_> = left_out.iter().take(ENTRIES_PER_MESSAGE).cloned().collect();
    let unnamed = left_out.len() - named.len();
    if unnamed > 0 {
        named.push(format!("{unnamed} more"));
    }
    talk.say(&Message::EntriesEnd { left_out: named })?;
    match talk.hear()? {
        Message::Ready => Ok(()),
        _ => Err(out_of_turn()),
    }
}

/// Says whether the receiver has anything in the place of a chunk.
pub(super) fn is_something(offer: &[Option<Hash>; 2]) -> bool {
    offer.iter().any(Option::is_some)
}

/// Decides where the receiver gets a chunk from.
pub(super) fn origin(offer: &[Option<Hash>; 2], seal: &Seal) -> Origin {
    let is = |hash: Option<Hash>| hash.map(Seal::Hash).as_ref() == Some(seal);
    let [partial, old] = *offer;
    match (is(partial), is(old)) {
        // First the one that needs no copying, if the whole file is as it was.
        (_, true) => Origin::Old,
        (true, false) => Origin::Partial,
        (false, false) => Origin::Sent,
    }
}

/// Where a lane was cut the receiver knows why, and says so when it is told that this was all.
pub(super) fn reason(error: CopyError, talk: &Talk) -> CopyError {
    if !matches!(error, CopyError::Cut(_)) {
        return error;
    }
    talk.close_lanes();
    // It may have said so and left already.
    let _nobody_may_hear = talk.say(&Message::Finish);
    talk.hear_out().unwrap_or(error)
}

fn converse(
    talk: &Talk,
    lanes: Vec<Lane>,
    sending: &Sending<'_>,
) -> Result<Vec<CopyReport>, CopyError> {
    announce(talk, &sending.source.manifest, &sending.source.left_out)?;
    let crew = Crew {
        sending,
        line: Mutex::new(Line {
            waiting: VecDeque::new(),
            closed: false,
            failed: None,
        }),
        moved: Condvar::new(),
        done_bytes: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for lane in lanes {
            let crew = &crew;
            scope.spawn(move || crew.work(lane));
        }
        let fed = crew.feed(talk);
        if fed.is_err() {
            // Lanes may be held up by a receiver that has stopped.
            talk.close_lanes();
        }
        let mut line = crew.line();
        line.closed = true;
        if fed.is_err() {
            line.waiting.clear();
        }
        drop(line);
        crew.moved.notify_all();
        fed
    })?;
    let failed = crew.line().failed.take();
    if let Some(error) = failed {
        return Err(reason(error, talk));
    }
    talk.say(&Message::Finish)?;
    match talk.hear()? {
        Message::Done(reports) => Ok(reports),
        _ => Err(out_of_turn()),
    }
}

impl Crew<'_> {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("no panic under this lock")
    }

    /// Asks ahead what the receiver has, and lines the answers up for the lanes.
    fn feed(&self, talk: &Talk) -> Result<(), CopyError> {
        let mut spans = spans(&self.sending.source.manifest);
        let mut asked = VecDeque::new();
        loop {
            while asked.len() < ASKED_MAX
                && let Some(span) = spans.next()
            {
                talk.say(&Message::Prepare(span))?;
                asked.push_back(span);
            }
            let Some(span) = asked.pop_front() else {
                return Ok(());
            };
            let Message::Offer { partial, old } = talk.hear()? else {
                return Err(out_of_turn());
            };
            let mut line = self.line();
            while line.waiting.len() >= WAITING_MAX && line.failed.is_none() {
                line = self.moved.wait(line).expect("no panic under this lock");
            }
            if let Some(error) = line.failed.take() {
                drop(line);
                return Err(reason(error, talk));
            }
            if span.count > 0 {
                line.waiting.push_back(Work {
                    span,
                    offer: [partial, old].map(|hashes| hashes.0.into_iter()),
                });
                self.moved.notify_all();
            }
        }
    }

    fn work(&self, mut lane: Lane) {
        let mut buffer = vec![0; FRAME_BYTES + CHUNK_BYTES];
        let mut open: Option<(u32, File)> = None;
        while let Some((span, offer)) = self.next() {
            if let Err(error) = self.send_chunk(&mut lane, span, &offer, &mut open, &mut buffer) {
                self.line().failed.get_or_insert(error);
                self.moved.notify_all();
                // The receiver may be waiting for what this lane was to bring.
                return lane.close();
            }
        }
        lane.finish();
    }

    /// Returns the next chunk, as a span of one, and what is offered for it.
    fn next(&self) -> Option<(Span, [Option<Hash>; 2])> {
        let mut line = self.line();
        loop {
            if line.failed.is_some() {
                return None;
            }
            if let Some(work) = line.waiting.front_mut() {
                let span = Span {
                    count: 1,
                    ..work.span
                };
                let offer = work.offer.each_mut().map(|hashes| hashes.next());
                work.span.first += 1;
                work.span.count -= 1;
                if work.span.count == 0 {
                    line.waiting.pop_front();
                    self.moved.notify_all();
                }
                return Some((span, offer));
            }
            if line.closed {
                return None;
            }
            line = self.moved.wait(line).expect("no panic under this lock");
        }
    }

    fn send_chunk(
        &self,
        lane: &mut Lane,
        span: Span,
        offer: &[Option<Hash>; 2],
        open: &mut Option<(u32, File)>,
        buffer: &mut [u8],
    ) -> Result<(), CopyError> {
        let Span {
            file: number,
            first: chunk,
            ..
        } = span;
        let source = self.sending.source;
        let entry = source.manifest.file(number).expect("spans are of files");
        let file = match open {
            Some((known, file)) if *known == number => file,
            _ => &mut open.insert((number, source.open(number)?)).1,
        };
        let bytes = entry.chunk_bytes(chunk);
        let (header, payload) = buffer[..FRAME_BYTES + bytes].split_at_mut(FRAME_BYTES);
        source.read(file, number, chunk, payload)?;
        let seal = match is_something(offer) {
            true => Seal::hash(payload),
            false => Seal::checksum(payload),
        };
        let frame = Frame {
            origin: origin(offer, &seal),
            file: number,
            chunk,
            bytes: bytes as u32,
            seal,
        };
        header.copy_from_slice(&frame.encode());
        let out = match frame.origin {
            Origin::Sent => &buffer[..FRAME_BYTES + bytes],
            Origin::Partial | Origin::Old => &buffer[..FRAME_BYTES],
        };
        limit::write(self.sending.limit.as_ref(), lane, out).map_err(CopyError::Cut)?;
        let done_bytes = self.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        (self.sending.on_progress)(Progress {
            done_bytes,
            total_bytes: source.manifest.bytes(),
        });
        Ok(())
    }
}

/// Cuts all files into spans, in their order; an empty file is a span of nothing.
pub(super) fn spans(manifest: &Manifest) -> impl Iterator<Item = Span> {
    manifest.files().flat_map(|(file, entry)| {
        let chunks = entry.chunks();
        (0..chunks.max(1))
            .step_by(SPAN_CHUNKS as usize)
            .map(move |first| Span {
                file,
                first,
                count: SPAN_CHUNKS.min(chunks - first),
            })
    })
}

/// Spans asked for ahead, so that small files do not wait for a round trip each.
const ASKED_MAX: usize = 16;
/// Spans that wait for a lane.
const WAITING_MAX: usize = 16;
