//! One link over several TCP connections, each on a cable of its own.
//!
//! Which connection carries a byte follows from its place in the stream alone, so nothing is written beside the bytes, and a
//! short message mostly takes one of them. Each side goes on in order: what comes next waits for the connection whose
//! turn it is, while the others carry what was put into them before.
//!
//! The end of any connection is the end of the link. Whoever notices it writes nothing more, tells the other end so over all
//! of them, and reads what that has still written in the order of the stream: so the end overtakes no last words.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::event::{PollFd, PollFlags};
use smallvec::SmallVec;

use crate::link::Interest;
use crate::schedule::{STRANDS_MAX, Schedule};
use crate::socket::unless_blocked;

/// A link whose bytes are striped over connections.
pub(crate) struct StripedLink {
    strands: Vec<Strand>,
    schedule: Schedule,
    /// Bytes written and read so far: the places of the next ones.
    sent: u64,
    received: u64,
    /// The first that was seen to end, and how.
    over: Option<(usize, String)>,
    /// Nothing more can be read after that.
    drained: bool,
    /// Nobody hears the other end out while a write waits: writes fail, and what has come can still be read.
    forsaken: bool,
}

struct Strand {
    stream: TcpStream,
    /// Where it runs, as errors call it.
    name: String,
}

impl StripedLink {
    /// Takes connections that do not block, in the same order at both ends, and how much of the bytes each one carries.
    pub(crate) fn new(streams: Vec<TcpStream>, weights: &[u8]) -> io::Result<Self> {
        let strand = |stream: TcpStream| {
            let (near, far) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
            let name = format!(
                "the cable from {} to {}",
                near.to_canonical(),
                far.to_canonical()
            );
            Ok(Strand { stream, name })
        };
        Ok(Self {
            strands: streams.into_iter().map(strand).collect::<io::Result<_>>()?,
            schedule: Schedule::new(weights, UNIT_BYTES),
            sent: 0,
            received: 0,
            over: None,
            drained: false,
            forsaken: false,
        })
    }

    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.over.is_some() {
            // What the other end has said before is heard first.
            return if self.drained || self.forsaken {
                Err(self.ended())
            } else {
                Ok(0)
            };
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut taken = 0;
        while taken < total {
            let (strand, room) = self.schedule.turn(self.sent);
            let until = total.min(taken + room);
            let bite = bite(parts, taken, room);
            let mut stream = &self.strands[strand].stream;
            match unless_blocked(stream.write_vectored(&bite)) {
                Ok(None) => break,
                Ok(Some(count)) => {
                    taken += count;
                    self.sent += count as u64;
                    if taken < until {
                        break;
                    }
                }
                Err(error) => {
                    self.end(strand, &error.to_string());
                    break;
                }
            }
        }
        Ok(taken)
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        while filled < into.len() && !self.drained {
            let (strand, room) = self.schedule.turn(self.received);
            let until = into.len().min(filled + room);
            let mut stream = &self.strands[strand].stream;
            match unless_blocked(stream.read(&mut into[filled..until])) {
                Ok(None) => break,
                Ok(Some(0)) => {
                    self.end(strand, "it was closed");
                    self.drained = true;
                }
                Ok(Some(count)) => {
                    filled += count;
                    self.received += count as u64;
                    if filled < until {
                        break;
                    }
                }
                Err(error) => {
                    self.end(strand, &error.to_string());
                    self.drained = true;
                }
            }
        }
        match filled {
            0 if self.drained => Err(self.ended()),
            0 => Ok(None),
            count => Ok(Some(count)),
        }
    }

    /// Says whether a sleep on [`files`](Self::files) ends by itself.
    pub(crate) fn prepare_sleep(&mut self, interest: Interest) -> bool {
        if self.over.is_some() && interest.write && !interest.read {
            self.forsaken = true;
            return false;
        }
        !self.drained
    }

