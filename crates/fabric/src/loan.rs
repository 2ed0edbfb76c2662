//! Memory of one process that another reads where it lies, without its being copied for that.
//!
//! The one that lends keeps it in a file in memory that has no name. It tells where among its own open files that is, which
//! only a process of the same user can open, and what the file is, by which another one in its place would be noticed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use bytemuck::{Pod, Zeroable};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::pages::Pages;

/// What a process says of pages that it lends.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Notice {
    process: u32,
    file: u32,
    inode: u64,
    bytes: u64,
}

impl Notice {
    /// Returns what there is to say of `pages`; nothing where no other process can read them.
    pub(crate) fn of(pages: &Pages) -> Option<Self> {
        let file = pages.file.as_ref()?;
        Some(Self {
            process: std::process::id(),
            file: u32::try_from(file.as_raw_fd()).ok()?,
            inode: fstat(file).ok()?.st_ino,
            bytes: pages.bytes() as u64,
        })
    }

    /// Opens what the notice is of.
    ///
    /// # Errors
    /// What the system says, which is no fault of either side: the two may have different views of processes, for example.
    pub(crate) fn open(&self) -> io::Result<Loan> {
        // What is there may be something else, which opening must not wait for, nor take for a terminal of this process.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let path = format!("/proc/{}/fd/{}", self.process, self.file);
        let file = File::from(open(path, flags, Mode::empty())?);
        let found = fstat(&file)?;
        // Only files in memory can be sealed, and the number tells one from others.
        if found.st_ino != self.inode || !cannot_shrink(&file) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let bytes = usize::try_from(self.bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        if !usize::try_from(found.st_size).is_ok_and(|size| size >= bytes) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let start = ptr::null_mut();
        // SAFETY: the system chooses a free place, so nothing that exists is affected.
        let start = unsafe { mmap(start, bytes, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Loan { start, bytes })
    }
}

#[cfg(test)]
impl Notice {
    /// Makes it one of something else.
    pub(crate) fn spoil(&mut self) {
        self.inode += 1;
    }
}

/// Pages of another process, to be read here.
pub(crate) struct Loan {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Loan {}

impl Loan {
    /// Reads what is at `offset`; nothing if the pages do not reach so far.
    ///
    /// # Safety
    /// - What is read while their owner writes there is not used.
    pub(crate) unsafe fn read(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(into.len())?;
        if end > self.bytes {
            return None;
        }
        // SAFETY: in bounds, of a file that cannot be cut short; any bytes are a value, and torn ones are not used, by the
        // contract; and no memory of ours is theirs.
        unsafe {
            let from = self.start.as_ptr().add(offset);
            into.as_mut_ptr().copy_from_nonoverlapping(from, into.len());
        }
        Some(())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // SAFETY: `open` made this mapping, with this length, and nothing outside it points there.
        let _cannot_fail = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Memory that is cut short under a reader ends its process.
#[cfg(target_os = "linux")]
fn cannot_shrink(file: &File) -> bool {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

#[cfg(not(target_os = "linux"))]
fn cannot_shrink(_file: &File) -> bool {
    false
}
