//! One ordered stream of bytes each way over several devices.
//!
//! Which flow carries a byte follows from its place in the stream, as with cables. What is read next waits for the flow
//! whose turn it is, while the others go on with what they have. One that fails ends them all.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::endpoint::{Kind, SLOT_BYTES};
use super::flow::Flow;
use super::message::HEADER_BYTES;
use crate::link::Transport;
use crate::pages::Pages;
use crate::schedule::{Schedule, TOO_SLOW, weights};

/// The flows between two ranks, each of a device of its own.
pub(crate) struct Flows {
    flows: Vec<Flow>,
    /// What errors call each of them.
    names: Vec<String>,
    schedule: Schedule,
    /// Bytes written and read so far: the places of the next ones.
    written: u64,
    read: u64,
    /// Devices that carry nothing, and why.
    pub(crate) left_out: Vec<String>,
}

impl Flows {
    /// Takes what works, in the same order at both ends, each with the speed of its ports in Mbit/s or 0; leaves out what is
    /// too slow for the others. Nothing where there is nothing.
    pub(crate) fn new(flows: Vec<(Flow, u32)>, mut left_out: Vec<String>) -> Option<Self> {
        let speeds: Vec<Option<u32>> = flows.iter().map(|(_, speed)| Some(*speed)).collect();
        let mut weights = weights(&speeds);
        let (mut kept, mut names) = (Vec::new(), Vec::new());
        for ((flow, _), weight) in flows.into_iter().zip(&weights) {
            let name = &flow.pair.device().name;
            if *weight > 0 {
                names.push(format!("the device {name}"));
                kept.push(flow);
            } else {
                left_out.push(format!("not over {name}: {TOO_SLOW}"));
            }
        }
        weights.retain(|weight| *weight > 0);
        // One that has no other beside it never has to end a message early.
        let unit_bytes = if kept.len() == 1 {
            u64::MAX
        } else {
            UNIT_BYTES
        };
        (!kept.is_empty()).then(|| Self {
            flows: kept,
            names,
            schedule: Schedule::new(&weights, unit_bytes),
            written: 0,
            read: 0,
            left_out,
        })
    }

    /// Writes what there are slots for.
    ///
    /// # Errors
    /// Why nothing can be written any more.
    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.progress();
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let all: usize = parts.iter().map(|part| part.len()).sum();
        let (schedule, flows) = (&self.schedule, &mut self.flows);
        Ok(stripe(
            schedule,
            &mut self.written,
            all.min(BITE_BYTES),
            |place, range| match flows[place].is_writable() {
                true => flows[place].send(parts, range),
                false => 0,
            },
        ))
    }

    /// Reads what is there; nothing when nothing is.
    ///
    /// # Errors
    /// Why nothing more can come; what had come before is read first.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Of all, before any is read: where nothing is found then, what has been received by now has been read.
        self.progress();
        let limit = into.len().min(BITE_BYTES);
        let (schedule, flows) = (&self.schedule, &mut self.flows);
        let filled = stripe(schedule, &mut self.read, limit, |place, range| {
            flows[place].take(&mut into[range])
        });
        for flow in flows {
            flow.give_credit();
        }
        match self.failure() {
            Some(error) if filled == 0 => Err(error),
            _ => Ok(filled),
        }
    }

    /// Whether a read would find bytes, or an error.
    pub(crate) fn is_readable(&self) -> bool {
        let (place, _) = self.schedule.turn(self.read);
        self.flows[place].is_readable() || self.has_failed()
    }

    /// Whether there is room for bytes.
    pub(crate) fn is_writable(&self) -> bool {
        let (place, _) = self.schedule.turn(self.written);
        self.flows[place].is_writable() && !self.has_failed()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.flows.iter().any(|flow| flow.failure().is_some())
    }

    /// Whether the devices are done with all that was sent.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flows.iter().all(Flow::is_flushed)
    }

    /// Makes memory known to the devices, so that what lies there goes out without being copied; says why some copy it.
    pub(crate) fn lend(&mut self, pages: &Arc<Pages>) -> Vec<String> {
        let flows = self.flows.iter_mut();
        flows
            .filter_map(|flow| flow.pair.lend(pages).err())
            .collect()
    }

    /// Returns how many messages in lent memory the devices are not done with.
    pub(crate) fn unsettled(&self) -> usize {
        self.flows.iter().map(Flow::unsettled).sum()
    }

    /// Returns how many bytes were ever sent from such memory.
    pub(crate) fn uncopied_bytes(&self) -> u64 {
        self.flows.iter().map(|flow| flow.uncopied_bytes).sum()
    }

    /// Returns how many messages were ever posted.
    pub(crate) fn messages_sent(&self) -> u64 {
        self.flows.iter().map(|flow| flow.sent).sum()
    }

    /// Returns how many messages ever came.
    pub(crate) fn messages_received(&self) -> u64 {
        self.flows.iter().map(|flow| flow.received).sum()
    }

    /// Asks to be woken by the devices; false when one cannot, and one has to look again and again.
    pub(crate) fn arm(&mut self) -> bool {
        let mut are_armed = true;
        for flow in &mut self.flows {
            are_armed &= flow.arm();
        }
        are_armed
    }

    /// Takes note of all that the devices have done.
    pub(crate) fn progress(&mut self) {
        self.flows.iter_mut().for_each(Flow::progress);
    }

    /// Asks the devices whether their ports are still up.
    pub(crate) fn look_at_ports(&mut self) {
        self.flows.iter_mut().for_each(Flow::look_at_port);
    }

    /// Hears what woke a sleeper.
    pub(crate) fn hear(&mut self) {
        for flow in &mut self.flows {
            flow.pair.completions().hear();
        }
    }

    /// Returns the files that wake a sleeper.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.flows.iter().filter_map(|flow| flow.pair.file())
    }

    /// Whether each of them has such a file.
    pub(crate) fn have_files(&self) -> bool {
        self.flows.iter().all(|flow| flow.pair.file().is_some())
    }

    /// Names the device whose turn it is, or the one that has failed; nothing where there is one only.
    pub(crate) fn turn(&self, reads: bool) -> Option<&str> {
        let at = if reads { self.read } else { self.written };
        let failed = self.flows.iter().position(|flow| flow.failure().is_some());
        let place = failed.unwrap_or_else(|| self.schedule.turn(at).0);
        (self.flows.len() > 1).then(|| &*self.names[place])
    }

    /// Returns which device carries which bytes.
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Says by what it is known that they work.
    pub(crate) fn proof(&self) -> String {
        let each = self.flows.iter().map(|flow| {
            let kind = match flow.pair.kind() {
                Kind::Reliable => "reliable",
                Kind::Unreliable => "unreliable",
            };
            format!("{}, {kind} connection", flow.pair.device().name)
        });
        let each: Vec<String> = each.collect();
        format!("a message came through {}", each.join(", and through "))
    }

    /// Returns what has failed.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        let failed = self.flows.iter().find_map(|flow| {
            let reason = flow.failure()?;
            Some(format!("rdma: {reason} on {}", flow.pair.device().name))
        });
        failed.map(io::Error::other)
    }
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self
            .flows
            .iter()
            .map(|flow| &*flow.pair.device().name)
            .collect();
        match names.len() {
            1 => write!(f, "{}", Transport::Rdma),
            count => write!(
                f,
                "{} over {count} devices: {}",
                Transport::Rdma,
                names.join(", ")
            ),
        }
    }
}

