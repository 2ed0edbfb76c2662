//! How a rank passes the time while it waits: first awake, then asleep.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

/// How eagerly the ranks of a group wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    awake: Duration,
    /// Whether the core is offered to others between two looks.
    shares: bool,
}

impl Pace {
    /// Chooses for a machine on which `local_ranks` ranks of the group run.
    ///
    /// Waking from sleep costs more than a whole small all-reduce, so a rank with a core of its own looks again and again
    /// for as long as the other ranks' share of a layer may differ. Where ranks outnumber cores, the awaited rank may
    /// need this very core: it is offered between looks, and sleep comes sooner.
    pub(crate) fn of_machine(local_ranks: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        if local_ranks <= cores {
            Self {
                awake: Duration::from_micros(50),
                shares: false,
            }
        } else {
            Self {
                awake: Duration::from_micros(10),
                shares: true,
            }
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
        if now.duration_since(since) >= self.pace.awake {
            return false;
        }
        if self.pace.shares {
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
