//! One authenticated control connection: orders one way, reports the other.
//!
//! Both ends prove that they hold the same key before anything is said. Every message carries an HMAC-SHA256 tag over
//! its direction's key, its number and its bytes, so messages cannot be forged, altered, repeated, reordered or turned
//! back; they are not encrypted. An end that vanishes without a word is noticed within about half a minute.
//!
//! ```text
//! │ length, 4 bytes LE │ tag, 32 bytes │ message …
//! ```

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::error::FabricError;
use crate::handshake::{self, Purpose};
use crate::key::{KEY_BYTES, Key};
use crate::resolve::resolve;
use crate::timed;

/// A connection whose both ends have proved that they hold the same key.
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
}

impl Channel {
    /// Connects to `addr`, `host:port`, and proves the key; every address of the host is tried in turn, each for its part
    /// of the time.
    ///
    /// # Errors
    /// [`FabricError::Unreachable`], [`FabricError::WrongToken`], [`FabricError::VersionMismatch`],
    /// [`FabricError::Protocol`] when something else than Shoal listens there, [`FabricError::Silent`] at the deadline.
    pub fn connect(addr: &str, key: &Key, deadline: Instant) -> Result<Self, FabricError> {
        let addresses = resolve(addr).map_err(|error| unreachable(addr, error.to_string()))?;
        Self::connect_to_one_of(addresses, addr, key, deadline)
    }

    fn connect_to_one_of(
        addresses: Vec<SocketAddr>,
        name: &str,
        key: &Key,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        let mut last = unreachable(name, "the name has no address".to_owned());
        for (address, parts) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
            let now = Instant::now();
            // One that is dead leaves time for those behind it.
            let until = now + deadline.saturating_duration_since(now) / parts;
            match Self::connect_for(*address, name, key, Purpose::Channel, until) {
                Err(error @ (FabricError::Unreachable { .. } | FabricError::Silent { .. })) => {
                    last = error;
                }
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Proves the key to an end that has connected, after that has proved it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), but for [`FabricError::Unreachable`].
    pub fn accept(stream: TcpStream, key: &Key, deadline: Instant) -> Result<Self, FabricError> {
        Self::accept_for(stream, key, Purpose::Channel, deadline)
    }

    /// Sends one message, of 16 MiB at most.
    ///
    /// # Errors
    /// [`FabricError::Closed`], [`FabricError::Silent`] when the other end takes nothing for 10 s,
    /// [`FabricError::Invalid`] for a message that is too long.
    pub fn send(&mut self, message: &[u8]) -> Result<(), FabricError> {
        self.sender.send(message)
    }

    /// Returns the next message; without a deadline, waits for as long as the connection lives.
    ///
    /// # Errors
    /// [`FabricError::Silent`] at the deadline, after which it may be called again; [`FabricError::Closed`];
    /// [`FabricError::Protocol`] for bytes that the other end did not send, which closes the connection.
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Vec<u8>, FabricError> {
        self.receiver.recv(deadline)
    }

    /// Splits into two ends for two threads.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Returns the address of this end.
    ///
    /// # Errors
    /// [`FabricError::Io`] when the operating system does not know any more.
    pub fn local_addr(&self) -> Result<SocketAddr, FabricError> {
        Ok(self.sender.stream.local_addr()?)
    }

    /// Returns the address of the other end.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.sender.peer
    }

    /// Connects for one purpose; `name` is what errors call the address.
    pub(crate) fn connect_for(
        address: SocketAddr,
        name: &str,
        key: &Key,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        let stream =
            timed::time_left(deadline).and_then(|left| TcpStream::connect_timeout(&address, left));
        let stream = stream.map_err(|error| unreachable(name, error.to_string()))?;
        Self::over(stream, key, purpose, deadline)
    }

    /// Proves the key over a connection that this end has made.
    pub(crate) fn over(
        stream: TcpStream,
        key: &Key,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        let session = handshake::initiate(&stream, key, purpose, deadline)?;
        Self::new(stream, session)
    }

