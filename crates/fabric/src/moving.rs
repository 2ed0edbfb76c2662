//! What an operation has still to do: frames on their way, and memory that others read.

use std::time::Instant;

use crate::link::{Interest, Links};
use crate::transfer::{Incoming, Outgoing};
use crate::wire::{Cause, lost};

/// The frames that an operation moves at present.
#[derive(Default)]
pub(crate) struct Moving {
    /// Those of the round `sending`.
    pub(crate) sends: Vec<Outgoing>,
    pub(crate) sending: usize,
    /// Those of the round `receiving`.
    pub(crate) recvs: Vec<Incoming>,
    pub(crate) receiving: usize,
    /// What was sent and lies in memory that may not change yet.
    pub(crate) loans: Vec<Unsettled>,
    /// What to wake for.
    pub(crate) interests: Vec<Interest>,
    /// Since when the operation has slept now and again.
    pub(crate) slept_since: Option<Instant>,
}

impl Moving {
    /// Takes all that it ever needs now, so that no later operation is the first to need it.
    pub(crate) fn with_room_for(world: usize) -> Self {
        Self {
            sends: Vec::with_capacity(world),
            recvs: Vec::with_capacity(world),
            loans: Vec::with_capacity(world),
            interests: Vec::with_capacity(world),
            ..Self::default()
        }
    }

    /// Returns the peer that has not moved what it should for the longest, since when (`now`, if nobody has slept on it), and, if
    /// that is a frame, whether it is one that comes.
    pub(crate) fn stillest(&self, now: Instant) -> Option<(Instant, usize, Option<bool>)> {
        let recvs = self.recvs.iter().filter(|recv| !recv.is_done());
        let recvs = recvs.map(|recv| (recv.still_since, recv.peer, Some(true)));
        let sends = self.sends.iter().filter(|send| !send.is_done());
        let sends = sends.map(|send| (send.still_since, send.peer, Some(false)));
        let loans = self.loans.iter();
        let loans = loans.map(|loan| (loan.still_since, loan.peer, None));
        let all = recvs.chain(sends).chain(loans);
        all.map(|(since, peer, comes)| (since.unwrap_or(now), peer, comes))
            .min()
    }

    pub(crate) fn clear(&mut self) {
        self.sends.clear();
        self.recvs.clear();
        self.loans.clear();
        self.slept_since = None;
    }
}

/// What one peer has left to do with memory that was lent to it.
pub(crate) struct Unsettled {
    pub(crate) peer: usize,
    /// See [`Links::unsettled`].
    pub(crate) left: usize,
    /// Since when it has not become less, as far as anybody has slept on it.
    pub(crate) still_since: Option<Instant>,
}

impl Unsettled {
    /// Returns what was not looked at yet.
    pub(crate) fn with(peer: usize) -> Self {
        Self {
            peer,
            left: usize::MAX,
            still_since: None,
        }
    }

    /// Looks at how much is left; true when it has become less.
    pub(crate) fn look(&mut self, links: &mut dyn Links) -> Result<bool, Cause> {
        let before = self.left;
        let left = links.unsettled(self.peer);
        self.left = left.map_err(|error| lost(self.peer, &error))?;
        if self.left < before {
            self.still_since = None;
        }
        Ok(self.left < before)
    }
}