    /// Returns what to sleep on for `interest`, with a bit for each: the connections whose turn it is, and the end of any other.
    pub(crate) fn files(&self, interest: Interest) -> SmallVec<[(u8, PollFd<'_>); STRANDS_MAX]> {
        let strands = self.strands.iter().enumerate();
        let watched = strands.map(|(place, strand)| {
            let flags = self.flags(interest, place);
            (1 << place, flags, &strand.stream)
        });
        // Once one has ended, the ends of others would only say so again.
        let news = watched.filter(|(_, flags, _)| self.over.is_none() || !flags.is_empty());
        news.map(|(bit, flags, stream)| (bit, PollFd::new(stream, flags)))
            .collect()
    }

    /// Takes note of the connections that have news, by their bits.
    pub(crate) fn awake(&mut self, interest: Interest, news: u8) {
        for place in 0..self.strands.len() {
            let is_turn = PollFlags::IN | PollFlags::OUT;
            let only_ends = !self.flags(interest, place).intersects(is_turn);
            if news >> place & 1 == 1 && only_ends {
                self.end(place, "it was closed");
            }
        }
    }

    /// Names the connection whose turn it is, or the one that has ended.
    pub(crate) fn turn(&self, reads: bool) -> &str {
        let at = if reads { self.received } else { self.sent };
        let place = match self.over {
            Some((ended, _)) => ended,
            None => self.schedule.turn(at).0,
        };
        &self.strands[place].name
    }

    /// Returns which connection carries which bytes.
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What to look for on a connection.
    fn flags(&self, interest: Interest, place: usize) -> PollFlags {
        let mut flags = PollFlags::empty();
        let is_read = place == self.schedule.turn(self.received).0;
        flags.set(PollFlags::IN, interest.read && is_read);
        if self.over.is_some() {
            return flags;
        }
        let is_written = place == self.schedule.turn(self.sent).0;
        flags.set(PollFlags::OUT, interest.write && is_written);
        // Where it can be asked for: elsewhere an end without an error is noticed in its turn.
        #[cfg(target_os = "linux")]
        flags.set(PollFlags::RDHUP, !is_read);
        flags
    }

    /// Ends the link because of one of its connections.
    fn end(&mut self, place: usize, how: &str) {
        if self.over.is_some() {
            return;
        }
        self.over = Some((place, how.to_owned()));
        for strand in &self.strands {
            let _may_have_ended = strand.stream.shutdown(Shutdown::Write);
        }
    }

    fn ended(&self) -> io::Error {
        let ended = self.over.as_ref();
        let ended = ended.map(|(place, how)| format!("{}: {how}", self.strands[*place].name));
        io::Error::new(io::ErrorKind::ConnectionAborted, ended.unwrap_or_default())
    }
}

/// Returns at most `room` bytes of `parts` after the first `skip`.
fn bite<'a>(parts: &'a [IoSlice<'_>], skip: usize, room: usize) -> SmallVec<[IoSlice<'a>; 2]> {
    let (mut skip, mut left) = (skip, room);
    let pieces = parts.iter().map(|part| {
        let piece = &part[skip.min(part.len())..];
        skip -= skip.min(part.len());
        let piece = &piece[..left.min(piece.len())];
        left -= piece.len();
        IoSlice::new(piece)
    });
    pieces.filter(|piece| !piece.is_empty()).collect()
}

/// What goes over one connection before it is the turn of the next: what the system hands to a device at once.
const UNIT_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::socket::poll_for;

    /// Both ends of `count` connections.
    fn strands(count: usize) -> [Vec<TcpStream>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let pairs = (0..count).map(|_| {
            let ours = TcpStream::connect(address).expect("listening");
            let (theirs, _) = listener.accept().expect("connected");
            for stream in [&ours, &theirs] {
                stream.set_nonblocking(true).expect("a fresh socket");
            }
            (ours, theirs)
        });
        let (ours, theirs) = pairs.unzip();
        [ours, theirs]
    }

    fn links(weights: &[u8]) -> [StripedLink; 2] {
        strands(weights.len()).map(|strands| StripedLink::new(strands, weights).expect("fresh"))
    }

