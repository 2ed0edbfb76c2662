//! Tests with real threads, and over any counts. `models` tries every order of a small ring.

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
        bytes: Bytes::new(),
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
                let wanted: Vec<u8> = (sent..TOTAL.min(sent + 1 + sent % 97)).map(byte).collect();
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
    assert!(!writer.prepare_sleep(1), "there is room");
    writer.awake();
    assert!(reader.prepare_sleep(), "nothing is there");
    assert_eq!(writer.write(&[1; BYTES]).expect("honest"), BYTES);
    assert!(writer.take_sleeper());
    assert!(!writer.take_sleeper(), "it is awake");
    assert!(!reader.prepare_sleep(), "something is there");
    reader.awake();
    assert!(!writer.take_sleeper());
    assert!(writer.prepare_sleep(1), "there is no room");
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
                if writer.prepare_sleep(1) {
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
        let _any_outcome = (writer.prepare_sleep(1), reader.prepare_sleep());
    }
}
