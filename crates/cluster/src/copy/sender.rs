//! The sending end: tells the manifest, hears what the other end has, and sends the rest over all lanes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::channel::Channel;

use super::error::CopyError;
use super::limit::{Limit, PIECE_BYTES};
use super::manifest::{CHUNK_BYTES, Manifest};
use super::source::Source;
use super::wire::{
    ENTRIES_PER_MESSAGE, FRAME_BYTES, Frame, Hash, Hashes, Message, Origin, SPAN_CHUNKS, Span,
    expect, heard, out_of_turn, send,
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
    offer: [Hashes; 2],
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
    channel: &mut Channel,
    peer: &str,
    lanes: &[TcpStream],
    sending: &Sending<'_>,
) -> Result<Vec<CopyReport>, CopyError> {
    let outcome = converse(channel, peer, lanes, sending);
    if let Err(error) = &outcome {
        hang_up(channel, lanes, error);
    }
    outcome
}

/// Tells the other end why this one stops, and hears it out: closing at once could take the news back.
pub(super) fn hang_up(channel: &mut Channel, lanes: &[TcpStream], error: &CopyError) {
    for lane in lanes {
        let _ = lane.shutdown(Shutdown::Both);
    }
    if matches!(error, CopyError::Node { .. } | CopyError::Connection(_)) {
        return;
    }
    let reason = error.to_string();
    let until = Instant::now() + FAREWELL_TIME_MAX;
    if send(channel, &Message::Failed { reason }).is_ok() {
        while channel.recv(Some(until)).is_ok() {}
    }
}

/// Tells the manifest and waits until the receiver is ready for its files.
pub(super) fn announce(
    channel: &mut Channel,
    peer: &str,
    manifest: &Manifest,
    left_out: &[String],
) -> Result<(), CopyError> {
    for entries in manifest.entries().chunks(ENTRIES_PER_MESSAGE) {
        send(channel, &Message::Entries(entries.to_vec()))?;
    }
    let left_out = left_out.iter().take(ENTRIES_PER_MESSAGE).cloned().collect();
    send(channel, &Message::EntriesEnd { left_out })?;
    match expect(channel, peer)? {
        Message::Ready => Ok(()),
        _ => Err(out_of_turn()),
    }
}

/// Decides where the receiver gets a chunk from.
pub(super) fn origin(offer: &[Hashes; 2], index: u32, hash: &Hash) -> Origin {
    let [partial, old] = offer;
    let is = |hashes: &Hashes| hashes.0.get(index as usize) == Some(hash);
    match (is(partial), is(old)) {
        // First the one that needs no copying, if the whole file is as it was.
        (_, true) => Origin::Old,
        (true, false) => Origin::Partial,
        (false, false) => Origin::Sent,
    }
}

/// Where a lane was cut the receiver knows why, and says so when it is told that this was all.
pub(super) fn reason(
    error: CopyError,
    channel: &mut Channel,
    peer: &str,
    lanes: &[TcpStream],
) -> CopyError {
    if !matches!(error, CopyError::Cut(_)) {
        return error;
    }
    for lane in lanes {
        let _ = lane.shutdown(Shutdown::Both);
    }
    let until = Instant::now() + FAREWELL_TIME_MAX;
    if send(channel, &Message::Finish).is_ok() {
        while let Ok(bytes) = channel.recv(Some(until)) {
            if let Err(told) = heard(&bytes, peer) {
                return told;
            }
        }
    }
    error
}

fn converse(
    channel: &mut Channel,
    peer: &str,
    lanes: &[TcpStream],
    sending: &Sending<'_>,
) -> Result<Vec<CopyReport>, CopyError> {
    announce(
        channel,
        peer,
        &sending.source.manifest,
        &sending.source.left_out,
    )?;
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
            scope.spawn(|| crew.work(lane));
        }
        let fed = crew.feed(channel, peer, lanes);
        if fed.is_err() {
            // Lanes may be held up by a receiver that has stopped.
            for lane in lanes {
                let _ = lane.shutdown(Shutdown::Both);
            }
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
        return Err(reason(error, channel, peer, lanes));
    }
    send(channel, &Message::Finish)?;
    match expect(channel, peer)? {
        Message::Done(reports) => Ok(reports),
        _ => Err(out_of_turn()),
    }
}

impl Crew<'_> {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("no panic under this lock")
    }

    /// Asks ahead what the receiver has, and lines the answers up for the lanes.
    fn feed(
        &self,
        channel: &mut Channel,
        peer: &str,
        lanes: &[TcpStream],
    ) -> Result<(), CopyError> {
        let mut spans = spans(&self.sending.source.manifest);
        let mut asked = VecDeque::new();
        loop {
            while asked.len() < ASKED_MAX
                && let Some(span) = spans.next()
            {
                send(channel, &Message::Prepare(span))?;
                asked.push_back(span);
            }
            let Some(span) = asked.pop_front() else {
                return Ok(());
            };
            let Message::Offer { partial, old } = expect(channel, peer)? else {
                return Err(out_of_turn());
            };
            let mut line = self.line();
            while line.waiting.len() >= WAITING_MAX && line.failed.is_none() {
                line = self.moved.wait(line).expect("no panic under this lock");
            }
            if let Some(error) = line.failed.take() {
                drop(line);
                return Err(reason(error, channel, peer, lanes));
            }
            if span.count > 0 {
                line.waiting.push_back(Work {
                    span,
                    offer: [partial, old],
                });
                self.moved.notify_all();
            }
        }
    }

    fn work(&self, lane: &TcpStream) {
        let mut buffer = vec![0; FRAME_BYTES + CHUNK_BYTES];
        let mut open: Option<(u32, File)> = None;
        while let Some((span, offer)) = self.next() {
            if let Err(error) = self.send_chunk(lane, span, &offer, &mut open, &mut buffer) {
                self.line().failed.get_or_insert(error);
                self.moved.notify_all();
                return;
            }
        }
        let _ = lane.shutdown(Shutdown::Write);
    }

    /// Returns the next chunk, as a span of one, and what is offered for it.
    fn next(&self) -> Option<(Span, [Hashes; 2])> {
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
                let one = |hashes: &mut Hashes| {
                    let taken = hashes.0.first().copied();
                    hashes.0.drain(..usize::from(taken.is_some()));
                    Hashes(taken.into_iter().collect())
                };
                let offer = work.offer.each_mut().map(one);
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
        lane: &TcpStream,
        span: Span,
        offer: &[Hashes; 2],
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
        let hash = *blake3::hash(payload).as_bytes();
        let frame = Frame {
            origin: origin(offer, 0, &hash),
            file: number,
            chunk,
            bytes: bytes as u32,
            hash,
        };
        header.copy_from_slice(&frame.encode());
        let out = match frame.origin {
            Origin::Sent => &buffer[..FRAME_BYTES + bytes],
            Origin::Partial | Origin::Old => &buffer[..FRAME_BYTES],
        };
        self.write(lane, out).map_err(CopyError::Cut)?;
        let done_bytes = self.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        (self.sending.on_progress)(Progress {
            done_bytes,
            total_bytes: source.manifest.bytes(),
        });
        Ok(())
    }

    fn write(&self, mut lane: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let Some(limit) = &self.sending.limit else {
            return lane.write_all(bytes);
        };
        bytes.chunks(PIECE_BYTES).try_for_each(|piece| {
            limit.pass(piece.len());
            lane.write_all(piece)
        })
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
/// Spans that wait for a lane. With those asked for it bounds the files that the receiver has open.
const WAITING_MAX: usize = 16;
/// How long an end that stops listens for what the other has to say.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);
