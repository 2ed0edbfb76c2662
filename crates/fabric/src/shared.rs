//! One link through shared memory, beside the connection that it came from.
//!
//! Bytes go through two rings, but for those in memory that was lent, which are read there. The connection stays: its end is
//! the end of the link, noticed by whoever sleeps on it, and a byte on it, of whatever value, wakes the other end.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::link::Interest;
use crate::pages::Pages;
use crate::records::{RECORD_BYTES_MIN, RecordReader, RecordWriter};
use crate::ring::{Reader, Ring, Writer};
use crate::segment::{RING_BYTES, Segment};
use crate::socket::unless_blocked;

/// Both directions of a link, as one side sees them.
pub(crate) struct Pipes {
    pub(crate) outgoing: RecordWriter,
    pub(crate) incoming: RecordReader,
}

impl Pipes {
    /// Returns those of the side that created the memory.
    pub(crate) fn of_creator(segment: Segment) -> Self {
        Self::over(segment, 0, 1)
    }

    /// Returns those of the side that opened the memory.
    pub(crate) fn of_opener(segment: Segment) -> Self {
        Self::over(segment, 1, 0)
    }

    fn over(segment: Segment, outgoing: usize, incoming: usize) -> Self {
        let segment = Arc::new(segment);
        let half = |index| Half {
            segment: Arc::clone(&segment),
            index,
        };
        // SAFETY: the memory is fresh, each side makes its ends once, for it gives its only mapping away, and each writes
        // the ring that the other reads.
        let (writer, reader) =
            unsafe { (Writer::new(half(outgoing)), Reader::new(half(incoming))) };
        Self {
            outgoing: RecordWriter::new(writer),
            incoming: RecordReader::new(reader),
        }
    }
}

/// One ring of a segment, and what belongs to it.
pub(crate) struct Half {
    segment: Arc<Segment>,
    index: usize,
}

impl Half {
    /// Returns the bits of the regions that the reader of the ring has opened.
    pub(crate) fn opened(&self) -> &AtomicU32 {
        &self.segment.opened[self.index]
    }
}

impl Deref for Half {
    type Target = Ring<RING_BYTES>;

    fn deref(&self) -> &Self::Target {
        &self.segment.rings[self.index]
    }
}

/// A link whose bytes go through shared memory.
pub(crate) struct SharedLink {
    pipes: Pipes,
    /// Carries wake-ups, and ends with the other end.
    pub(crate) socket: TcpStream,
    /// The connection was seen to end. All that the other end ever wrote was in the ring by then.
    ended: bool,
}

