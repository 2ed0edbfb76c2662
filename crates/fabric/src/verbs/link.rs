//! One link over RDMA, beside the connection that it came from.
//!
//! Bytes go through queue pairs. The connection stays: its end is the end of the link, and before it goes the number of
//! messages that the other end has sent, for the end must not overtake them, and what has failed there. Whoever sleeps is
//! woken by the devices where they can do that; where one cannot, the sleeper takes naps.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use smallvec::SmallVec;
use tracing::debug;

use super::flows::Flows;
use crate::link::Interest;
use crate::pages::Pages;
use crate::socket::{poll_for, unless_blocked};

/// A link whose bytes go over RDMA.
pub(crate) struct RdmaLink {
    flows: Flows,
    socket: TcpStream,
    farewell: Farewell,
    nap: Duration,
    /// When a sleep first brought no news, or the ports were last looked at, since anything has moved.
    quiet_since: Option<Instant>,
    /// When it was first seen to have failed with memory still lent.
    failed_since: Option<Instant>,
}

impl RdmaLink {
    /// Takes a connection that does not block.
    pub(crate) fn new(flows: Flows, socket: TcpStream) -> Self {
        Self {
            flows,
            socket,
            farewell: Farewell::default(),
            nap: NAP_MIN,
            quiet_since: None,
            failed_since: None,
        }
    }

    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.farewell.is_said() {
            let failure = self.farewell.failure();
            return Err(failure.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
        }
        let count = self.flows.write(parts)?;
        if count > 0 {
            self.moved();
        }
        Ok(count)
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let read = self.flows.read(into);
        let received = self.flows.messages_received();
        match read {
            Ok(0) if self.farewell.is_late(received) => {
                Err(io::Error::other("rdma: its last messages were lost"))
            }
            Ok(0) => match self.farewell.is_over(received) {
                true => self.farewell.end(),
                false => Ok(None),
            },
            Ok(count) => {
                self.moved();
                Ok(Some(count))
            }
            Err(error) => {
                // A peer that has left takes no more messages, which is no failure if it had said all it had to say.
                self.farewell.hear(&self.socket);
                match (self.farewell.is_over(received), self.farewell.failure()) {
                    (true, None) => Ok(Some(0)),
                    (false, None) => Err(error),
                    (_, Some(theirs)) => Err(io::Error::other(format!("{error}; {theirs}"))),
                }
            }
        }
    }

    fn moved(&mut self) {
        self.nap = NAP_MIN;
        self.quiet_since = None;
    }

    /// Asks to be woken for `interest`; false when it is possible already. Either way [`awake`](Self::awake) must follow.
    pub(crate) fn prepare_sleep(&mut self, interest: Interest) -> bool {
        let is_woken = self.flows.arm();
        self.flows.progress();
        let is_over = self.farewell.is_over(self.flows.messages_received());
        let readable = self.flows.is_readable() || is_over;
        let writable =
            self.flows.is_writable() || self.flows.has_failed() || self.farewell.is_said();
        if !is_woken {
            self.nap = (self.nap * 2).min(NAP_MAX);
        }
        let settled = self.flows.unsettled() == 0;
        !(interest.read && readable || interest.write && writable || interest.settle && settled)
    }

    /// Returns how long a sleep may be: not everything that ends one wakes the sleeper, and a device that has failed may not at
    /// all.
    pub(crate) fn nap(&self) -> Duration {
        match self.flows.have_files() {
            false => self.nap,
            true if self.flows.has_failed() || self.farewell.ended.is_some() => NAP_MAX,
            true => QUIET_MAX,
        }
    }

