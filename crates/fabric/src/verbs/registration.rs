//! Memory that a device reads and writes by itself.

use std::io;
use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi;
use super::device::Device;
use super::library::{check, made};
use crate::pages::Pages;

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

/// Pages that a device knows.
pub(crate) struct Registration {
    pub(crate) pages: Arc<Pages>,
    mr: NonNull<abi::Mr>,
    device: Arc<Device>,
}

// SAFETY: verbs may be called from any thread; the pointer is not used for anything else.
unsafe impl Send for Registration {}

impl Registration {
    pub(crate) fn new(domain: &Domain, pages: Arc<Pages>) -> io::Result<Self> {
        let (start, bytes) = (pages.start().as_ptr().cast(), pages.bytes());
        let register = |access| {
            // SAFETY: the domain exists, and the memory is mapped, `bytes` long and held for as long as it is registered.
            made(unsafe { (domain.device.verbs.reg_mr)(domain.pd(), start, bytes, access) })
        };
        // Apple's note allows the second only, and others report that its devices take the first only. What a peer may do
        // to this memory is up to the queue pair, and that lets it do nothing.
        let remote = abi::ACCESS_REMOTE_READ | abi::ACCESS_REMOTE_WRITE;
        let mr = register(abi::ACCESS_LOCAL_WRITE | remote)
            .or_else(|_| register(abi::ACCESS_LOCAL_WRITE))?;
        let device = Arc::clone(&domain.device);
        Ok(Self { pages, mr, device })
    }

    /// Returns how a device is told of `length` bytes from `start` on, which lie in these pages.
    pub(crate) fn sge(&self, start: *const u8, length: usize) -> abi::Sge {
        // SAFETY: the registration lives as long as `self`.
        let lkey = unsafe { self.mr.as_ref() }.lkey;
        abi::Sge {
            addr: start as u64,
            length: u32::try_from(length).expect("a slot is small"),
            lkey,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: registered by `new`; the queue pair whose requests named this memory is gone, for it owned this.
        let gone = check(unsafe { (self.device.verbs.dereg_mr)(self.mr.as_ptr()) });
        // Memory that a device may still write to is kept rather than used for something else.
        if gone.is_err() {
            mem::forget(Arc::clone(&self.pages));
        }
    }
}