impl SharedLink {
    /// Takes a connection that does not block.
    pub(crate) fn new(pipes: Pipes, socket: TcpStream) -> Self {
        Self {
            pipes,
            socket,
            ended: false,
        }
    }

    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = self.pipes.outgoing.write(parts)?;
        if taken > 0 && self.pipes.outgoing.take_sleeper() {
            self.wake();
        }
        Ok(taken)
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.pipes.incoming.read(into)? {
            0 => Ok(self.ended.then_some(0)),
            count => {
                if self.pipes.incoming.take_sleeper() {
                    self.wake();
                }
                Ok(Some(count))
            }
        }
    }

    /// Lets the other end read what lies in `pages` there, once it can.
    pub(crate) fn lend(&mut self, pages: &Arc<Pages>) {
        self.pipes.outgoing.lend(pages);
    }

    /// See [`Links::give_up`](crate::link::Links::give_up).
    pub(crate) fn give_up(&mut self) {
        self.pipes.incoming.give_up();
    }

    /// See [`Links::reclaim`](crate::link::Links::reclaim).
    pub(crate) fn reclaim(&self) {
        self.pipes.outgoing.reclaim();
    }

    /// See [`Links::unsettled`](crate::link::Links::unsettled): the bytes of the ring that the other end has not read.
    pub(crate) fn unsettled(&mut self) -> io::Result<usize> {
        match self.pipes.outgoing.unsettled()? {
            // What was read before the end was seen is counted.
            1.. if self.ended => Err(io::ErrorKind::BrokenPipe.into()),
            unread => Ok(unread),
        }
    }

    /// Asks to be woken for `interest`; false when it is possible already. Either way [`awake`](Self::awake) must follow.
    pub(crate) fn prepare_sleep(&mut self, interest: Interest) -> bool {
        !self.ended
            && (!interest.read || self.pipes.incoming.prepare_sleep())
            && (!interest.write || self.pipes.outgoing.prepare_sleep(RECORD_BYTES_MIN))
            && (!interest.settle || self.pipes.outgoing.prepare_sleep(RING_BYTES))
    }

    /// Wants no wake-ups any more, and hears those that came, if the connection is said to have `news`.
    pub(crate) fn awake(&mut self, news: bool) {
        self.pipes.incoming.awake();
        self.pipes.outgoing.awake();
        if news && !self.ended {
            // Some of them at a time: what is left makes the next sleep a short one.
            let heard = unless_blocked(self.socket.read(&mut [0; 64]));
            self.ended = matches!(heard, Ok(Some(0)) | Err(_));
        }
    }

    fn wake(&mut self) {
        // If the connection takes nothing, it is full of wake-ups or has ended, which the sleeper on either end notices.
        let _woken = self.socket.write(&[1]);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    #[cfg(target_os = "linux")]
    use crate::region::Region;
    use crate::segment::{self, Offer};
    use crate::socket::poll_for;

    fn links() -> (SharedLink, SharedLink) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ours = TcpStream::connect(address).expect("listening");
        let (theirs, _) = listener.accept().expect("connected");
        for stream in [&ours, &theirs] {
            stream.set_nonblocking(true).expect("a fresh socket");
            stream.set_nodelay(true).expect("a fresh socket");
        }
        let offer = Offer::new().expect("shared memory");
        let (opened, proof) = segment::open(offer.name()).expect("it was just offered");
        let created = offer.conclude(&proof).expect("the proof is right");
        let created = created.expect("it was opened");
        (
            SharedLink::new(Pipes::of_creator(created), ours),
            SharedLink::new(Pipes::of_opener(opened), theirs),
        )
    }

    /// Sleeps for as long as `interest` is impossible; with no time limit, so that a lost wake-up hangs the test.
    fn sleep(link: &mut SharedLink, interest: Interest) {
        let mut news = false;
        if link.prepare_sleep(interest) {
            let mut fds = [PollFd::new(&link.socket, PollFlags::IN)];
            poll_for(&mut fds, Duration::from_secs(24 * 60 * 60)).expect("it can wait");
            news = !fds[0].revents().is_empty();
        }
        link.awake(news);
    }

    #[test]
    fn no_wake_up_is_lost_by_ends_that_never_wait_awake() {
        const ROUNDS: u32 = 5_000;
        let (mut ours, mut theirs) = links();
        let send = |link: &mut SharedLink, round: u32| {
            while link
                .write(&[IoSlice::new(&round.to_le_bytes())])
                .expect("honest")
                == 0
            {
                sleep(link, Interest::write(0));
            }
        };
        let recv = |link: &mut SharedLink, round: u32| {
            let mut bytes = [0; 4];
            while link.read(&mut bytes).expect("honest").is_none() {
                sleep(link, Interest::read(0));
            }
            assert_eq!(u32::from_le_bytes(bytes), round);
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    recv(&mut theirs, round);
                    send(&mut theirs, round);
                }
            });
            for round in 0..ROUNDS {
                send(&mut ours, round);
                recv(&mut ours, round);
            }
        });
    }

    #[test]
    fn a_writer_that_sleeps_for_room_is_woken_again_and_again() {
        const TOTAL: usize = 20 * RING_BYTES;
        let (mut ours, mut theirs) = links();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut left, mut buffer) = (TOTAL, vec![0; 10_000]);
                while left > 0 {
                    match theirs.read(&mut buffer).expect("honest") {
                        Some(count) => left -= count,
                        None => sleep(&mut theirs, Interest::read(0)),
                    }
                }
            });
            let (mut left, bytes) = (TOTAL, vec![7; 30_000]);
            while left > 0 {
                let bytes = IoSlice::new(&bytes[..bytes.len().min(left)]);
                match ours.write(&[bytes]).expect("honest") {
                    0 => sleep(&mut ours, Interest::write(0)),
                    count => left -= count,
                }
            }
        });
    }

    #[test]
    fn what_was_written_before_the_end_can_still_be_read() {
        let (mut ours, mut theirs) = links();
        assert_eq!(
            ours.write(&[IoSlice::new(b"la"), IoSlice::new(b"st")])
                .expect("room"),
            4
        );
        drop(ours);
        let mut bytes = [0; 3];
        assert_eq!(theirs.read(&mut bytes).expect("it is there"), Some(3));
        assert_eq!(theirs.read(&mut bytes).expect("it is there"), Some(1));
        while theirs.read(&mut bytes).expect("an orderly end") != Some(0) {
            sleep(&mut theirs, Interest::read(0));
        }
        let error = theirs
            .write(&[IoSlice::new(b"x")])
            .expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_writer_that_sleeps_for_room_learns_of_the_end() {
        let (mut ours, mut theirs) = links();
        thread::scope(|scope| {
            // Takes one byte once there is something, and leaves.
            scope.spawn(move || {
                while theirs.prepare_sleep(Interest::read(0)) {}
                theirs.read(&mut [0]).expect("honest");
            });
            let bytes = vec![1; RING_BYTES];
            let error = loop {
                match ours.write(&[IoSlice::new(&bytes)]) {
                    Ok(0) => sleep(&mut ours, Interest::write(0)),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_lent_waits_for_the_reader_and_learns_of_its_end() {
        let (mut ours, mut theirs) = links();
        let pages = Arc::new(Pages::to_lend(2 * RING_BYTES).expect("memory"));
        ours.lend(&pages);
        assert_eq!(theirs.read(&mut [0]).expect("a notice"), None);
        let region = Region::new(pages);
        let bytes: &[u8] = bytemuck::cast_slice(&region);
        let lend = |link: &mut SharedLink| {
            let taken = link.write(&[IoSlice::new(bytes)]).expect("honest");
            assert_eq!(taken, bytes.len());
        };
        let settle = |link: &mut SharedLink| {
            while link.unsettled()? > 0 {
                sleep(link, Interest::settle(0));
            }
            io::Result::Ok(())
        };
        settle(&mut ours).expect("nothing is lent");
        lend(&mut ours);
        assert!(ours.unsettled().expect("honest") > 0);
        let theirs = thread::scope(|scope| {
            let len = bytes.len();
            // A reader that fails takes its end with it.
            let reading = scope.spawn(move || {
                // By then the other end sleeps.
                thread::sleep(Duration::from_millis(10));
                let count = theirs.read(&mut vec![1; len]).expect("honest");
                assert_eq!(count, Some(len));
                theirs
            });
            settle(&mut ours).expect("it is read");
            lend(&mut ours);
            reading.join().expect("it has read")
        });
        drop(theirs);
        let error = settle(&mut ours).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
