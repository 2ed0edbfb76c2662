//! What an operation moves, and the state of one frame on its way out and of one on its way in.

use std::io::{self, IoSlice};
use std::time::Instant;

use crate::error::FabricError;
use crate::frame::{self, Abort, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX};
use crate::link::Links;
use crate::wire::{CLOSED, Cause, Peer, lost};

/// What one rank sends and receives in an operation, in rounds: at most one frame to and one from each peer in each.
///
/// A round ends once all of its frames have come and gone. Rounds are this rank's own: what has to agree with a peer is
/// only the order of the frames between the two.
pub(crate) trait Traffic {
    /// Returns the number of rounds.
    fn rounds(&self) -> usize;

    /// Returns how many rounds the sends may be ahead of the receives; what they carry must be there by then.
    fn lead(&self) -> usize {
        0
    }

    /// Returns what the frames of `round` are.
    fn kind(&self, round: usize) -> Kind;

    /// Returns what goes to `peer` in `round`, if anything does.
    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]>;

    /// Returns where to put what comes from `peer` in `round`, if anything does.
    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>>;

    /// Takes note of the end of `round`.
    fn end_round(&mut self, _round: usize) {}
}

/// Refuses what no frame can carry.
pub(crate) fn check_length(bytes: usize) -> Result<(), FabricError> {
    if bytes <= PAYLOAD_BYTES_MAX {
        Ok(())
    } else {
        Err(FabricError::Invalid(format!(
            "{bytes} bytes in one message, at most {PAYLOAD_BYTES_MAX} are possible"
        )))
    }
}

/// A frame that is being sent.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) peer: usize,
    /// Since when it has not moved, as far as anybody has slept on it.
    pub(crate) still_since: Option<Instant>,
    header: [u8; HEADER_BYTES],
    total: usize,
    written: usize,
}