    /// Returns what to sleep on: the devices, and the connection until its end.
    pub(crate) fn files(&self) -> impl Iterator<Item = PollFd<'_>> {
        let devices = self.flows.files().map(readable);
        let socket = PollFd::new(&self.socket, PollFlags::IN);
        devices.chain(self.farewell.ended.is_none().then_some(socket))
    }

    pub(crate) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Hears what woke it, if there was anything to hear; looks at the ports where there was not for long.
    pub(crate) fn awake(&mut self, news: bool) {
        if news {
            self.flows.hear();
            self.farewell.hear(&self.socket);
            self.quiet_since = None;
            return;
        }
        let now = Instant::now();
        if now.duration_since(*self.quiet_since.get_or_insert(now)) >= QUIET_MAX {
            self.flows.look_at_ports();
            self.quiet_since = Some(now);
        }
    }

    /// Makes memory known to the devices, so that what lies there goes out without being copied.
    pub(crate) fn lend(&mut self, pages: &Arc<Pages>) {
        for why in self.flows.lend(pages) {
            debug!(bytes = pages.bytes(), why, "values of a region are copied");
        }
    }

    /// Returns how many messages in lent memory the devices may still read.
    ///
    /// # Errors
    /// What has failed, some time ago: a device that fails gives all back at once, or may never do so.
    pub(crate) fn unsettled(&mut self) -> io::Result<usize> {
        if self.flows.unsettled() > 0 {
            self.flows.progress();
        }
        let left = self.flows.unsettled();
        match self.flows.failure().filter(|_| left > 0) {
            None => Ok(left),
            Some(error) => {
                let since = self.failed_since.get_or_insert_with(Instant::now);
                if since.elapsed() < FLUSH_TIME_MAX {
                    Ok(left)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// See [`Links::reclaim`](crate::link::Links::reclaim): the devices cannot be told, so it waits for them, until `until` at
    /// most.
    pub(crate) fn reclaim(&mut self, until: Instant) {
        self.drain(until, |link| link.flows.unsettled() == 0);
    }

    /// Waits for the device to be done with what was written, or for the other end to leave; says whether all is out.
    fn flush(&mut self) -> bool {
        self.drain(Instant::now() + FLUSH_TIME_MAX, |link| {
            link.flows.is_flushed() || link.flows.has_failed() || link.farewell.is_said()
        });
        self.flows.is_flushed()
    }

    /// Waits until `is_done`, or until `until`.
    fn drain(&mut self, until: Instant, is_done: impl Fn(&Self) -> bool) {
        loop {
            let _is_woken = self.flows.arm();
            self.flows.progress();
            self.farewell.hear(&self.socket);
            let left = until.saturating_duration_since(Instant::now());
            if is_done(self) || left.is_zero() {
                return;
            }
            let mut fds: SmallVec<[PollFd<'_>; FILES]> = self.files().collect();
            let _next_look_tells = poll_for(&mut fds, left.min(NAP_MAX));
            drop(fds);
            self.flows.hear();
        }
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        debug!(
            messages = self.flows.messages_sent(),
            uncopied_bytes = self.flows.uncopied_bytes(),
            "a link over RDMA ends"
        );
        // What was written before the end can still be read; a queue pair takes what it has not sent with it.
        // One that cannot vouch for its messages says no number: the end of the connection is the end of the link then.
        let number = match self.flush() {
            true => self.flows.messages_sent().to_le_bytes(),
            false => NO_NUMBER,
        };
        let failure = self.flows.failure().map(|failure| failure.to_string());
        let words = [&number[..], failure.unwrap_or_default().as_bytes()].concat();
        let _the_end_says_less = self.socket.write(&words);
        let _it_is_closed_soon = self.socket.shutdown(Shutdown::Write);
    }
}

/// What the other end says over the connection: how many messages it has sent, what has failed there, and that it has left.
#[derive(Default)]
struct Farewell {
    words: Vec<u8>,
    ended: Option<Instant>,
}

impl Farewell {
    fn hear(&mut self, mut socket: &TcpStream) {
        while self.ended.is_none() {
            let mut bytes = [0; WORDS_BYTES_MAX];
            match unless_blocked(socket.read(&mut bytes)) {
                Ok(None) => return,
                Ok(Some(0)) | Err(_) => self.ended = Some(Instant::now()),
                Ok(Some(count)) => {
                    let room = WORDS_BYTES_MAX - self.words.len();
                    self.words.extend_from_slice(&bytes[..count.min(room)]);
                }
            }
        }
    }

    /// Returns how many messages it has sent; one that could not send all, or was torn away, does not say it.
    fn count(&self) -> Option<u64> {
        let number = self.words.first_chunk::<8>()?;
        (*number != NO_NUMBER).then(|| u64::from_le_bytes(*number))
    }

    /// Returns what has failed at the other end, if it says that.
    fn failure(&self) -> Option<io::Error> {
        let text = self.words.get(8..).filter(|text| !text.is_empty())?;
        let mut text = String::from_utf8_lossy(text).into_owned();
        text.retain(|c| !c.is_control());
        Some(io::Error::other(format!("the other end says: {text}")))
    }

    fn is_said(&self) -> bool {
        self.ended.is_some() || self.count().is_some()
    }

    /// Whether nothing more comes after `received` messages.
    fn is_over(&self, received: u64) -> bool {
        match self.count() {
            Some(count) => received >= count,
            None => self.ended.is_some(),
        }
    }

    /// Returns what a reader finds at the end.
    fn end(&self) -> io::Result<Option<usize>> {
        self.failure().map_or(Ok(Some(0)), Err)
    }

    /// Whether messages are missing that can come no more, which only unreliable connections lose.
    fn is_late(&self, received: u64) -> bool {
        let is_long_ago = self.ended.is_some_and(|at| at.elapsed() > FLUSH_TIME_MAX);
        is_long_ago && !self.is_over(received)
    }
}

fn readable(file: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(file, PollFlags::IN)
}

/// How long one sleeps that nothing wakes: from the first look in vain, doubled with each.
const NAP_MIN: Duration = Duration::from_micros(25);
const NAP_MAX: Duration = Duration::from_millis(2);
/// How long nothing may be heard before one looks at the ports, and again; asking a device can take longer than a message.
const QUIET_MAX: Duration = Duration::from_millis(250);
/// One of each device and of the connection, of which a sleep takes nothing from the allocator.
const FILES: usize = 9;
/// Longer than a device repeats what gets no answer.
pub(crate) const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);
/// What one says that could not send all: no link carries as many messages.
const NO_NUMBER: [u8; 8] = [u8::MAX; 8];
/// A number, or what has failed in some words.
const WORDS_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ours = TcpStream::connect(address).expect("listening");
        ours.set_nonblocking(true).expect("a fresh socket");
        (ours, listener.accept().expect("connected").0)
    }

    /// Hears until `done`; with no time limit, so that news that never come hang the test.
    fn hear(socket: &TcpStream, done: impl Fn(&Farewell) -> bool) -> Farewell {
        let mut farewell = Farewell::default();
        while !done(&farewell) {
            farewell.hear(socket);
        }
        farewell
    }

    #[test]
    fn the_end_waits_for_every_message() {
        let (ours, mut theirs) = connection();
        assert!(!Farewell::default().is_over(0));
        theirs.write_all(&3_u64.to_le_bytes()[..5]).expect("room");
        theirs.write_all(&3_u64.to_le_bytes()[5..]).expect("room");
        let farewell = hear(&ours, Farewell::is_said);
        assert!(!farewell.is_over(2) && farewell.is_over(3));
        drop(theirs);
        let farewell = hear(&ours, |farewell| farewell.ended.is_some());
        assert!(farewell.is_over(0), "nothing was said on what is left");
    }

    #[test]
    fn a_connection_that_is_torn_ends_at_once() {
        for said in [0, 7] {
            let (ours, mut theirs) = connection();
            theirs.write_all(&[9; 8][..said]).expect("room");
            drop(theirs);
            let farewell = hear(&ours, |farewell| farewell.ended.is_some());
            assert!(farewell.is_said() && farewell.is_over(0), "{said}");
            assert_eq!(farewell.end().expect("no failure was told"), Some(0));
        }
    }

    #[test]
    fn what_fails_at_the_other_end_is_told_after_its_messages() {
        for (number, received) in [(3_u64.to_le_bytes(), 3), (NO_NUMBER, 0)] {
            let (ours, mut theirs) = connection();
            theirs.write_all(&number).expect("room");
            theirs.write_all(b"rdma: gone on rxe_b").expect("room");
            drop(theirs);
            let farewell = hear(&ours, |farewell| farewell.ended.is_some());
            assert!(farewell.is_said() && farewell.is_over(received));
            assert_eq!(farewell.is_over(2), number == NO_NUMBER);
            let failure = farewell.end().expect_err("it was told").to_string();
            assert_eq!(failure, "the other end says: rdma: gone on rxe_b");
        }
    }
}
