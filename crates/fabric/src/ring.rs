//! One direction of a link in shared memory: a bounded queue of bytes with one writer and one reader.
//!
//! Each end counts its own bytes privately and publishes the count; what the other end publishes is only ever believed
//! after it has been checked, because the other end is another process.

mod bytes;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::ops::Deref;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

use bytes::Bytes;

/// A ring of `BYTES`, a power of two, as it lies in memory that two processes share. All zeros is an empty ring.
#[repr(C)]
pub(crate) struct Ring<const BYTES: usize> {
    /// Bytes ever written, wrapping; stored by the writer.
    written: Line,
    /// Bytes ever read, wrapping; stored by the reader.
    read: Line,
    /// Set by a reader that goes to sleep, taken back by whoever wakes it.
    reader_sleeps: Line,
    /// As above, for the writer.
    writer_sleeps: Line,
    bytes: Bytes<BYTES>,
}

/// A number with cache lines of its own: two, because processors fetch them in pairs.
#[repr(C, align(128))]
struct Line(AtomicU32);

// SAFETY: everything but `bytes` is atomic, and `bytes` is touched by `Writer` and `Reader` alone, of which there is one
// each (the contract of their constructors); they hand ranges over to each other by release and acquire.
unsafe impl<const BYTES: usize> Sync for Ring<BYTES> {}

/// The end that puts bytes in.
pub(crate) struct Writer<R> {
    ring: R,
    written: u32,
    /// What the reader had read when that was last looked at; looked at again only when the room seems not to suffice.
    read: u32,
}

/// The end that takes bytes out.
pub(crate) struct Reader<R> {
    ring: R,
    read: u32,
}

impl<const BYTES: usize, R: Deref<Target = Ring<BYTES>>> Writer<R> {
    /// Returns the writing end of a ring that was never used.
    ///
    /// # Safety
    /// - The ring has no other `Writer`, in this process or another.
    pub(crate) unsafe fn new(ring: R) -> Self {
        const { assert!(BYTES.is_power_of_two() && BYTES <= 1 << 31) };
        Self {
            ring,
            written: 0,
            read: 0,
        }
    }

    /// Returns the ring.
    pub(crate) fn ring(&self) -> &R {
        &self.ring
    }

    /// Returns how many bytes there is room for; there may be more room if it is for `wanted` or more.
    ///
    /// # Errors
    /// `InvalidData` when the reader claims to have read what was never written.
    pub(crate) fn room(&mut self, wanted: usize) -> io::Result<usize> {
        if self.known_room() < wanted {
            self.read = self.ring.read.0.load(Ordering::Acquire);
            self.check()?;
        }
        Ok(self.known_room())
    }

    /// Puts `bytes` behind those before; the reader sees them once they are [published](Self::publish).
    ///
    /// # Panics
    /// If there is no [`room`](Self::room) for them.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.known_room(), "room was asked for");
        let start = self.written as usize % BYTES;
        let (first, second) = bytes.split_at(bytes.len().min(BYTES - start));
        // SAFETY: no more than `BYTES` are put, up to the end and from the start on, so both ranges are inside the ring;
        // they begin at the writer's place and are no longer than the room, so the reader is done with them (its count
        // was loaded with acquire) and will not look at them before `written` is published.
        unsafe {
            self.ring.bytes.put(start, first);
            self.ring.bytes.put(0, second);
        }
        // Wrapping, and the length fits since `BYTES` does.
        self.written = self.written.wrapping_add(bytes.len() as u32);
    }

    /// Shows the reader all that was put.
    pub(crate) fn publish(&mut self) {
        self.ring.written.0.store(self.written, Ordering::Release);
    }

    /// Says whether the reader sleeps and is to be woken, by whoever gets this answer, for what was written just now.
    pub(crate) fn take_sleeper(&self) -> bool {
        taken(&self.ring.reader_sleeps)
    }

    /// Asks to be woken when something is read; false when there is room for `wanted` bytes already.
    pub(crate) fn prepare_sleep(&mut self, wanted: usize) -> bool {
        // A store would do, but loom does not see that what took the last mark away comes before it.
        self.ring.writer_sleeps.0.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.read = self.ring.read.0.load(Ordering::Acquire);
        // A claim that cannot be true is for the next write to find.
        self.check().is_ok() && self.known_room() < wanted
    }

    /// Takes the wish to be woken back.
    pub(crate) fn awake(&self) {
        self.ring.writer_sleeps.0.store(0, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        match self.written.wrapping_sub(self.read) as usize <= BYTES {
            true => Ok(()),
            false => Err(damaged()),
        }
    }

    /// Zero when the reader's claim is untrue.
    fn known_room(&self) -> usize {
        BYTES.saturating_sub(self.written.wrapping_sub(self.read) as usize)
    }
}

