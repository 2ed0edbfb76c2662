//! Memory of messages.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::abi;
use super::registration::{Domain, Registration};
use crate::pages::Pages;

/// Registered memory in slots of one size.
pub(crate) struct Slots {
    memory: Registration,
    count: usize,
    slot_bytes: usize,
}

impl Slots {
    /// Allocates and registers `count` slots of `slot_bytes` each.
    pub(crate) fn new(domain: &Domain, count: usize, slot_bytes: usize) -> io::Result<Self> {
        let pages = Arc::new(Pages::new(count * slot_bytes)?);
        Ok(Self {
            memory: Registration::new(domain, pages)?,
            count,
            slot_bytes,
        })
    }

    /// Returns where a part of a slot lies, as a device is told.
    pub(crate) fn place(&self, slot: usize, part: Range<usize>) -> abi::Sge {
        assert!(part.end <= self.slot_bytes, "a part of a slot");
        let start = self.pointer(slot).wrapping_add(part.start);
        self.memory.sge(start, part.len())
    }

    /// Returns what is in a slot.
    ///
    /// # Safety
    /// - The device does not write to the slot for as long as what is returned is used.
    pub(crate) unsafe fn slot(&self, slot: usize) -> &[u8] {
        // SAFETY: `pointer` stays inside the mapping, whose bytes all have values; the rest is the caller's to keep.
        unsafe { std::slice::from_raw_parts(self.pointer(slot), self.slot_bytes) }
    }

    /// Returns a slot to be filled.
    ///
    /// # Safety
    /// - The device neither reads nor writes the slot for as long as what is returned is used.
    pub(crate) unsafe fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(slot), self.slot_bytes) }
    }

    fn pointer(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.count, "a slot of these");
        // SAFETY: the slot lies inside the mapping, as was just checked.
        unsafe {
            let start = self.memory.pages.start().as_ptr();
            start.add(slot * self.slot_bytes)
        }
    }
}
