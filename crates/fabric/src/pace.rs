//! How a rank passes the time while it waits: first awake, then asleep.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

/// How eagerly the ranks of a group wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How long until the core is offered to others between two looks.
    alone: Duration,
}

impl Pace {
    /// Chooses for a machine on which `local_ranks` ranks of the group run.
    ///
    /// Waking from sleep costs more than a whole small all-reduce, so a rank looks again and again for as long as the other
    /// ranks' share of a layer may differ. With a core of its own it does so alone, but after a moment it offers the core
    /// between looks even so: the system may have put the awaited rank on this very core, where it would not run before
    /// this one sleeps. Where ranks outnumber cores that is certain.
    pub(crate) fn of_machine(local_ranks: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            alone: if local_ranks <= cores {
                ALONE_MAX
            } else {
                Duration::ZERO
            },
        }
    }

    /// Starts one wait.
    pub(crate) fn start(self) -> Patience {
        Patience {
            pace: self,
            since: None,
        }
    }
}

/// The state of one wait.
pub(crate) struct Patience {
    pace: Pace,
    since: Option<Instant>,
}

impl Patience {
    /// Passes a moment awake; false once it is time to sleep.
    pub(crate) fn pass(&mut self) -> bool {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let waited = now.duration_since(since);
        if waited >= AWAKE_MAX {
            return false;
        }
        if waited >= self.pace.alone {
            thread::yield_now();
        } else {
            hint::spin_loop();
        }
        true
    }

    /// Begins anew, after something has moved.
    pub(crate) fn renew(&mut self) {
        self.since = None;
    }
}

/// How long a rank looks before it sleeps.
const AWAKE_MAX: Duration = Duration::from_micros(50);
/// How long it may keep a core of its own busy with nothing else.
const ALONE_MAX: Duration = Duration::from_micros(5);
