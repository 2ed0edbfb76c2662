//! Memory that MPI reads and writes by itself, and the one request it is part of.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use mpi_sys as ffi;

use super::runtime::{Comm, check};

/// What names the messages of a link: those between this rank and `peer` that carry `tag`.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) comm: Comm,
    pub(super) peer: c_int,
    pub(super) tag: c_int,
}

/// Room for one message. It belongs to MPI from the moment a request is made until [`test`](Self::test) tells its end.
pub(super) struct Slot {
    bytes: NonNull<[u8]>,
    /// Null while the memory is ours.
    request: ffi::MPI_Request,
    /// Whether it is, or was, for a message to come.
    is_receive: bool,
}

// SAFETY: memory and request belong to this value alone, and the requests of a process may be used by any of its threads,
// one at a time, which the runtime sees to.
unsafe impl Send for Slot {}

impl Slot {
    /// Returns room for `bytes`, at most 2 GiB.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            // Not a `Box`, for that may not be touched by others while it exists.
            bytes: NonNull::from(Box::leak(vec![0; bytes].into_boxed_slice())),
            request: null(),
            is_receive: false,
        }
    }

    /// Says whether the memory is ours.
    pub(super) fn is_idle(&self) -> bool {
        self.request == null()
    }

    /// Returns the memory.
    ///
    /// # Panics
    /// Unless it [is ours](Self::is_idle).
    pub(super) fn bytes(&self) -> &[u8] {
        assert!(self.is_idle(), "MPI may write to this slot");
        // SAFETY: `new` made the memory, with values in it, and MPI does not use it, as was just checked.
        unsafe { self.bytes.as_ref() }
    }

    /// Returns the memory, to be filled.
    ///
    /// # Panics
    /// Unless it [is ours](Self::is_idle).
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.is_idle(), "MPI may use this slot");
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { self.bytes.as_mut() }
    }

    /// Waits for the next message of `route` that no other slot waits for.
    pub(super) fn receive(&mut self, route: Route) -> io::Result<()> {
        let count = count(self.bytes_mut().len());
        self.is_receive = true;
        // SAFETY: MPI runs for as long as there is a communicator. The memory is `count` bytes long and stays where it is;
        // it is ours, as `bytes_mut` has checked, and nothing touches it before the request has ended.
        check("MPI_Irecv", unsafe {
            ffi::MPI_Irecv(
                self.bytes.as_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                route.peer,
                route.tag,
                route.comm.raw(),
                &raw mut self.request,
            )
        })
    }

    /// Sends the first `bytes`. The request ends once the other end has a slot for them, so that no more than our slots
    /// hold is ever under way.
    pub(super) fn send(&mut self, route: Route, bytes: usize) -> io::Result<()> {
        let count = count(self.bytes_mut()[..bytes].len());
        self.is_receive = false;
        // SAFETY: as in `receive`; MPI only reads.
        check("MPI_Issend", unsafe {
            ffi::MPI_Issend(
                self.bytes.as_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                route.peer,
                route.tag,
                route.comm.raw(),
                &raw mut self.request,
            )
        })
    }

    /// Looks whether the request has ended; returns the length of what came then, 0 for what was sent. Also lets all others go on.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn test(&mut self) -> io::Result<Option<usize>> {
        assert!(!self.is_idle(), "a request to look at");
        let (mut ended, mut status) = (0, MaybeUninit::uninit());
        // SAFETY: the request was made above and has not ended; the rest is for MPI to fill.
        check("MPI_Test", unsafe {
            ffi::MPI_Test(&raw mut self.request, &raw mut ended, status.as_mut_ptr())
        })?;
        if ended == 0 {
            return Ok(None);
        }
        if !self.is_receive {
            return Ok(Some(0));
        }
        let mut bytes = 0;
        // SAFETY: MPI fills the status of a receive that has ended; that of a send has no count.
        check("MPI_Get_count", unsafe {
            ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &raw mut bytes)
        })?;
        Ok(Some(usize::try_from(bytes).unwrap_or_default()))
    }

    /// Takes back a slot that waits for a message.
    pub(super) fn cancel(&mut self) {
        if self.is_idle() {
            return;
        }
        // SAFETY: the request was made above and has not ended. Waiting for one that was cancelled waits for nobody else.
        // What fails here leaves the request, and with it the memory, to MPI.
        unsafe {
            if ffi::MPI_Cancel(&raw mut self.request) == SUCCESS {
                ffi::MPI_Wait(&raw mut self.request, ffi::RSMPI_STATUS_IGNORE);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Memory that MPI may still use is kept rather than used for something else.
        if self.is_idle() {
            // SAFETY: `new` made it of a box, and nobody else uses it.
            drop(unsafe { Box::from_raw(self.bytes.as_ptr()) });
        }
    }
}

fn null() -> ffi::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn count(bytes: usize) -> c_int {
    c_int::try_from(bytes).expect("slots are small")
}

const SUCCESS: c_int = ffi::MPI_SUCCESS as c_int;