    pub(crate) fn accept_for(
        stream: TcpStream,
        key: &Key,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        // Some systems hand a listener's non-blocking mode on.
        stream.set_nonblocking(false)?;
        let session = handshake::accept(&stream, key, purpose, deadline)?;
        Self::new(stream, session)
    }

    /// Says whether the other end has hung up, or has spoken out of turn; for a channel on which nothing is due.
    pub(crate) fn has_ended(&self) -> bool {
        let stream = &*self.sender.stream;
        let looked = stream
            .set_nonblocking(true)
            .and_then(|()| stream.peek(&mut [0]));
        let _restored = stream.set_nonblocking(false);
        !looked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Returns the bare connection, on which nothing but the messages so far has been read. What follows on it is bounded
    /// by no deadline and proves nothing of where it came from.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        drop(self.receiver);
        Arc::into_inner(self.sender.stream)
            .expect("a channel that was not split is its only holder")
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.sender.stream
    }

    fn new(stream: TcpStream, session: handshake::Session) -> Result<Self, FabricError> {
        stream.set_nodelay(true)?;
        let keep_alive = sockopt::set_socket_keepalive(&stream, true)
            .and_then(|()| sockopt::set_tcp_keepidle(&stream, KEEPALIVE_AFTER))
            .and_then(|()| sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_EVERY))
            .and_then(|()| sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES));
        keep_alive.map_err(std::io::Error::from)?;
        let peer = stream.peer_addr()?;
        let stream = Arc::new(stream);
        let sender = Sender {
            stream: Arc::clone(&stream),
            peer,
            key: session.send,
            sent: 0,
        };
        let receiver = Receiver {
            stream,
            peer,
            key: session.receive,
            received: 0,
            pending: Vec::new(),
        };
        Ok(Self { sender, receiver })
    }
}

/// The sending end of a [`Channel`].
pub struct Sender {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    key: Key,
    sent: u64,
}

impl Sender {
    /// See [`Channel::send`].
    ///
    /// # Errors
    /// See [`Channel::send`].
    pub fn send(&mut self, message: &[u8]) -> Result<(), FabricError> {
        let (started, bytes) = (Instant::now(), message.len());
        let Some(length) = u32::try_from(bytes)
            .ok()
            .filter(|_| bytes <= MESSAGE_BYTES_MAX)
        else {
            let reason = format!(
                "a control message of {bytes} bytes, at most {MESSAGE_BYTES_MAX} are possible"
            );
            return Err(FabricError::Invalid(reason));
        };
        let tag = self.key.mac(&[&self.sent.to_le_bytes(), message]);
        let frame = [&length.to_le_bytes(), &tag[..], message].concat();
        self.sent += 1;
        timed::write_all(&self.stream, &frame, started + SEND_TIME_MAX).map_err(|error| {
            // Part of the message may be out, so nothing can follow it.
            self.close();
            timed::failure(
                &error,
                &self.peer.to_string(),
                started,
                "sending a control message",
            )
        })
    }

    /// Ends the connection in both directions; a receiver that waits on another thread returns.
    pub fn close(&self) {
        let _may_be_closed_already = self.stream.shutdown(Shutdown::Both);
    }
}

/// The receiving end of a [`Channel`].
pub struct Receiver {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    key: Key,
    received: u64,
    /// The frame that is being read; kept when a deadline passes in the middle.
    pending: Vec<u8>,
}

impl Receiver {
    /// See [`Channel::recv`].
    ///
    /// # Errors
    /// See [`Channel::recv`].
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Vec<u8>, FabricError> {
        self.fill(HEADER_BYTES, deadline)?;
        let length = self
            .pending
            .first_chunk()
            .map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if length > MESSAGE_BYTES_MAX {
            return Err(self.broken(format!("it announces a control message of {length} bytes")));
        }
        self.fill(HEADER_BYTES + length, deadline)?;
        let message = self.pending.split_off(HEADER_BYTES);
        let tag = &self.pending[LENGTH_BYTES..];
        if !self
            .key
            .verify(&[&self.received.to_le_bytes(), &message], tag)
        {
            return Err(self.broken("a control message is not as it was sent".to_owned()));
        }
        self.pending.clear();
        self.received += 1;
        Ok(message)
    }