/// Moves at most `total` bytes from `position` of a stream on, in order; `step` says how many of a range the flow of this place
/// takes now, and ends it with none. Returns how many were moved.
fn stripe(
    schedule: &Schedule,
    position: &mut u64,
    total: usize,
    mut step: impl FnMut(usize, std::ops::Range<usize>) -> usize,
) -> usize {
    let mut moved = 0;
    while moved < total {
        let (place, room) = schedule.turn(*position);
        match step(place, moved..total.min(moved.saturating_add(room))) {
            0 => break,
            count => {
                moved += count;
                *position += count as u64;
            }
        }
    }
    moved
}

/// The most that is copied at once, whole messages: the other end takes one bite while this end puts in the next.
const BITE_BYTES: usize = 4 * (SLOT_BYTES - HEADER_BYTES);
/// What goes over one device before it is the turn of the next.
const UNIT_BYTES: u64 = BITE_BYTES as u64;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Flows that take and give messages of a few bytes, some at a time.
        #[test]
        fn bytes_arrive_in_order_over_all_flows(
            weights in prop::collection::vec(1..=8_u8, 1..5),
            steps in prop::collection::vec((1..40_usize, 1..9_usize, 1..40_usize), 1..200),
        ) {
            const UNIT: u64 = 12;
            let schedule = Schedule::new(&weights, UNIT);
            let mut flows: Vec<VecDeque<Vec<u8>>> = vec![VecDeque::new(); weights.len()];
            let mut carried = vec![0; weights.len()];
            let (mut written, mut read) = (0, 0);
            for (write_len, message_len, read_len) in steps {
                let before = written;
                stripe(&schedule, &mut written, write_len, |place, range| {
                    if flows[place].len() == 4 {
                        return 0;
                    }
                    let count = range.len().min(message_len);
                    let bytes = range.start..range.start + count;
                    flows[place].push_back(bytes.map(|at| (before + at as u64) as u8).collect());
                    carried[place] += count as u64;
                    count
                });
                let before = read;
                stripe(&schedule, &mut read, read_len, |place, range| {
                    let Some(mut message) = flows[place].pop_front() else {
                        return 0;
                    };
                    let rest = message.split_off(message.len().min(range.len()));
                    for (byte, at) in message.iter().zip(range) {
                        assert_eq!(*byte, (before + at as u64) as u8);
                    }
                    if !rest.is_empty() {
                        flows[place].push_front(rest);
                    }
                    message.len()
                });
            }
            let under_way: usize = flows.iter().flatten().map(Vec::len).sum();
            prop_assert_eq!(written, read + under_way as u64);
            // In proportion, but for the round that is under way.
            let rounds = written / (UNIT * weights.iter().copied().map(u64::from).sum::<u64>());
            for (carried, weight) in carried.iter().zip(&weights) {
                let least = rounds * UNIT * u64::from(*weight);
                prop_assert!((least..=least + UNIT * u64::from(*weight)).contains(carried));
            }
        }
    }
}
