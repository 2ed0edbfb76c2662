use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};

use crate::machine;

/// Numbers that are zero at first and take no memory before they are used, in huge pages where the system has them.
///
/// They start where a cache line does: an allocator puts large memory a few bytes behind, where every other vector lies in two
/// lines.
#[derive(Debug)]
pub(crate) struct Zeroed<E> {
    memory: Vec<E>,
    /// What lies before the first line.
    skipped: usize,
}

const LINE_BYTES: usize = 64;

impl<E: Zeros> Zeroed<E> {
    /// Reserves them; `None` when the system refuses the memory.
    pub(crate) fn new(elements: u128) -> Option<Self> {
        let padding = LINE_BYTES / size_of::<E>();
        let elements = usize::try_from(elements).ok()?.checked_add(padding)?;
        let layout = Layout::array::<E>(elements).ok()?;
        // Not aligned by the allocator, which would write the zeros itself.
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        if start.is_null() {
            return None;
        }
        machine::advise_huge_pages(start, layout.size());
        // SAFETY:
        // - `start` comes from the global allocator, with the layout of a vector of this capacity
        // - every element is initialised: all zeros are one
        let mut memory = unsafe { Vec::from_raw_parts(start.cast::<E>(), elements, elements) };
        let skipped = memory.as_ptr().align_offset(LINE_BYTES).min(padding);
        memory.truncate(elements - padding + skipped);
        Some(Self { memory, skipped })
    }
}

impl<E> Deref for Zeroed<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.memory[self.skipped..]
    }
}

impl<E> DerefMut for Zeroed<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.skipped..]
    }
}

/// Numbers.
///
/// # Safety
/// All zeros are one.
pub(crate) unsafe trait Zeros {}

// SAFETY: every pattern of bits is an integer.
unsafe impl Zeros for u16 {}
// SAFETY: as above.
unsafe impl Zeros for i8 {}
// SAFETY: these bits are `0.0`.
unsafe impl Zeros for f32 {}
