//! The bytes of a ring: memory that two ends write and read at places that they agree on.

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(loom))]
use std::cell::UnsafeCell;

/// `BYTES` bytes. Under loom each is a cell that notices a write beside another access.
#[repr(transparent)]
pub(super) struct Bytes<const BYTES: usize>([UnsafeCell<u8>; BYTES]);

// SAFETY: whoever touches the bytes answers for it that nobody else touches the same ones (`put`, `take`).
unsafe impl<const BYTES: usize> Sync for Bytes<BYTES> {}

#[cfg(not(loom))]
impl<const BYTES: usize> Bytes<BYTES> {
    /// Writes `from` at `start`.
    ///
    /// # Safety
    /// - `start + from.len()` is at most `BYTES`.
    /// - Nobody else touches these bytes meanwhile.
    pub(super) unsafe fn put(&self, start: usize, from: &[u8]) {
        let base = UnsafeCell::raw_get(self.0.as_ptr());
        // SAFETY: in bounds and exclusive by the contract; `from` is no part of the cells, which are never lent.
        unsafe {
            base.add(start)
                .copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
    }

    /// Reads what is at `start`.
    ///
    /// # Safety
    /// - `start + into.len()` is at most `BYTES`.
    /// - Nobody writes these bytes meanwhile.
    pub(super) unsafe fn take(&self, start: usize, into: &mut [u8]) {
        let base = UnsafeCell::raw_get(self.0.as_ptr());
        // SAFETY: in bounds and not written by the contract; `into` is no part of the cells, which are never lent.
        unsafe {
            base.add(start)
                .copy_to_nonoverlapping(into.as_mut_ptr(), into.len());
        }
    }
}

#[cfg(loom)]
impl<const BYTES: usize> Bytes<BYTES> {
    pub(super) unsafe fn put(&self, start: usize, from: &[u8]) {
        for (cell, byte) in self.0[start..].iter().zip(from) {
            // SAFETY: the pointer is that of the cell, and loom ends the test if anybody else holds it.
            cell.with_mut(|place| unsafe { *place = *byte });
        }
    }

    pub(super) unsafe fn take(&self, start: usize, into: &mut [u8]) {
        for (cell, byte) in self.0[start..].iter().zip(into) {
            // SAFETY: the pointer is that of the cell, and loom ends the test if anybody writes it.
            *byte = cell.with(|place| unsafe { *place });
        }
    }
}

#[cfg(test)]
impl<const BYTES: usize> Bytes<BYTES> {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| UnsafeCell::new(0)))
    }
}