    /// Reads until `size` bytes of the frame are here, and never beyond; memory grows as bytes come, not as announced.
    fn fill(&mut self, size: usize, deadline: Option<Instant>) -> Result<(), FabricError> {
        let started = Instant::now();
        while self.pending.len() < size {
            let filled = self.pending.len();
            self.pending.resize(size.min(filled + READ_BYTES), 0);
            let read = timed::read_some(&self.stream, &mut self.pending[filled..], deadline);
            self.pending
                .truncate(filled + read.as_ref().map_or(0, |count| *count));
            read.map_err(|error| {
                timed::failure(
                    &error,
                    &self.peer.to_string(),
                    started,
                    "waiting for a control message",
                )
            })?;
        }
        Ok(())
    }

    fn broken(&mut self, reason: String) -> FabricError {
        self.pending.clear();
        let _may_be_closed_already = self.stream.shutdown(Shutdown::Both);
        FabricError::Protocol {
            rank: None,
            peer: self.peer.to_string(),
            reason,
        }
    }
}

fn unreachable(name: &str, reason: String) -> FabricError {
    FabricError::Unreachable {
        address: name.to_owned(),
        reason,
    }
}

/// The longest message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = LENGTH_BYTES + KEY_BYTES;
/// The most that one read asks for.
const READ_BYTES: usize = 64 * 1024;
const SEND_TIME_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Returns both ends of a channel; the first is the one that connected.
    fn pair() -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let key = Key::from_token("fish");
        thread::scope(|scope| {
            let ours = scope.spawn(|| Channel::connect(&address, &key, soon()).expect("same key"));
            let (stream, _) = listener.accept().expect("connected to above");
            let theirs = Channel::accept(stream, &key, soon()).expect("same key");
            (ours.join().expect("no panic"), theirs)
        })
    }

    #[test]
    fn an_address_that_is_dead_leaves_time_for_the_next() {
        let [closed, silent, honest] =
            [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback"));
        let addresses = [&closed, &silent, &honest].map(|it| it.local_addr().expect("bound"));
        drop(closed);
        let key = Key::from_token("fish");
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = honest.accept().expect("connected to below");
                Channel::accept(stream, &key, soon()).expect("same key");
            });
            let deadline = Instant::now() + Duration::from_secs(3);
            let ours = Channel::connect_to_one_of(addresses.to_vec(), "host", &key, deadline)
                .expect("the last one answers");
            assert_eq!(ours.peer_addr(), addresses[2]);
        });
    }

    fn is_broken(channel: &mut Channel) -> bool {
        let broken = matches!(
            channel.recv(Some(soon())),
            Err(FabricError::Protocol { .. })
        );
        // Nothing is believed after that.
        broken && matches!(channel.recv(Some(soon())), Err(FabricError::Closed { .. }))
    }

    #[test]
    fn messages_cross_both_ways() {
        let (mut ours, mut theirs) = pair();
        for message in [&b""[..], b"order", &[7; 300_000]] {
            thread::scope(|scope| {
                scope.spawn(|| ours.send(message).expect("it listens"));
                assert_eq!(theirs.recv(Some(soon())).expect("it was sent"), message);
            });
        }
        theirs.send(b"report").expect("it listens");
        assert_eq!(ours.recv(None).expect("it was sent"), b"report");
        assert_eq!(ours.local_addr().expect("connected"), theirs.peer_addr());
    }

    #[test]
    fn both_ends_work_on_threads_of_their_own() {
        let (ours, theirs) = pair();
        let (mut to_them, mut from_them) = ours.split();
        let (mut to_us, mut from_us) = theirs.split();
        // More than the buffers hold, both ways at once.
        thread::scope(|scope| {
            scope.spawn(move || {
                (0..64).for_each(|_| to_them.send(&[1; 200_000]).expect("it listens"))
            });
            scope.spawn(move || {
                (0..64).for_each(|_| to_us.send(&[2; 200_000]).expect("it listens"))
            });
            scope.spawn(move || {
                (0..64).for_each(|_| assert_eq!(from_us.recv(None).expect("sent"), [1; 200_000]))
            });
            scope.spawn(move || {
                (0..64).for_each(|_| assert_eq!(from_them.recv(None).expect("sent"), [2; 200_000]))
            });
        });
    }

    #[test]
    fn a_deadline_leaves_a_half_read_message_whole() {
        let (ours, mut theirs) = pair();
        let message = [5; 100];
        let tag = ours.sender.key.mac(&[&0_u64.to_le_bytes(), &message]);
        let frame = [&100_u32.to_le_bytes(), &tag[..], &message].concat();
        timed::write_all(&ours.sender.stream, &frame[..60], soon()).expect("it listens");
        let early = theirs.recv(Some(Instant::now() + Duration::from_millis(20)));
        assert!(matches!(early, Err(FabricError::Silent { .. })));
        timed::write_all(&ours.sender.stream, &frame[60..], soon()).expect("it listens");
        assert_eq!(theirs.recv(Some(soon())).expect("it is whole now"), message);
    }

    #[test]
    fn a_forged_message_is_not_believed() {
        let (mut ours, mut theirs) = pair();
        ours.sender.key = Key::from_token("fish");
        ours.send(b"order").expect("it listens");
        assert!(is_broken(&mut theirs));
    }

    #[test]
    fn a_repeated_message_is_not_believed() {
        let (mut ours, mut theirs) = pair();
        ours.send(b"order").expect("it listens");
        ours.sender.sent = 0;
        ours.send(b"order").expect("it listens");
        assert_eq!(
            theirs.recv(Some(soon())).expect("the first is genuine"),
            b"order"
        );
        assert!(is_broken(&mut theirs));
    }

    #[test]
    fn a_message_out_of_order_is_not_believed() {
        let (mut ours, mut theirs) = pair();
        ours.sender.sent = 1;
        ours.send(b"second").expect("it listens");
        assert!(is_broken(&mut theirs));
    }

    #[test]
    fn a_message_turned_back_is_not_believed() {
        let (mut ours, mut theirs) = pair();
        ours.sender.key = ours.receiver.key.clone();
        ours.send(b"order").expect("it listens");
        assert!(is_broken(&mut theirs));
    }

    #[test]
    fn lengths_are_bounded_both_ways() {
        let (mut ours, mut theirs) = pair();
        assert!(matches!(
            ours.send(&vec![0; MESSAGE_BYTES_MAX + 1]),
            Err(FabricError::Invalid(_))
        ));
        timed::write_all(&ours.sender.stream, &[0xff; HEADER_BYTES], soon()).expect("it listens");
        assert!(is_broken(&mut theirs));
    }

    #[test]
    fn the_end_is_noticed_by_the_other_side_and_by_our_own_receiver() {
        let (ours, mut theirs) = pair();
        let (sender, mut receiver) = ours.split();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || receiver.recv(None));
            sender.close();
            let outcome = waiting.join().expect("no panic");
            assert!(matches!(outcome, Err(FabricError::Closed { .. })));
        });
        assert!(matches!(
            theirs.recv(Some(soon())),
            Err(FabricError::Closed { .. })
        ));
    }

    #[test]
    fn what_is_no_shoal_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().expect("connected to below");
                timed::write_all(&stream, b"HTTP/1.1 400 Bad Request\r\n\r\n", soon())
                    .expect("it listens");
            });
            Channel::connect(&address, &Key::random(), soon()).err()
        });
        assert!(
            matches!(error, Some(FabricError::Protocol { .. })),
            "{error:?}"
        );
        drop(listener);
        let error = Channel::connect(&address, &Key::random(), soon()).err();
        assert!(
            matches!(error, Some(FabricError::Unreachable { .. })),
            "{error:?}"
        );
    }
}
