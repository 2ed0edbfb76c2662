//! What has been read from one peer and not been used yet.

use crate::frame::{self, Abort, Kind};

/// A bounded buffer between a link and the frames in it: one read brings header and payload of a small message.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Returns the bytes that are there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == INBOX_BYTES
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Returns room for more bytes; empty only when the inbox is full.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        // Moving is rare: the buffer is empty again after nearly every message.
        if self.end == INBOX_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes note of `count` bytes that were put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Looks through the whole frames here, without using them up, for news that the group is over.
    pub(crate) fn abort(&self) -> Option<Abort> {
        let mut bytes = self.bytes();
        while let Ok(Some(found)) = frame::decode(bytes) {
            if found.header.kind == Kind::Abort {
                return Abort::decode(found.payload);
            }
            bytes = &bytes[frame::HEADER_BYTES + found.payload.len()..];
        }
        None
    }
}

/// Bound of what is read from a peer before it is asked for; more than any message of a decode step.
const INBOX_BYTES: usize = 64 * 1024;
