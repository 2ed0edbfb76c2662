//! Memory that the system gives in whole pages, as devices and other processes want it.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use tracing::debug;

/// Pages of this process's memory, zero at first; given back when the last who holds them is gone.
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
    /// What other processes can read them by, where the system has such a thing.
    pub(crate) file: Option<File>,
}

// SAFETY: the memory belongs to this value, which itself neither reads nor writes it.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes room for `bytes`.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        Self::over(None, bytes)
    }

    /// Takes room for `bytes` that other processes can read, or else any.
    pub(crate) fn to_lend(bytes: usize) -> io::Result<Self> {
        let file = file_of(bytes);
        if let Err(error) = &file {
            debug!(%error, "no memory that other ranks could read: it is copied for them");
        }
        Self::over(file.ok(), bytes)
    }

    fn over(file: Option<File>, bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let (start, length) = (ptr::null_mut(), bytes.max(1));
        // SAFETY: the system chooses a free place, so nothing that exists is affected.
        let start = unsafe {
            match &file {
                Some(file) => mmap(start, length, access, MapFlags::SHARED, file, 0),
                None => mmap_anonymous(start, length, access, MapFlags::PRIVATE),
            }
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes, file })
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
        // SAFETY: `over` made this mapping, with this length, and whoever uses it holds `self`.
        let _cannot_fail = unsafe { munmap(self.start.as_ptr().cast(), self.bytes.max(1)) };
    }
}

/// Makes a file in memory, without a name, that nobody can cut short. Its room is reserved: where there is less than promised, the
/// first touch would end the process.
#[cfg(target_os = "linux")]
fn file_of(bytes: usize) -> io::Result<File> {
    use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
    use rustix::fs::{fallocate, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("shoal-region", flags)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes.max(1) as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(not(target_os = "linux"))]
fn file_of(_bytes: usize) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}
