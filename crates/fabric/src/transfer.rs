//! One frame on its way out, and one on its way in.

use std::io::{self, IoSlice};
use std::time::Instant;

use crate::error::FabricError;
use crate::frame::{self, Abort, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX};
use crate::link::Links;
use crate::wire::{CLOSED, Cause, Peer, lost};

/// A frame that is being sent.
#[derive(Clone)]
pub(crate) struct Outgoing<'a> {
    pub(crate) peer: usize,
    /// Since when it has not moved, as far as anybody has slept on it.
    pub(crate) still_since: Option<Instant>,
    header: [u8; HEADER_BYTES],
    payload: &'a [u8],
    written: usize,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(peer: usize, payload: &'a [u8]) -> Self {
        Self {
            peer,
            still_since: None,
            header: [0; HEADER_BYTES],
            payload,
            written: 0,
        }
    }

    /// Writes the header.
    pub(crate) fn address(&mut self, kind: Kind, sequence: u32) -> Result<(), FabricError> {
        let length = u32::try_from(self.payload.len())
            .ok()
            .filter(|length| *length as usize <= PAYLOAD_BYTES_MAX);
        let Some(length) = length else {
            let bytes = self.payload.len();
            return Err(FabricError::Invalid(format!(
                "{bytes} bytes in one message, at most {PAYLOAD_BYTES_MAX} are possible"
            )));
        };
        self.header = Header {
            kind,
            sequence,
            length,
        }
        .encode();
        Ok(())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.written == HEADER_BYTES + self.payload.len()
    }

    pub(crate) fn is_midway(&self) -> bool {
        self.written > 0 && !self.is_done()
    }

    /// Writes what the link takes; true when it took something.
    pub(crate) fn push(&mut self, links: &mut dyn Links) -> io::Result<bool> {
        let header = &self.header[self.written.min(HEADER_BYTES)..];
        let payload = &self.payload[self.written.saturating_sub(HEADER_BYTES)..];
        let written = links.write(self.peer, &[IoSlice::new(header), IoSlice::new(payload)])?;
        self.written += written;
        if written > 0 {
            self.still_since = None;
        }
        Ok(written > 0)
    }
}

/// A frame that is being received.
pub(crate) struct Incoming<'a> {
    pub(crate) peer: usize,
    /// Since when it has not moved, as far as anybody has slept on it.
    pub(crate) still_since: Option<Instant>,
    expected: (Kind, u32),
    into: Destination<'a>,
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

impl<'a> Incoming<'a> {
    pub(crate) fn new(peer: usize, into: Destination<'a>) -> Self {
        Self {
            peer,
            still_since: None,
            expected: (Kind::Barrier, 0),
            into,
            length: None,
            filled: 0,
        }
    }

    /// Sets what the header must say.
    pub(crate) fn expect(&mut self, kind: Kind, sequence: u32) {
        self.expected = (kind, sequence);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.length == Some(self.filled)
    }

    /// Returns how much of the payload is still to come, as far as that is known.
    pub(crate) fn bytes_left(&self) -> usize {
        self.length.map_or(0, |length| length - self.filled)
    }

    /// Uses what is in the inbox and reads at most once; true when something moved.
    pub(crate) fn pull(&mut self, links: &mut dyn Links, peer: &mut Peer) -> Result<bool, Cause> {
        self.take(peer)?;
        if self.is_done() {
            return Ok(true);
        }
        let came = if self.bytes_left() > 0 {
            match links.read(self.peer, self.into.room(self.filled, self.bytes_left())) {
                Ok(None) => false,
                Ok(Some(0)) => {
                    return Err(Cause::Lost {
                        peer: self.peer,
                        reason: CLOSED.to_owned(),
                    });
                }
                Ok(Some(count)) => {
                    self.filled += count;
                    true
                }
                Err(error) => return Err(lost(self.peer, &error)),
            }
        } else {
            let came = peer.fill(links, self.peer)?;
            self.take(peer)?;
            came
        };
        if came {
            self.still_since = None;
        }
        Ok(came)
    }

    /// Uses what is in the inbox.
    fn take(&mut self, peer: &mut Peer) -> Result<(), Cause> {
        if self.length.is_none() {
            let header = Header::decode(peer.inbox.bytes()).map_err(|error| (self.peer, error))?;
            let Some(header) = header else {
                return Ok(());
            };
            if header.kind == Kind::Abort {
                return self.take_abort(peer);
            }
            let length = self.check(header)?;
            peer.inbox.consume(HEADER_BYTES);
            self.length = Some(length);
            if let Destination::Vec(bytes) = &mut self.into {
                bytes.truncate(length);
            }
        }
        while self.bytes_left() > 0 && !peer.inbox.bytes().is_empty() {
            let room = self.into.room(self.filled, self.bytes_left());
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

    fn check(&self, header: Header) -> Result<usize, Cause> {
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
        match &self.into {
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
}

/// The least a receiving buffer grows by.
const GROWTH_BYTES: usize = 1 << 20;
