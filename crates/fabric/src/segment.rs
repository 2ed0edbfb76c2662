//! Memory that two ranks share, and the proof that they do.
//!
//! ```text
//! one side                                            the other
//!   creates memory of a random name, puts 32 random bytes into it
//!   the name (nothing: no offer)    ────────────────►
//!                                                      opens and maps it, takes the name away
//!                                   ◄────────────────  the 32 bytes (nothing: declined)
//! ```
//! Both messages go over the authenticated connection of the two. Only a process on the same machine (in the same
//! container, where there are such) and of the same user can know the bytes, so no address is compared and nothing is
//! guessed. The memory has a name for as long as that takes, and is gone with the two processes, however they end.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use rustix::fs::{Mode, fstat, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::geteuid;
use rustix::shm;

use crate::key::{KEY_BYTES, random_bytes};
use crate::ring::Ring;

/// Memory of this process and one other, as it lies there.
#[repr(C)]
pub(crate) struct Contents {
    proof: [AtomicU8; KEY_BYTES],
    /// A bit for each region that the reader of a ring has opened.
    pub(crate) opened: [AtomicU32; 2],
    /// From the side that created the memory, and to it.
    pub(crate) rings: [Ring<RING_BYTES>; 2],
}

/// A mapping of [`Contents`].
pub(crate) struct Segment(NonNull<Contents>);

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Segment {}
// SAFETY: `Contents` is atomics and rings, which are `Sync`.
unsafe impl Sync for Segment {}

impl Segment {
    /// Maps shared memory that is [`SEGMENT_BYTES`] long at least, and will be for as long as it is mapped.
    fn map(memory: &File) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a free place, so nothing that exists is affected.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                SEGMENT_BYTES,
                access,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        NonNull::new(start.cast())
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn proof(&self) -> [u8; KEY_BYTES] {
        self.proof
            .each_ref()
            .map(|byte| byte.load(Ordering::Relaxed))
    }
}

impl Deref for Segment {
    type Target = Contents;

    fn deref(&self) -> &Contents {
        // SAFETY: the mapping is page-aligned, `SEGMENT_BYTES` long and lives as long as `self`; every field may hold any
        // bits and may change at any time (atomics and cells). The pages exist: their room was reserved before anything
        // was put there, and the memory is not cut short, as only processes of the same user and the same key could.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, with this length, and whoever borrows it borrows `self`.
        let _cannot_fail = unsafe { munmap(self.0.as_ptr().cast(), SEGMENT_BYTES) };
    }
}

/// Memory that the other end of a connection may open, if it can.
pub(crate) struct Offer {
    name: Name,
    segment: Segment,
}

impl Offer {
    /// Creates it. As long as nobody opens it, it takes one page.
    pub(crate) fn new() -> io::Result<Self> {
        let random = random_bytes();
        let (name, _) = random.split_first_chunk().expect("a key is longer");
        let name = Name(*name);
        let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
        let memory = File::from(shm::open(name.path(), flags, Mode::RUSR | Mode::WUSR)?);
        ftruncate(&memory, SEGMENT_BYTES as u64)?;
        reserve(&memory, KEY_BYTES)?;
        let segment = Segment::map(&memory)?;
        for (place, byte) in segment.proof.iter().zip(random_bytes()) {
            place.store(byte, Ordering::Relaxed);
        }
        Ok(Self { name, segment })
    }

    /// Returns what the other end needs to open it.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name.0
    }

    /// Returns the memory if the other end has opened it, by what it says is in there; nothing if it says nothing.
    ///
    /// # Errors
    /// What is wrong with the answer of one that says it has and has not.
    pub(crate) fn conclude(self, echo: &[u8]) -> Result<Option<Segment>, String> {
        if echo.is_empty() {
            Ok(None)
        } else if echo == self.segment.proof() {
            Ok(Some(self.segment))
        } else {
            Err("it claims to share memory and does not know what is in there".to_owned())
        }
    }
}

/// Opens what the other end offers by `name`; returns it with the proof that it is open.
pub(crate) fn open(name: &[u8]) -> io::Result<(Segment, [u8; KEY_BYTES])> {
    let name = Name(name.try_into().map_err(|_| io::ErrorKind::InvalidInput)?);
    let memory = File::from(shm::open(name.path(), shm::OFlags::RDWR, Mode::empty())?);
    let found = fstat(&memory)?;
    // Memory of another user could be cut short under our hands, which ends a process.
    if found.st_uid != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if !usize::try_from(found.st_size).is_ok_and(|bytes| bytes >= SEGMENT_BYTES) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    reserve(&memory, SEGMENT_BYTES)?;
    let segment = Segment::map(&memory)?;
    let proof = segment.proof();
    Ok((segment, proof))
}

/// What shared memory is called until both sides have it, or one will not; nobody can guess it. Goes when it is dropped.
struct Name([u8; 16]);

impl Drop for Name {
    fn drop(&mut self) {
        let _the_other_end_may_have_removed_it = shm::unlink(self.path());
    }
}

impl Name {
    /// Returns it as the system takes it: 29 bytes, for macOS allows 31.
    fn path(&self) -> String {
        let mut left = u128::from_le_bytes(self.0);
        let mut path = "/shoal-".to_owned();
        for _ in 0..22 {
            path.push(char::from(LETTERS[(left % 64) as usize]));
            left /= 64;
        }
        path
    }
}

/// Makes sure of room for the first `bytes`: where there is less than promised, the first touch would end the process.
#[cfg(target_os = "linux")]
fn reserve(memory: &File, bytes: usize) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(memory, FallocateFlags::empty(), 0, bytes as u64)?)
}

/// Elsewhere shared memory is backed like any other.
#[cfg(not(target_os = "linux"))]
fn reserve(_memory: &File, _bytes: usize) -> io::Result<()> {
    Ok(())
}

/// Bound of what is under way in one direction.
pub(crate) const RING_BYTES: usize = 1 << 20;
const SEGMENT_BYTES: usize = size_of::<Contents>();
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
