//! What carries bytes between ranks.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use crate::pages::Pages;

/// The links of one rank to all of its peers: one ordered, reliable stream of bytes each way to each.
///
/// Nothing here blocks but [`wait`](Self::wait). A link ends when either side drops its `Links`; what was written before can
/// still be read. Collectives are written once over this trait, and one conformance suite runs over all of its implementations.
pub(crate) trait Links: Send {
    /// Writes what the link takes of `parts`, in order; `Ok(0)` when it takes nothing now.
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Reads what is there, at most `into`; `Ok(None)` when nothing is there now, `Ok(Some(0))` at the end.
    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sleeps until one of `interests` is possible, not at all if one is already, and for `timeout` at most. May wake early.
    /// Links that lend nothing may look away from an interest in what they lend.
    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()>;

    /// Makes memory known to what carries the bytes, and to ranks that can read it there, so that what lies there need not be
    /// copied before it is sent.
    fn lend(&mut self, _pages: &Arc<Pages>) {}

    /// Returns how much is left to be done with what was written to `peer` from [lent](Self::lend) memory, in whatever unit:
    /// that memory may change once it is zero.
    fn unsettled(&mut self, _peer: usize) -> io::Result<usize> {
        Ok(0)
    }

    /// Takes note that nobody uses what comes from now on: it is only searched for why the group is over.
    fn give_up(&mut self) {}

    /// Takes back what was lent, at the end of the group: a peer that has not read it by now gets an error in its place, or a
    /// device has a moment to send it.
    fn reclaim(&mut self) {}

    /// Says what carries the bytes to and from `peer`; nothing for a rank that is none.
    fn transport(&self, peer: usize) -> Option<Transport>;

    /// Returns how many cables carry the bytes to and from `peer`; none for a rank that is none.
    fn cables(&self, peer: usize) -> usize {
        usize::from(self.transport(peer).is_some())
    }

    /// Returns how many cables like the fastest of them would carry as much as they do together.
    fn breadth(&self, peer: usize) -> f64 {
        self.cables(peer) as f64
    }

    /// Names the cable that the next byte from `peer` comes over, or the next one to it goes, where there are several.
    fn turn(&self, _peer: usize, _reads: bool) -> Option<&str> {
        None
    }
}

/// What carries bytes between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Memory of the process that both run in.
    InProcess,
    /// Memory that their two processes share.
    SharedMemory,
    /// RDMA devices: memory to memory.
    Rdma,
    /// A TCP connection.
    Tcp,
    /// MPI, over whatever it has chosen.
    Mpi,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "in process",
            Self::SharedMemory => "shared memory",
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
            Self::Mpi => "mpi",
        })
    }
}

/// What a sleeping rank wants to be woken for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub(crate) peer: usize,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// That nothing is [unsettled](Links::unsettled).
    pub(crate) settle: bool,
}

impl Interest {
    /// To do nothing with `peer`.
    pub(crate) const fn none(peer: usize) -> Self {
        Self {
            peer,
            read: false,
            write: false,
            settle: false,
        }
    }

    /// To read from `peer` only.
    pub(crate) const fn read(peer: usize) -> Self {
        Self {
            read: true,
            ..Self::none(peer)
        }
    }

    /// To have nothing unsettled with `peer` only.
    #[cfg(test)]
    pub(crate) const fn settle(peer: usize) -> Self {
        Self {
            settle: true,
            ..Self::none(peer)
        }
    }

    /// To write to `peer` only.
    pub(crate) const fn write(peer: usize) -> Self {
        Self {
            write: true,
            ..Self::none(peer)
        }
    }

    pub(crate) const fn is_any(self) -> bool {
        self.read || self.write || self.settle
    }
}
