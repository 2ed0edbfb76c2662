//! One direction of a link in shared memory: a bounded queue of bytes with one writer and one reader.
//!
//! Each end counts its own bytes privately and publishes the count; what the other end publishes is only ever believed
//! after it has been checked, because the other end is another process.

use std::cell::UnsafeCell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering, fence};

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
    bytes: [UnsafeCell<u8>; BYTES],
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

    /// Writes what there is room for.
    ///
    /// # Errors
    /// `InvalidData` when the reader claims to have read what was never written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room() < bytes.len() {
            self.read = self.ring.read.0.load(Ordering::Acquire);
            self.check()?;
        }
        let count = self.room().min(bytes.len());
        let start = self.written as usize % BYTES;
        let before_end = count.min(BYTES - start);
        let (first, second) = bytes[..count].split_at(before_end);
        let base = UnsafeCell::raw_get(self.ring.bytes.as_ptr());
        // SAFETY: `start + before_end` and `count - before_end` are at most `BYTES`, so both ranges are inside the ring;
        // they begin at the writer's place and are no longer than the room, so the reader is done with them (its count
        // was loaded with acquire) and will not look at them before `written` is published. `bytes` is ours alone.
        unsafe {
            base.add(start)
                .copy_from_nonoverlapping(first.as_ptr(), first.len());
            base.copy_from_nonoverlapping(second.as_ptr(), second.len());
        }
        // Wrapping, and `count` fits since `BYTES` does.
        self.written = self.written.wrapping_add(count as u32);
        self.ring.written.0.store(self.written, Ordering::Release);
        Ok(count)
    }

    /// Says whether the reader sleeps and is to be woken, by whoever gets this answer, for what was written just now.
    pub(crate) fn take_sleeper(&self) -> bool {
        taken(&self.ring.reader_sleeps)
    }

    /// Asks to be woken when there is room; false when there is some already.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.ring.writer_sleeps.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.read = self.ring.read.0.load(Ordering::Acquire);
        // A claim that cannot be true is for the next write to find.
        self.check().is_ok() && self.room() == 0
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
    fn room(&self) -> usize {
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
        let base = UnsafeCell::raw_get(self.ring.bytes.as_ptr());
        // SAFETY: `start + before_end` and `count - before_end` are at most `BYTES`, so both ranges are inside the ring;
        // the writer's count was loaded with acquire and says that they are written, and the writer will not touch them
        // before `read` is published. `into` is ours alone.
        unsafe {
            base.add(start)
                .copy_to_nonoverlapping(first.as_mut_ptr(), first.len());
            base.copy_to_nonoverlapping(second.as_mut_ptr(), second.len());
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
        self.ring.reader_sleeps.0.store(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread::{self, Thread};

    use proptest::prelude::*;

    use super::*;

    const BYTES: usize = 64;

    fn empty() -> Arc<Ring<BYTES>> {
        let line = || Line(AtomicU32::new(0));
        Arc::new(Ring {
            written: line(),
            read: line(),
            reader_sleeps: line(),
            writer_sleeps: line(),
            bytes: [const { UnsafeCell::new(0) }; BYTES],
        })
    }

    type End = Arc<Ring<BYTES>>;

    fn ends(ring: &End) -> (Writer<End>, Reader<End>) {
        // SAFETY: called once for each ring of these tests.
        unsafe { (Writer::new(Arc::clone(ring)), Reader::new(Arc::clone(ring))) }
    }

    fn byte(place: usize) -> u8 {
        (place * 31 % 251) as u8
    }

    #[test]
    fn bytes_come_out_as_they_went_in_on_two_threads() {
        const TOTAL: usize = if cfg!(miri) { 2_000 } else { 200_000 };
        let (mut writer, mut reader) = ends(&empty());
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut sent = 0;
                while sent < TOTAL {
                    let wanted: Vec<u8> =
                        (sent..TOTAL.min(sent + 1 + sent % 97)).map(byte).collect();
                    sent += writer.write(&wanted).expect("the reader is honest");
                    thread::yield_now();
                }
            });
            let (mut received, mut buffer) = (0, [0; 80]);
            while received < TOTAL {
                let length = 1 + received % 80;
                let count = reader
                    .read(&mut buffer[..length])
                    .expect("the writer is honest");
                for (index, found) in buffer[..count].iter().enumerate() {
                    assert_eq!(*found, byte(received + index), "byte {}", received + index);
                }
                received += count;
                thread::yield_now();
            }
        });
    }

    #[test]
    fn counts_go_on_past_the_end_of_their_type() {
        let ring = empty();
        let (mut writer, mut reader) = ends(&ring);
        let near_end = u32::MAX - 10;
        (writer.written, writer.read, reader.read) = (near_end, near_end, near_end);
        ring.written.0.store(near_end, Ordering::Relaxed);
        ring.read.0.store(near_end, Ordering::Relaxed);
        let mut buffer = [0; 2 * BYTES];
        for _ in 0..5 {
            assert_eq!(writer.write(&[7; 2 * BYTES]).expect("honest"), BYTES);
            assert_eq!(writer.write(&[7]).expect("honest"), 0);
            assert_eq!(reader.read(&mut buffer[..3]).expect("honest"), 3);
            assert_eq!(reader.read(&mut buffer).expect("honest"), BYTES - 3);
            assert_eq!(reader.read(&mut buffer).expect("honest"), 0);
        }
    }

    #[test]
    fn each_sleeper_is_taken_once_and_only_when_it_found_nothing_to_do() {
        let (mut writer, mut reader) = ends(&empty());
        assert!(!writer.prepare_sleep(), "there is room");
        writer.awake();
        assert!(reader.prepare_sleep(), "nothing is there");
        assert_eq!(writer.write(&[1; BYTES]).expect("honest"), BYTES);
        assert!(writer.take_sleeper());
        assert!(!writer.take_sleeper(), "it is awake");
        assert!(!reader.prepare_sleep(), "something is there");
        reader.awake();
        assert!(!writer.take_sleeper());
        assert!(writer.prepare_sleep(), "there is no room");
        assert_eq!(reader.read(&mut [0]).expect("honest"), 1);
        assert!(reader.take_sleeper() && !reader.take_sleeper());
    }

    /// One that is never woken hangs, which Miri calls a deadlock.
    #[test]
    fn every_sleeper_is_woken() {
        const TOTAL: usize = if cfg!(miri) { 300 } else { 100_000 };
        let (mut writer, mut reader) = ends(&empty());
        let (says, heard) = mpsc::channel();
        thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let writing: Thread = heard.recv().expect("it says who it is");
                let (mut received, mut buffer) = (0, [0; BYTES / 2]);
                while received < TOTAL {
                    let count = reader.read(&mut buffer).expect("the writer is honest");
                    if count > 0 && reader.take_sleeper() {
                        writing.unpark();
                    } else if count == 0 {
                        if reader.prepare_sleep() {
                            thread::park();
                        }
                        reader.awake();
                    }
                    received += count;
                }
            });
            says.send(thread::current()).expect("it hears");
            let mut sent = 0;
            while sent < TOTAL {
                let wanted = (1 + sent % BYTES).min(TOTAL - sent);
                let count = writer
                    .write(&[7; BYTES][..wanted])
                    .expect("the reader is honest");
                if count > 0 && writer.take_sleeper() {
                    reading.thread().unpark();
                } else if count == 0 {
                    if writer.prepare_sleep() {
                        thread::park();
                    }
                    writer.awake();
                }
                sent += count;
            }
        });
    }

    proptest! {
        // Under Miri there are no files.
        #![proptest_config(match cfg!(miri) {
            true => ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() },
            false => ProptestConfig::default(),
        })]

        #[test]
        fn untrue_counts_are_errors_and_touch_nothing_else(written: u32, read: u32, length in 0..200_usize) {
            let ring = empty();
            let (mut writer, mut reader) = ends(&ring);
            ring.written.0.store(written, Ordering::Relaxed);
            ring.read.0.store(read, Ordering::Relaxed);
            let mut buffer = vec![0; length];
            match reader.read(&mut buffer) {
                Ok(count) => prop_assert!(written as usize <= BYTES && count == length.min(written as usize)),
                Err(error) => prop_assert!(written as usize > BYTES && error.kind() == io::ErrorKind::InvalidData),
            }
            ring.read.0.store(read, Ordering::Relaxed);
            // A fresh ring has room for all its bytes; only beyond that is the reader's count looked at.
            match writer.write(&buffer) {
                Ok(count) => prop_assert!(count == length && length <= BYTES || read.wrapping_neg() as usize <= BYTES),
                Err(error) => prop_assert!(length > BYTES && error.kind() == io::ErrorKind::InvalidData),
            }
            let _any_outcome = (writer.prepare_sleep(), reader.prepare_sleep());
        }
    }
}
