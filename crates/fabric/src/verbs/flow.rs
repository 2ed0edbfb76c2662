//! An ordered stream of bytes each way over a queue pair.
//!
//! Each message fills one slot at the other end, which must have been posted before: a sender holds a credit for each one
//! that is. Emptied slots are posted again, and given back as credits with the next message, or with an empty one once
//! half of them are owed. The last credit is only for giving credits back, so the two ends cannot wait for each other.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use super::endpoint::{SLOT_BYTES, SLOTS};
use super::message::{HEADER_BYTES, Header};
use super::pair::QueuePair;

/// Both directions of a connected queue pair.
pub(crate) struct Flow {
    pub(crate) pair: QueuePair,
    /// Slots to send from that are not under way.
    free: Vec<usize>,
    credits: usize,
    /// Messages ever posted.
    pub(crate) sent: u64,
    /// Slots with bytes that nobody has read yet.
    arrived: VecDeque<(usize, Range<usize>)>,
    /// Messages ever received.
    pub(crate) received: u64,
    /// Slots posted again since credit was last given.
    owed: usize,
    /// Slots under way with bytes of memory that was lent.
    lending: Vec<usize>,
    /// Bytes ever sent from such memory.
    pub(crate) uncopied_bytes: u64,
    /// Whether the port was down when it was last looked at.
    port_was_lost: bool,
    /// Why nothing moves any more.
    failure: Option<String>,
}

impl Flow {
    /// Takes a queue pair that is connected.
    pub(crate) fn new(pair: QueuePair) -> Self {
        Self {
            free: (SLOTS..2 * SLOTS).collect(),
            credits: SLOTS,
            sent: 0,
            arrived: VecDeque::with_capacity(SLOTS),
            received: 0,
            owed: 0,
            lending: Vec::with_capacity(SLOTS),
            uncopied_bytes: 0,
            port_was_lost: false,
            failure: None,
            pair,
        }
    }

    /// Says whether the first message of the other end has come; nothing yet where it still may.
    ///
    /// That the devices took each other's addresses does not mean that they reach each other.
    pub(crate) fn greeted(&self) -> Option<Result<(), &str>> {
        match self.received {
            0 => self.failure().map(Err),
            _ => Some(Ok(())),
        }
    }

    /// Sends the message that makes the other end [greeted](Self::greeted).
    pub(crate) fn say_hello(&mut self) {
        self.send(&[], 0..0);
    }

    /// Takes what has come, as it was when [`progress`](Self::progress) was last called; nothing when nothing has.
    pub(crate) fn take(&mut self, into: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < into.len() {
            let Some((slot, place)) = self.arrived.front_mut() else {
                break;
            };
            let step = place.len().min(into.len() - filled);
            let from = place.start..place.start + step;
            place.start += step;
            let (slot, is_empty) = (*slot, place.start == place.end);
            into[filled..filled + step].copy_from_slice(&self.pair.slot(slot)[from]);
            filled += step;
            if is_empty {
                self.arrived.pop_front();
                self.repost(slot);
            }
        }
        filled
    }

    /// Whether bytes have come.
    pub(crate) fn is_readable(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether there is room for bytes.
    pub(crate) fn is_writable(&self) -> bool {
        self.failure.is_none() && self.credits > 1 && !self.free.is_empty()
    }

    /// Returns why nothing moves any more, if so.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the device is done with all that was sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.free.len() == SLOTS
    }

    /// Returns how many messages in lent memory the device is not done with.
    pub(crate) fn unsettled(&self) -> usize {
        self.lending.len()
    }

    /// Asks to be woken by the device; false when it cannot, and one has to look again and again.
    pub(crate) fn arm(&mut self) -> bool {
        if self.pair.file().is_none() {
            return false;
        }
        if let Err(error) = self.pair.completions().arm() {
            self.fail(format!("the device gives no wake-ups ({error})"));
        }
        true
    }

    /// Takes note of all that the device has done.
    pub(crate) fn progress(&mut self) {
        loop {
            let count = match self.pair.poll() {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return self.fail(error.to_string()),
            };
            for index in 0..count {
                self.note(index);
            }
        }
        self.give_credit();
    }

