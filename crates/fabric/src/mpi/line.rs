//! One link over MPI.

use std::io::{self, IoSlice};

use super::flow::{Inflow, Outflow};
use super::slot::Route;

/// Both directions of a link, as one side sees them.
///
/// It outlives the group: until both ends have said that nothing more comes, this end takes what the other has sent. So
/// all that is ever sent is received, and nothing of it is left to MPI when the process ends.
pub(super) struct Line {
    route: Route,
    outflow: Outflow,
    inflow: Inflow,
    /// MPI has refused something; what became of the requests is unknown since.
    failed: bool,
}

impl Line {
    pub(super) fn open(route: Route) -> io::Result<Self> {
        Ok(Self {
            route,
            outflow: Outflow::new(),
            inflow: Inflow::new(route)?,
            failed: false,
        })
    }

    pub(super) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let (taken, ended) = self.attempt(|line| {
            let taken = line.outflow.write(line.route, parts)?;
            if taken == 0 {
                // Whoever takes nothing may have left.
                line.inflow.look()?;
            }
            Ok((taken, line.inflow.ended))
        })?;
        match ended {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(taken),
        }
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        self.attempt(|line| line.inflow.read(line.route, into))
    }

    /// Says whether reading would not be in vain. An error is for whoever reads then.
    pub(super) fn is_readable(&mut self) -> bool {
        self.attempt(|line| line.inflow.is_readable())
            .unwrap_or(true)
    }

    /// Says whether writing would not be in vain. An error is for whoever writes then.
    pub(super) fn is_writable(&mut self) -> bool {
        self.attempt(|line| {
            line.inflow.look()?;
            Ok(line.inflow.ended || line.outflow.is_writable()?)
        })
        .unwrap_or(true)
    }

    /// Says to the other end that nothing more comes.
    pub(super) fn end(&mut self) {
        let _told_by_is_over = self.attempt(|line| line.outflow.end(line.route));
    }

    /// Lets MPI go on with what was sent; asks it nothing when that is over.
    pub(super) fn push(&mut self) {
        let _told_to_whoever_uses_it = self.attempt(|line| line.outflow.is_flushed());
    }

    /// After the end: takes what still comes, and says whether this end has sent all that anybody wants.
    pub(super) fn is_flushed(&mut self) -> bool {
        self.attempt(|line| {
            line.inflow.discard(line.route)?;
            Ok(line.inflow.ended || line.outflow.is_flushed()?)
        })
        .unwrap_or(true)
    }

    /// After the end: takes what still comes, and says whether the other end has ended as well and nothing is under way.
    pub(super) fn is_over(&mut self) -> bool {
        self.attempt(|line| {
            line.inflow.discard(line.route)?;
            Ok(line.outflow.is_flushed()? && line.inflow.ended)
        })
        .unwrap_or(false)
    }

    /// Does what may fail, but nothing more after it has.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::other("MPI has refused it before"));
        }
        let outcome = work(self);
        self.failed = outcome.is_err();
        outcome
    }
}
