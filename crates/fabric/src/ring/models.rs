//! Every order in which two threads can run over a small ring, and every value that the memory model lets them see, as
//! loom (after CDSChecker, Norris and Demsky 2013) enumerates them: `cargo xtask ci --only loom`.

use loom::sync::Arc;
use loom::thread;

use super::*;

/// Small, so that both ends run into the other and wrap around within a few bytes.
const BYTES: usize = 2;
const TOTAL: usize = 3;

type End = Arc<Ring<BYTES>>;

fn ends() -> (Writer<End>, Reader<End>) {
    let line = || Line(AtomicU32::new(0));
    let ring = Arc::new(Ring {
        written: line(),
        read: line(),
        reader_sleeps: line(),
        writer_sleeps: line(),
        bytes: Bytes::new(),
    });
    // SAFETY: called once for this ring.
    unsafe { (Writer::new(Arc::clone(&ring)), Reader::new(ring)) }
}

/// Waits in `park` as a link waits on its connection; `unpark` is the byte that wakes it.
///
/// A sleeper that nobody wakes is a deadlock, a byte read while it is written a race: loom fails on both.
#[test]
fn bytes_come_out_as_they_went_in_and_every_sleeper_is_woken() {
    let mut orders = loom::model::Builder::new();
    // Without a bound it takes minutes; each fence and each order, taken away, fails with three already.
    orders.preemption_bound = Some(5);
    orders.check(|| {
        let (mut writer, mut reader) = ends();
        let writing = thread::current();
        let reading = thread::spawn(move || {
            let (mut received, mut buffer) = (0, [0; BYTES]);
            while received < TOTAL {
                let count = reader.read(&mut buffer).expect("the writer is honest");
                for (index, found) in buffer[..count].iter().enumerate() {
                    assert_eq!(usize::from(*found), 1 + received + index);
                }
                received += count;
                if count == 0 {
                    if reader.prepare_sleep() {
                        thread::park();
                    }
                    reader.awake();
                } else if reader.take_sleeper() {
                    writing.unpark();
                }
            }
        });
        let bytes: [u8; TOTAL] = std::array::from_fn(|index| 1 + index as u8);
        let mut sent = 0;
        while sent < TOTAL {
            let count = writer.write(&bytes[sent..]).expect("the reader is honest");
            sent += count;
            if count == 0 {
                if writer.prepare_sleep(1) {
                    thread::park();
                }
                writer.awake();
            } else if writer.take_sleeper() {
                reading.thread().unpark();
            }
        }
        reading.join().expect("every byte came");
    });
}
