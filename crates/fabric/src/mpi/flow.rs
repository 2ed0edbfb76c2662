//! One direction of a link as messages: what is on its way out, and what has come in.

use std::array;
use std::io::{self, IoSlice};

use super::slot::{Route, Slot};

/// What this end sends. Slots are used in turn.
pub(super) struct Outflow {
    slots: [Slot; SLOTS],
    next: usize,
    /// The empty message that says that nothing more comes.
    end: Slot,
}

impl Outflow {
    pub(super) fn new() -> Self {
        Self {
            slots: array::from_fn(|_| Slot::new(SLOT_BYTES)),
            next: 0,
            end: Slot::new(0),
        }
    }

    /// Sends what the free slots take of `parts`; 0 when none is free.
    pub(super) fn write(&mut self, route: Route, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut parts = parts.iter().map(|part| &**part);
        let (mut rest, mut taken) = (&[][..], 0);
        while self.is_writable()? {
            let slot = &mut self.slots[self.next];
            let room = slot.bytes_mut();
            let mut filled = 0;
            while filled < room.len() {
                if rest.is_empty() {
                    match parts.find(|part| !part.is_empty()) {
                        Some(part) => rest = part,
                        None => break,
                    }
                }
                let count = rest.len().min(room.len() - filled);
                room[filled..filled + count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                filled += count;
            }
            if filled == 0 {
                break;
            }
            slot.send(route, filled)?;
            self.next = (self.next + 1) % SLOTS;
            taken += filled;
        }
        Ok(taken)
    }

    /// Says whether a slot is free.
    pub(super) fn is_writable(&mut self) -> io::Result<bool> {
        let slot = &mut self.slots[self.next];
        Ok(slot.is_idle() || slot.test()?.is_some())
    }

    /// Says that nothing more comes.
    pub(super) fn end(&mut self, route: Route) -> io::Result<()> {
        self.end.send(route, 0)
    }

    /// Says whether the other end has a slot for all that was sent.
    pub(super) fn is_flushed(&mut self) -> io::Result<bool> {
        let mut flushed = true;
        for slot in self.slots.iter_mut().chain([&mut self.end]) {
            flushed &= slot.is_idle() || slot.test()?.is_some();
        }
        Ok(flushed)
    }
}

/// What comes from the other end. The slots wait for messages in turn, so these lie in them in their order.
pub(super) struct Inflow {
    slots: [Slot; SLOTS],
    /// The length of what has come, by slot.
    landed: [Option<usize>; SLOTS],
    front: usize,
    /// How much of the front one was read.
    read: usize,
    /// The other end has said that nothing more comes; what came before may still have to be read.
    pub(super) ended: bool,
}

impl Inflow {
    pub(super) fn new(route: Route) -> io::Result<Self> {
        let mut slots = array::from_fn(|_| Slot::new(SLOT_BYTES));
        for slot in &mut slots {
            slot.receive(route)?;
        }
        Ok(Self {
            slots,
            landed: [None; SLOTS],
            front: 0,
            read: 0,
            ended: false,
        })
    }

    /// Reads what is there, at most `into`; `None` when nothing is there now, 0 at the end.
    pub(super) fn read(&mut self, route: Route, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut taken = 0;
        while taken < into.len() && self.is_readable()? {
            let landed = self.landed[self.front].unwrap_or_default();
            if landed == 0 {
                return Ok(Some(taken));
            }
            let count = (landed - self.read).min(into.len() - taken);
            let from = &self.slots[self.front].bytes()[self.read..self.read + count];
            into[taken..taken + count].copy_from_slice(from);
            taken += count;
            self.read += count;
            if self.read == landed {
                self.pass(route)?;
            }
        }
        Ok((taken > 0).then_some(taken))
    }

    /// Says whether bytes can be read, or the end.
    pub(super) fn is_readable(&mut self) -> io::Result<bool> {
        if self.landed[self.front].is_none() {
            self.look()?;
        }
        Ok(self.landed[self.front].is_some())
    }

    /// Takes note of what has come, the end in particular, which may be behind bytes that nobody wants yet.
    pub(super) fn look(&mut self) -> io::Result<()> {
        for step in 0..SLOTS {
            let place = (self.front + step) % SLOTS;
            if self.landed[place].is_some() {
                continue;
            }
            if self.ended {
                break;
            }
            match self.slots[place].test()? {
                None => break,
                Some(0) => {
                    self.landed[place] = Some(0);
                    self.ended = true;
                    // Those that wait for more would wait for ever.
                    self.slots.iter_mut().for_each(Slot::cancel);
                }
                landed => self.landed[place] = landed,
            }
        }
        Ok(())
    }

    /// Passes over what has come.
    pub(super) fn discard(&mut self, route: Route) -> io::Result<()> {
        while self.is_readable()? && self.landed[self.front] != Some(0) {
            self.pass(route)?;
        }
        Ok(())
    }

    /// Goes on from the front slot to the next.
    fn pass(&mut self, route: Route) -> io::Result<()> {
        self.landed[self.front] = None;
        self.read = 0;
        if !self.ended {
            self.slots[self.front].receive(route)?;
        }
        self.front = (self.front + 1) % SLOTS;
        Ok(())
    }
}

/// What is under way each way, with a copy by this end and one by the other while MPI moves the rest.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 64 * 1024;