impl Outgoing {
    /// Returns a frame with a payload that [`check_length`] has let pass.
    pub(crate) fn new(peer: usize, kind: Kind, sequence: u32, payload: &[u8]) -> Self {
        let header = Header {
            kind,
            sequence,
            length: u32::try_from(payload.len()).expect("lengths are checked"),
        };
        Self {
            peer,
            still_since: None,
            header: header.encode(),
            total: HEADER_BYTES + payload.len(),
            written: 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.written == self.total
    }

    pub(crate) fn is_midway(&self) -> bool {
        self.written > 0 && !self.is_done()
    }

    /// Writes what the link takes of header and `payload`, the one it was made with; true when it took something.
    pub(crate) fn push(&mut self, links: &mut dyn Links, payload: &[u8]) -> io::Result<bool> {
        let header = &self.header[self.written.min(HEADER_BYTES)..];
        let payload = &payload[self.written.saturating_sub(HEADER_BYTES)..];
        let written = links.write(self.peer, &[IoSlice::new(header), IoSlice::new(payload)])?;
        self.written += written;
        if written > 0 {
            self.still_since = None;
        }
        Ok(written > 0)
    }
}

/// A frame that is being received.
pub(crate) struct Incoming {
    pub(crate) peer: usize,
    /// Since when it has not moved, as far as anybody has slept on it.
    pub(crate) still_since: Option<Instant>,
    expected: (Kind, u32),
    /// Length of the payload, once the header is here.
    length: Option<usize>,
    filled: usize,
}

/// Where a payload goes.
pub(crate) enum Destination<'a> {
    /// The payload has exactly this length.
    Slice(&'a mut [u8]),
    /// The sender decides on the length.
    Vec(&'a mut Vec<u8>),
}

impl Incoming {
    /// Returns a frame whose header must say `kind` and `sequence`.
    pub(crate) fn new(peer: usize, kind: Kind, sequence: u32) -> Self {
        Self {
            peer,
            still_since: None,
            expected: (kind, sequence),
            length: None,
            filled: 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.length == Some(self.filled)
    }

    /// Returns how much of the payload is still to come, as far as that is known.
    pub(crate) fn bytes_left(&self) -> usize {
        self.length.map_or(0, |length| length - self.filled)
    }

    /// Uses what is in the inbox and reads what is there for `into`; true when something moved.
    pub(crate) fn pull(
        &mut self,
        links: &mut dyn Links,
        peer: &mut Peer,
        mut into: Destination<'_>,
    ) -> Result<bool, Cause> {
        let before = (self.length, self.filled);
        self.take(peer, &mut into)?;
        let mut came = self.is_done();
        if self.length.is_none() {
            came = peer.fill(links, self.peer, into.read_ahead_bytes())?;
            self.take(peer, &mut into)?;
        }
        if self.bytes_left() > 0 {
            match links.read(self.peer, into.room(self.filled, self.bytes_left())) {
                Ok(None) => {}
                Ok(Some(0)) => {
                    return Err(Cause::Lost {
                        peer: self.peer,
                        reason: CLOSED.to_owned(),
                    });
                }
                Ok(Some(count)) => {
                    self.filled += count;
                    came = true;
                }
                Err(error) => return Err(lost(self.peer, &error)),
            }
        }
        // News that the group is over are none of this frame.
        if (self.length, self.filled) != before {
            self.still_since = None;
        }
        Ok(came)
    }

    /// Uses what is in the inbox.
    fn take(&mut self, peer: &mut Peer, into: &mut Destination<'_>) -> Result<(), Cause> {
        if self.length.is_none() {
            let header = Header::decode(peer.inbox.bytes()).map_err(|error| (self.peer, error))?;
            let Some(header) = header else {
                return Ok(());
            };
            if header.kind == Kind::Abort {
                return self.take_abort(peer);
            }
            let length = self.check(header, into)?;
            peer.inbox.consume(HEADER_BYTES);
            self.length = Some(length);
            if let Destination::Vec(bytes) = into {
                bytes.truncate(length);
            }
        }
        while self.bytes_left() > 0 && !peer.inbox.bytes().is_empty() {
            let room = into.room(self.filled, self.bytes_left());
            let count = room.len().min(peer.inbox.bytes().len());
            room[..count].copy_from_slice(&peer.inbox.bytes()[..count]);
            peer.inbox.consume(count);
            self.filled += count;
        }
        Ok(())
    }

    fn take_abort(&self, peer: &Peer) -> Result<(), Cause> {
        match frame::decode(peer.inbox.bytes()).map_err(|error| (self.peer, error))? {
            None => Ok(()),
            Some(whole) => Err(match Abort::decode(whole.payload) {
                Some(abort) => Cause::Aborted(abort),
                None => Cause::Broken {
                    peer: self.peer,
                    reason: "its last message names no rank".to_owned(),
                },
            }),
        }
    }

    fn check(&self, header: Header, into: &Destination<'_>) -> Result<usize, Cause> {
        let broken = |reason| Cause::Broken {
            peer: self.peer,
            reason,
        };
        let (kind, sequence) = self.expected;
        if (header.kind, header.sequence) != (kind, sequence) {
            return Err(broken(format!(
                "it sent {:?} number {} where {kind:?} number {sequence} is due",
                header.kind, header.sequence
            )));
        }
        let length = header.length as usize;
        match into {
            Destination::Slice(slice) if slice.len() != length => {
                let due = slice.len();
                Err(broken(format!(
                    "it sent {length} bytes in {kind:?} number {sequence} where {due} are due"
                )))
            }
            _ => Ok(length),
        }
    }
}

impl Destination<'_> {
    /// Returns room for the next of `left` bytes, after `filled`. Grows as bytes come, not as they are announced.
    fn room(&mut self, filled: usize, left: usize) -> &mut [u8] {
        match self {
            Self::Slice(slice) => &mut slice[filled..filled + left],
            Self::Vec(bytes) => {
                if bytes.len() == filled {
                    bytes.resize(filled + left.min(filled.max(GROWTH_BYTES)), 0);
                }
                &mut bytes[filled..]
            }
        }
    }

    /// Returns how much to read when a header is due: with the header also a payload that is short enough for being copied
    /// to cost less than being read by itself.
    fn read_ahead_bytes(&self) -> usize {
        match self {
            Self::Slice(slice) if slice.len() > READ_AHEAD_BYTES => HEADER_BYTES,
            _ => usize::MAX,
        }
    }
}

/// The least a receiving buffer grows by.
const GROWTH_BYTES: usize = 1 << 20;
/// The longest payload that is read together with its header.
const READ_AHEAD_BYTES: usize = 8 * 1024;
