//! Memory that the system gives in whole pages, as devices want it.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Pages of this process's memory, zero at first; given back when the last who holds them is gone.
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to this value, which itself neither reads nor writes it.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes room for `bytes`.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a free place, so nothing that exists is affected.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes.max(1), access, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether all of `part` lies in these pages.
    pub(crate) fn hold(&self, part: &[u8]) -> bool {
        let (start, part) = (self.start.as_ptr().cast_const(), part.as_ptr_range());
        start <= part.start && part.end <= start.wrapping_add(self.bytes)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, with this length, and whoever uses it holds `self`.
        let _cannot_fail = unsafe { munmap(self.start.as_ptr().cast(), self.bytes.max(1)) };
    }
}
