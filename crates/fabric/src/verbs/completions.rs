//! Where a device tells what became of the requests to it.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::abi;
use super::device::Device;
use super::library::{Events, check, made};

/// The completions of one queue pair, with a file to sleep on where the library has that.
pub(crate) struct Completions {
    cq: NonNull<abi::Cq>,
    found: [abi::Wc; AT_ONCE],
    // After the queue: it goes second.
    channel: Option<Channel>,
    device: Arc<Device>,
}

/// What became of a request.
pub(crate) struct Completion {
    pub(crate) slot: usize,
    /// Length of what was received.
    pub(crate) outcome: Result<usize, String>,
}

// SAFETY: verbs may be called from any thread; the pointers are not used for anything else.
unsafe impl Send for Completions {}

impl Completions {
    /// Makes a queue with room for `room` of them.
    pub(crate) fn new(device: Arc<Device>, room: usize) -> io::Result<Self> {
        let events = device.verbs.events;
        let channel = events.and_then(|events| Channel::new(&device, events).ok());
        let of_channel = channel
            .as_ref()
            .map_or(ptr::null_mut(), |channel| channel.raw.as_ptr());
        let room = i32::try_from(room).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the device is open, and the channel, if there is one, outlives the queue.
        let cq = made(unsafe {
            (device.verbs.create_cq)(device.context(), room, ptr::null_mut(), of_channel, 0)
        })?;
        Ok(Self {
            cq,
            found: [abi::Wc::default(); AT_ONCE],
            channel,
            device,
        })
    }

    pub(crate) fn cq(&self) -> *mut abi::Cq {
        self.cq.as_ptr()
    }

    /// Takes some completions, in order; says how many.
    pub(crate) fn poll(&mut self) -> io::Result<usize> {
        let poll_cq = self.device.ops().poll_cq;
        let poll_cq = poll_cq.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the queue exists, and `found` has room for as many as are asked for.
        let count = unsafe { poll_cq(self.cq(), AT_ONCE as i32, self.found.as_mut_ptr()) };
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= AT_ONCE)
            .ok_or_else(|| io::Error::other("the device lost its completions"))
    }

    /// Returns one of those that were taken last.
    pub(crate) fn taken(&self, index: usize) -> Completion {
        let wc = &self.found[index];
        Completion {
            slot: wc.wr_id as usize,
            outcome: match wc.status {
                abi::WC_SUCCESS => Ok(wc.byte_len as usize),
                status => Err(self.device.verbs.status(status)),
            },
        }
    }

    /// Asks for the file to become readable with the next completion. Look once more before sleeping.
    pub(crate) fn arm(&self) -> io::Result<()> {
        let Some(req_notify_cq) = self.device.ops().req_notify_cq else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // SAFETY: the queue exists.
        check(unsafe { req_notify_cq(self.cq(), 0) })
    }

    /// Returns the file to sleep on, if there is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(Channel::file)
    }

    /// Hears what made the file readable.
    pub(crate) fn hear(&mut self) {
        let Some(channel) = &self.channel else {
            return;
        };
        while channel.hear() {
            // SAFETY: one event of this queue has been taken. Not told, it would hold the queue's end up for ever.
            unsafe { (channel.events.ack_cq_events)(self.cq(), 1) };
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: made by `new`, every event was acknowledged, and the queue pair is gone, for it owned this.
        let _nothing_to_do_about_it = unsafe { (self.device.verbs.destroy_cq)(self.cq()) };
    }
}

struct Channel {
    raw: NonNull<abi::CompChannel>,
    events: Events,
}

impl Channel {
    fn new(device: &Device, events: Events) -> io::Result<Self> {
        // SAFETY: the device is open.
        let raw = made(unsafe { (events.create_comp_channel)(device.context()) })?;
        let channel = Self { raw, events };
        let flags = fcntl_getfl(channel.file())?;
        fcntl_setfl(channel.file(), flags | OFlags::NONBLOCK)?;
        Ok(channel)
    }

    fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns this file, and lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }

    /// Takes one event; false when there is none.
    fn hear(&self) -> bool {
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel exists, and both places are what is filled in.
        unsafe { (self.events.get_cq_event)(self.raw.as_ptr(), &raw mut cq, &raw mut context) == 0 }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and its queue is gone: `Completions` destroys it before its fields are dropped.
        let _nothing_to_do_about_it =
            unsafe { (self.events.destroy_comp_channel)(self.raw.as_ptr()) };
    }
}

/// The most that are taken at once.
const AT_ONCE: usize = 16;
