//! Memory that a device reads and writes by itself.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::abi;
use super::device::Device;
use super::library::{check, made};

/// What belongs together on a device: regions and queue pairs of one domain may be used with each other.
pub(crate) struct Domain {
    pub(crate) device: Arc<Device>,
    pd: NonNull<abi::Pd>,
}

// SAFETY: verbs may be called from any thread; the pointer is not used for anything else.
unsafe impl Send for Domain {}

impl Domain {
    pub(crate) fn new(device: Arc<Device>) -> io::Result<Self> {
        // SAFETY: the device is open.
        let pd = made(unsafe { (device.verbs.alloc_pd)(device.context()) })?;
        Ok(Self { device, pd })
    }

    pub(crate) fn pd(&self) -> *mut abi::Pd {
        self.pd.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: it was allocated, and regions and queue pairs of it are gone: whoever holds them drops them first.
        let _nothing_to_do_about_it = unsafe { (self.device.verbs.dealloc_pd)(self.pd.as_ptr()) };
    }
}

/// Page-aligned memory, known to a device, in slots of one size.
pub(crate) struct Region {
    mr: NonNull<abi::Mr>,
    start: NonNull<u8>,
    bytes: usize,
    slot_bytes: usize,
    device: Arc<Device>,
}

// SAFETY: the memory and its registration belong to this value alone.
unsafe impl Send for Region {}

impl Region {
    /// Allocates and registers `slots` of `slot_bytes` each.
    pub(crate) fn new(domain: &Domain, slots: usize, slot_bytes: usize) -> io::Result<Self> {
        let bytes = slots * slot_bytes;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a free place, so nothing that exists is affected.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE) }?;
        let register = |access| {
            // SAFETY: the domain exists, and the memory is mapped and `bytes` long.
            made(unsafe { (domain.device.verbs.reg_mr)(domain.pd(), start, bytes, access) })
        };
        // Apple's note allows the second only, and others report that its devices take the first only. What a peer may do
        // to this memory is up to the queue pair, and that lets it do nothing.
        let remote = abi::ACCESS_REMOTE_READ | abi::ACCESS_REMOTE_WRITE;
        let mr = register(abi::ACCESS_LOCAL_WRITE | remote)
            .or_else(|_| register(abi::ACCESS_LOCAL_WRITE));
        match (mr, NonNull::new(start.cast())) {
            (Ok(mr), Some(start)) => Ok(Self {
                mr,
                start,
                bytes,
                slot_bytes,
                device: Arc::clone(&domain.device),
            }),
            (mr, _) => {
                // SAFETY: mapped above, with this length, and not registered.
                let _cannot_fail = unsafe { munmap(start, bytes) };
                Err(mr
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::OutOfMemory.into()))
            }
        }
    }

    /// Returns where a slot lies, as a device is told.
    pub(crate) fn place(&self, slot: usize) -> abi::Sge {
        // SAFETY: the registration lives as long as `self`.
        let lkey = unsafe { self.mr.as_ref() }.lkey;
        abi::Sge {
            addr: self.pointer(slot) as u64,
            length: u32::try_from(self.slot_bytes).expect("a slot is small"),
            lkey,
        }
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
        assert!(slot < self.bytes / self.slot_bytes, "a slot of this region");
        // SAFETY: the slot lies inside the mapping, as was just checked.
        unsafe { self.start.as_ptr().add(slot * self.slot_bytes) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered by `new`; the queue pair whose requests named this memory is gone, for it owned the region.
        let gone = check(unsafe { (self.device.verbs.dereg_mr)(self.mr.as_ptr()) });
        // Memory that a device may still write to is kept rather than used for something else.
        if gone.is_ok() {
            // SAFETY: `new` made this mapping, with this length, and whoever borrows it borrows `self`.
            let _cannot_fail = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}