impl<const BYTES: usize, R: Deref<Target = Ring<BYTES>>> Reader<R> {
    /// Returns the reading end of a ring that was never used.
    ///
    /// # Safety
    /// - The ring has no other `Reader`, in this process or another.
    pub(crate) unsafe fn new(ring: R) -> Self {
        const { assert!(BYTES.is_power_of_two() && BYTES <= 1 << 31) };
        Self { ring, read: 0 }
    }

    /// Returns the ring.
    pub(crate) fn ring(&self) -> &R {
        &self.ring
    }

    /// Reads what is there, at most `into`.
    ///
    /// # Errors
    /// `InvalidData` when the writer claims to have written more than the ring holds.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.available()?.min(into.len());
        if count == 0 {
            return Ok(0);
        }
        let start = self.read as usize % BYTES;
        let before_end = count.min(BYTES - start);
        let (first, second) = into[..count].split_at_mut(before_end);
        // SAFETY: `start + before_end` and `count - before_end` are at most `BYTES`, so both ranges are inside the ring;
        // the writer's count was loaded with acquire and says that they are written, and the writer will not touch them
        // before `read` is published.
        unsafe {
            self.ring.bytes.take(start, first);
            self.ring.bytes.take(0, second);
        }
        self.read = self.read.wrapping_add(count as u32);
        self.ring.read.0.store(self.read, Ordering::Release);
        Ok(count)
    }

    /// Says whether the writer sleeps and is to be woken, by whoever gets this answer, for what was read just now.
    pub(crate) fn take_sleeper(&self) -> bool {
        taken(&self.ring.writer_sleeps)
    }

    /// Asks to be woken when something is there; false when something is already.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.ring.reader_sleeps.0.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // A claim that cannot be true is for the next read to find.
        matches!(self.available(), Ok(0))
    }

    /// Takes the wish to be woken back.
    pub(crate) fn awake(&self) {
        self.ring.reader_sleeps.0.store(0, Ordering::Relaxed);
    }

    fn available(&self) -> io::Result<usize> {
        let written = self.ring.written.0.load(Ordering::Acquire);
        match written.wrapping_sub(self.read) as usize {
            available if available <= BYTES => Ok(available),
            _ => Err(damaged()),
        }
    }
}

#[cfg(test)]
impl<const BYTES: usize, R: Deref<Target = Ring<BYTES>>> Writer<R> {
    /// Writes what there is room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.room(bytes.len())?.min(bytes.len());
        self.put(&bytes[..count]);
        self.publish();
        Ok(count)
    }
}

/// Takes the mark of a sleeper.
///
/// A sleeper marks itself and then looks at the counts; here a count has been published and then the mark is looked at.
/// With a full fence between the two on both sides, at least one of them sees the other.
fn taken(sleeps: &Line) -> bool {
    fence(Ordering::SeqCst);
    sleeps.0.load(Ordering::Relaxed) != 0 && sleeps.0.swap(0, Ordering::Relaxed) != 0
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the counts in the shared memory cannot be true",
    )
}
