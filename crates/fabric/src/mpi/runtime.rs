//! MPI in this process: its start and its end, and who may call it meanwhile.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi_sys as ffi;

use super::line::Line;
use super::links::until;
use crate::error::FabricError;
use crate::rank::{Rank, WORLD_MAX};

/// The right to call MPI, which one group has at a time.
pub(super) struct Lease {
    pub(super) comm: Comm,
    /// Of the messages of this group.
    pub(super) tag: c_int,
    pub(super) rank: Rank,
    pub(super) world: usize,
    pub(super) local_ranks: usize,
}

/// Hands out the right to call MPI; starts it the first time.
pub(super) fn lease() -> Result<Lease, FabricError> {
    let mut runtime = runtime();
    let started = match &mut *runtime {
        Some(started) => started,
        unstarted => unstarted.insert(Started::new()?),
    };
    if started.is_leased {
        return Err(FabricError::Invalid(
            "there is a group over MPI in this process already; drop it before the next is formed"
                .to_owned(),
        ));
    }
    let mut is_over = 0;
    // SAFETY: may be asked at any time.
    check("MPI_Finalized", unsafe {
        ffi::MPI_Finalized(&raw mut is_over)
    })?;
    if is_over != 0 {
        return Err(FabricError::Invalid(
            "MPI has been ended in this process".to_owned(),
        ));
    }
    started.departed.retain_mut(|line| !line.is_over());
    started.is_leased = true;
    started.groups = started.groups.wrapping_add(1);
    Ok(Lease {
        comm: started.comm,
        tag: c_int::try_from(started.groups % TAGS).expect("there are few"),
        rank: started.rank,
        world: started.world,
        local_ranks: started.local_ranks,
    })
}

impl Lease {
    /// Leaves `lines` behind, which have ended on this side.
    pub(super) fn give_back(&self, lines: Vec<Line>) {
        if let Some(started) = &mut *runtime() {
            started.departed.extend(lines);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(started) = &mut *runtime() {
            started.is_leased = false;
        }
    }
}

/// A communicator of our own, in which no other part of the program sends anything.
#[derive(Clone, Copy)]
pub(super) struct Comm(ffi::MPI_Comm);

// SAFETY: a handle, of which no thread owns anything; who may use it is up to the lease.
unsafe impl Send for Comm {}

impl Comm {
    pub(super) fn raw(self) -> ffi::MPI_Comm {
        self.0
    }
}

/// Turns what a function of MPI returned into an error that names it.
pub(super) fn check(function: &str, code: c_int) -> io::Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: MPI may be asked what an error means at any time, and writes no more than there is room for.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &raw mut length) };
    let reason = match known == ffi::MPI_SUCCESS as c_int {
        // SAFETY: MPI has written a string, with its end.
        true => unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy(),
        false => format!("error {code}").into(),
    };
    Err(io::Error::other(format!("{function}: {reason}")))
}

/// What is known of MPI once it runs.
struct Started {
    comm: Comm,
    rank: Rank,
    world: usize,
    local_ranks: usize,
    /// A group is there. While it is, only that calls MPI.
    is_leased: bool,
    /// How many groups there were.
    groups: u32,
    /// Links of former groups whose other ends may still send.
    departed: Vec<Line>,
}

static RUNTIME: Mutex<Option<Started>> = Mutex::new(None);

fn runtime() -> MutexGuard<'static, Option<Started>> {
    // A panic elsewhere leaves all that is in there whole.
    RUNTIME.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Started {
    fn new() -> Result<Self, FabricError> {
        let (mut is_running, mut is_over, mut threads) = (0, 0, 0);
        // SAFETY: MPI may be asked both at any time.
        unsafe {
            check("MPI_Initialized", ffi::MPI_Initialized(&raw mut is_running))?;
            check("MPI_Finalized", ffi::MPI_Finalized(&raw mut is_over))?;
        }
        if is_over != 0 {
            return Err(FabricError::Invalid(
                "MPI has ended in this process, and cannot be started again".to_owned(),
            ));
        }
        // SAFETY: a constant of the library.
        let serialized = unsafe { ffi::RSMPI_THREAD_SERIALIZED };
        if is_running == 0 {
            let (no_count, no_words) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: nobody has started it, and two who do so at the same time break MPI's rules, not ours: here is a lock.
            check("MPI_Init_thread", unsafe {
                ffi::MPI_Init_thread(no_count, no_words, serialized, &raw mut threads)
            })?;
            // SAFETY: the function stays where it is, takes nothing, and does not unwind.
            let _a_missing_end_is_told_by_mpirun = unsafe { atexit(leave) };
        } else {
            // SAFETY: MPI runs.
            check("MPI_Query_thread", unsafe {
                ffi::MPI_Query_thread(&raw mut threads)
            })?;
        }
        if threads < serialized {
            return Err(FabricError::Invalid(
                "MPI was started for one thread alone; start it with MPI_THREAD_SERIALIZED or more"
                    .to_owned(),
            ));
        }
        let (mut comm, mut rank, mut world) = (null(), 0, 0);
        let (mut local, mut local_ranks) = (null(), 0);
        // SAFETY: MPI runs, on every rank the same functions are called in the same order, and what they are given is made
        // by the ones before, for them to fill.
        unsafe {
            check(
                "MPI_Comm_dup",
                ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &raw mut comm),
            )?;
            check(
                "MPI_Comm_set_errhandler",
                ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN),
            )?;
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &raw mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &raw mut world))?;
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            check(
                "MPI_Comm_split_type",
                ffi::MPI_Comm_split_type(comm, kind, 0, info, &raw mut local),
            )?;
            check(
                "MPI_Comm_size",
                ffi::MPI_Comm_size(local, &raw mut local_ranks),
            )?;
            check("MPI_Comm_free", ffi::MPI_Comm_free(&raw mut local))?;
        }
        let count = |count| usize::try_from(count).unwrap_or_default();
        let (rank, world, local_ranks) = (count(rank), count(world), count(local_ranks));
        if world > WORLD_MAX {
            return Err(FabricError::Invalid(format!(
                "mpirun started {world} ranks, and a group has {WORLD_MAX} at most"
            )));
        }
        Ok(Self {
            comm: Comm(comm),
            rank: Rank::at(rank),
            world,
            local_ranks,
            is_leased: false,
            groups: 0,
            departed: Vec::new(),
        })
    }

    /// Waits until nothing is under way any more; false when the time is over before.
    fn settle(&mut self) -> bool {
        until(Instant::now() + SETTLE_TIME_MAX, || {
            self.departed.retain_mut(|line| !line.is_over());
            self.departed.is_empty()
        })
    }
}

/// Ends MPI when the process exits: after `main`, for links may be dropped up to its end.
///
/// Where a group is left over, or messages to a rank that takes none, MPI could wait for ever. It is not ended then, which
/// has `mpirun` end the other ranks.
extern "C" fn leave() {
    // Whoever holds the lock at this time is in the middle of starting MPI.
    let Ok(mut runtime) = RUNTIME.try_lock() else {
        return;
    };
    if let Some(started) = &mut *runtime
        && !started.is_leased
        && started.settle()
    {
        // SAFETY: we have started MPI, nothing is under way, and no group is there that calls it; none is formed any more,
        // for that asks MPI whether it has ended.
        let _nobody_to_tell = unsafe { ffi::MPI_Finalize() };
        *runtime = None;
    }
}

fn null() -> ffi::MPI_Comm {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_COMM_NULL }
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// Every MPI has as many tags; a group's messages are long gone when its tag has its turn again.
const TAGS: u32 = 1 << 15;
/// How long an exit waits for the other ranks to drop their groups.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);