    /// Takes note of one completion.
    fn note(&mut self, index: usize) {
        let completion = self.pair.taken(index);
        let slot = completion.slot;
        // However it ended, the device reads no more for it.
        self.lending.retain(|lending| *lending != slot);
        let bytes = match completion.outcome {
            Ok(bytes) => bytes,
            Err(status) => return self.fail(status),
        };
        if slot >= SLOTS {
            return self.free.push(slot);
        }
        let message = match bytes == SLOT_BYTES {
            true => Header::decode(self.pair.slot(slot)),
            false => Err(format!("a message has {bytes} bytes")),
        };
        match message {
            Err(reason) => self.fail(reason),
            // The slot is posted again, and no news to a peer that did not fill it.
            Ok(header) if header.tag != self.pair.peer_psn() => self.post(slot),
            Ok(header) if header.sequence != self.received => {
                let (expected, found) = (self.received, header.sequence);
                self.fail(format!(
                    "message {found} arrived where {expected} was expected: one was lost"
                ));
            }
            Ok(header) if self.credits + header.credits > SLOTS => {
                self.fail("the peer gives more credit than it has".to_owned());
            }
            Ok(header) => {
                self.received += 1;
                self.credits += header.credits;
                match header.length {
                    0 => self.repost(slot),
                    length => {
                        let place = HEADER_BYTES..HEADER_BYTES + length;
                        self.arrived.push_back((slot, place));
                    }
                }
            }
        }
    }

    /// Asks whether the port is still up: a device may stay silent on what it can no longer send, or receive. Down at one look
    /// may be a moment that costs nothing; down at two in a row is the end.
    pub(crate) fn look_at_port(&mut self) {
        let reason = self.pair.device().port_is_lost();
        let was_lost = std::mem::replace(&mut self.port_was_lost, reason.is_some());
        if let Some(reason) = reason.filter(|_| was_lost) {
            self.fail(reason);
        }
    }

    fn repost(&mut self, slot: usize) {
        self.owed += 1;
        self.post(slot);
    }

    fn post(&mut self, slot: usize) {
        if let Err(error) = self.pair.post_recv(slot) {
            self.fail(format!("the device takes no receive ({error})"));
        }
    }

    /// Gives credit by itself when much is owed and nothing else may be sent for long.
    pub(crate) fn give_credit(&mut self) {
        let may = self.failure.is_none() && self.credits > 0 && !self.free.is_empty();
        if may && self.owed >= SLOTS / 2 {
            self.send(&[], 0..0);
        }
    }

    /// Sends one message of what fits of a range of `parts` put end to end, for which there has to be [room](Self::is_writable);
    /// returns how much that is.
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>], range: Range<usize>) -> usize {
        let slot = self.free.pop().expect("a slot was free");
        let tag = self.pair.psn();
        let (mut skip, mut end) = (range.start, HEADER_BYTES);
        let full = SLOT_BYTES.min(HEADER_BYTES + range.len());
        let mut lent = None;
        for part in parts {
            let passed = skip.min(part.len());
            skip -= passed;
            let part = &part[passed..];
            let part = &part[..part.len().min(full - end)];
            let from = end;
            end += part.len();
            if part.len() >= UNCOPIED_BYTES_MIN
                && let Some(place) = self.pair.find(part)
            {
                lent = Some((from, place));
                self.lending.push(slot);
                self.uncopied_bytes += part.len() as u64;
                // What follows it takes a message of its own.
                break;
            }
            self.pair.slot_mut(slot)[from..end].copy_from_slice(part);
        }
        let length = end - HEADER_BYTES;
        let header = Header {
            tag,
            length,
            sequence: self.sent,
            credits: std::mem::take(&mut self.owed),
        };
        self.pair.slot_mut(slot)[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.credits -= 1;
        self.sent += 1;
        if let Err(error) = self.pair.post_send(slot, lent) {
            self.lending.retain(|lending| *lending != slot);
            self.fail(format!("the device takes no send ({error})"));
        }
        length
    }

    /// The first reason is the one that counts: the device gives all requests back after it.
    fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(reason);
    }
}

/// Less is copied sooner than a device gathers it.
const UNCOPIED_BYTES_MIN: usize = 4096;