    proptest! {
        #[test]
        fn bites_are_what_was_asked_for(
            lens in prop::collection::vec(0..20_usize, 0..4),
            skip in 0..70_usize,
            room in 0..40_usize,
        ) {
            let mut next = 0..;
            let parts: Vec<Vec<u8>> = lens.iter().map(|len| next.by_ref().take(*len).collect()).collect();
            let whole = parts.concat();
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let bitten: Vec<u8> = bite(&slices, skip, room).iter().flat_map(|piece| piece.to_vec()).collect();
            let expected = &whole[skip.min(whole.len())..];
            prop_assert_eq!(&bitten, &expected[..room.min(expected.len())]);
        }
    }

    #[test]
    fn bytes_arrive_in_order_and_over_all_that_have_weight() {
        let [mut ours, mut theirs] = links(&[0, 2, 1]);
        assert_eq!(ours.schedule().width(), 2);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let (mut out, mut came) = (0, Vec::new());
        while came.len() < sent.len() {
            // Header and payload, as frames are written.
            let (header, payload) = sent[out..].split_at(16.min(sent.len() - out));
            out += ours
                .write(&[IoSlice::new(header), IoSlice::new(payload)])
                .expect("it is there");
            let mut buffer = [0; 100_000];
            if let Some(count) = theirs.read(&mut buffer).expect("it is there") {
                came.extend_from_slice(&buffer[..count]);
            }
        }
        assert!(came == sent);
    }

    /// Reads until the link ends; with no time limit, so that an end that nobody notices hangs the test.
    fn hear_out(link: &mut StripedLink) -> (usize, String) {
        const INTEREST: Interest = Interest::read(0);
        let mut heard = 0;
        loop {
            match link.read(&mut [0; 1000]) {
                Ok(Some(count)) => heard += count,
                Err(error) => return (heard, error.to_string()),
                Ok(None) => {
                    let mut news = 0;
                    if link.prepare_sleep(INTEREST) {
                        let (bits, mut fds): (Vec<u8>, Vec<_>) =
                            link.files(INTEREST).into_iter().unzip();
                        poll_for(&mut fds, Duration::from_secs(24 * 60 * 60)).expect("it waits");
                        for (bit, fd) in bits.into_iter().zip(fds) {
                            news |= if fd.revents().is_empty() { 0 } else { bit };
                        }
                    }
                    link.awake(INTEREST, news);
                }
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_end_of_one_is_the_end_of_all_and_overtakes_no_last_words() {
        for lost in 0..3 {
            let [mut ours, mut theirs] = links(&[1; 3]);
            // It begins the second one, so that the third is seen only to end.
            let said = vec![7; UNIT_BYTES as usize + 5];
            let written = theirs.write(&[IoSlice::new(&said)]).expect("room");
            let torn = theirs.strands[lost].stream.shutdown(Shutdown::Both);
            torn.expect("it was open");
            let (ours, theirs) = std::thread::scope(|scope| {
                let ours = scope.spawn(|| hear_out(&mut ours));
                let theirs = hear_out(&mut theirs);
                (ours.join().expect("no panic"), theirs)
            });
            assert_eq!((ours.0, theirs.0), (written, 0), "strand {lost}");
            for error in [ours.1, theirs.1] {
                assert!(error.starts_with("the cable from 127.0.0.1"), "{error}");
            }
        }
    }

    #[test]
    fn what_an_end_has_said_is_heard_although_nobody_waited_for_it() {
        let [mut ours, mut theirs] = links(&[1, 1]);
        let written = theirs.write(&[IoSlice::new(b"rank 2 was lost")]);
        drop(theirs);
        ours.end(1, "it was closed");
        assert!(!ours.prepare_sleep(Interest::write(0)), "a write fails now");
        assert!(ours.write(&[IoSlice::new(b"more")]).is_err());
        assert_eq!(hear_out(&mut ours).0, written.expect("room"));
    }

    #[test]
    fn nothing_is_written_to_an_end_that_has_left() {
        let [mut ours, theirs] = links(&[1, 1]);
        drop(theirs);
        hear_out(&mut ours);
        let error = ours.write(&[IoSlice::new(b"too late")]);
        assert!(
            error
                .expect_err("it is over")
                .to_string()
                .contains("the cable from")
        );
    }
}
