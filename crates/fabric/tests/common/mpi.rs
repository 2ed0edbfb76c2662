//! Ranks as processes that `mpirun` started. Each runs the same tests in the same order, and holds its own rank's group.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::panic;
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use shoal_fabric::{Group, Rank};

use super::PATIENT;

/// Returns the folder by which the processes know of each other beside MPI, which `SHOAL_TEST_MPI` names; nothing where
/// ranks are threads. It has to be empty at first.
fn folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever runs the tests knows whether mpirun does"
    )]
    let folder = || std::env::var_os("SHOAL_TEST_MPI").map(PathBuf::from);
    FOLDER.get_or_init(folder).as_ref()
}

pub(crate) fn is_here() -> bool {
    folder().is_some()
}

/// Returns how many ranks there are.
pub(crate) fn world() -> usize {
    place().1
}

/// Returns which of them this process is.
pub(crate) fn rank() -> Rank {
    place().0
}

fn place() -> (Rank, usize) {
    static PLACE: OnceLock<(Rank, usize)> = OnceLock::new();
    *PLACE.get_or_init(|| {
        // The others would wait for a rank that has failed; of one that ends like this they hear by their own end.
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            usual(info);
            process::abort();
        }));
        let group = group(PATIENT);
        (group.rank(), group.world())
    })
}

/// Returns the group of this process.
#[cfg(feature = "mpi")]
pub(crate) fn group(timeout: Duration) -> Group {
    let mut group = shoal_fabric::mpi::world(PATIENT).expect("the group forms");
    group.set_timeout(timeout);
    group
}

#[cfg(not(feature = "mpi"))]
pub(crate) fn group(_: Duration) -> Group {
    panic!("SHOAL_TEST_MPI asks for MPI; run the tests with --features mpi")
}

/// Counts what ranks do, beside the links.
pub(crate) enum Tally {
    OfThreads(AtomicUsize),
    /// Each counts by one more byte.
    OfProcesses(File),
}

impl Tally {
    /// Returns one that has counted nothing; all processes make theirs in the same order.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let Some(folder) = folder() else {
            return Self::OfThreads(AtomicUsize::new(0));
        };
        let name = NUMBER.fetch_add(1, Ordering::SeqCst).to_string();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(folder.join(name));
        Self::OfProcesses(file.expect("the folder of SHOAL_TEST_MPI is there"))
    }

    pub(crate) fn add_one(&self) {
        match self {
            Self::OfThreads(count) => {
                count.fetch_add(1, Ordering::SeqCst);
            }
            Self::OfProcesses(file) => {
                let mut file = file;
                file.write_all(&[1]).expect("a writable file");
            }
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Self::OfThreads(count) => count.load(Ordering::SeqCst),
            Self::OfProcesses(file) => file.metadata().expect("a file").len() as usize,
        }
    }

    /// Returns once all of `world` have come here.
    pub(crate) fn meet(&self, world: usize) {
        self.add_one();
        while self.count() < world {
            thread::yield_now();
        }
    }
}

/// Returns once all processes have come here; at once where ranks are threads.
pub(crate) fn meet() {
    if is_here() {
        Tally::new().meet(world());
    }
}

/// Says whether it is so on any rank; all ask.
pub(crate) fn anywhere(here: bool) -> bool {
    let tally = Tally::new();
    if here {
        tally.add_one();
    }
    meet();
    tally.count() > 0
}
