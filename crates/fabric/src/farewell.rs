//! How a group ends: every rank that can still be told learns which rank was lost.

use std::time::{Duration, Instant};

use crate::error::FabricError;
use crate::frame::{self, Abort, Header, Kind};
use crate::link::{Interest, Links};
use crate::rank::Rank;
use crate::transfer::{Incoming, Outgoing};
use crate::wire::{Cause, Peer, Wire};

impl Wire {
    /// Ends the group after a failure in the middle of an operation; returns the error of that operation.
    pub(crate) fn fail(
        &mut self,
        cause: Cause,
        kind: Kind,
        sends: &[Outgoing<'_>],
        recvs: &[Incoming<'_>],
    ) -> FabricError {
        for recv in recvs {
            self.peers[recv.peer].skip = recv.bytes_left();
        }
        // A peer that ends because it lost another says so before it closes; that rank is the one to name.
        let cause = match cause {
            Cause::Lost { .. } => self.find_abort().map_or(cause, Cause::Aborted),
            cause => cause,
        };
        let error = cause.into_error(kind);
        let rank = error.lost_rank().unwrap_or(self.rank);
        let reason = match &error {
            FabricError::RankLost { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        self.end(Abort { rank, reason }, sends);
        error
    }

    /// Tells all peers of `abort` and hears them out, for a short time at most; nothing is possible after that.
    ///
    /// Frames that are half out are finished first, or the peer would take the news for payload. A survivor is heard until
    /// it says farewell as well: a socket that is closed before may take back what the other end has not read yet. The
    /// lost rank is told if that goes without waiting, so that it knows if it should wake up.
    pub(crate) fn end(&mut self, abort: Abort, sends: &[Outgoing<'_>]) {
        let until = Instant::now() + FAREWELL_TIME_MAX;
        let (payload, blamed) = (abort.encode(), abort.rank.index());
        self.ended = Some(abort);
        let mut news: Vec<Outgoing<'_>> = sends
            .iter()
            .filter(|send| send.is_midway())
            .cloned()
            .collect();
        for peer in self.others() {
            let mut send = Outgoing::new(peer, &payload);
            send.address(Kind::Abort, self.peers[peer].frames_sent)
                .expect("an abort is short");
            news.push(send);
        }
        let mut talking: Vec<usize> = self.others().filter(|peer| *peer != blamed).collect();
        loop {
            self.push_in_order(&mut news);
            news.retain(|send| send.peer != blamed);
            talking.retain(|&peer| {
                matches!(
                    self.peers[peer].drain(self.links.as_mut(), peer),
                    Drained::Open
                )
            });
            let reading = talking.iter().map(|&peer| Interest {
                peer,
                read: true,
                write: false,
            });
            let writing = news.iter().map(|send| Interest {
                peer: send.peer,
                read: false,
                write: true,
            });
            let interests: Vec<Interest> = reading.chain(writing).collect();
            let left = until.saturating_duration_since(Instant::now());
            if interests.is_empty() || left.is_zero() || self.links.wait(&interests, left).is_err()
            {
                return;
            }
        }
    }

    /// Writes what the links take; what is done or hopeless leaves `news`.
    fn push_in_order(&mut self, news: &mut Vec<Outgoing<'_>>) {
        let mut blocked = Vec::new();
        news.retain_mut(|send| {
            // Nothing to the same peer overtakes what is half out.
            if blocked.contains(&send.peer) {
                return true;
            }
            while !send.is_done() {
                match send.push(self.links.as_mut()) {
                    Ok(true) => {}
                    Ok(false) => {
                        blocked.push(send.peer);
                        return true;
                    }
                    Err(_) => return false,
                }
            }
            false
        });
    }

    /// Reads all that has arrived, in search of news that the group is over.
    fn find_abort(&mut self) -> Option<Abort> {
        self.others().find_map(
            |peer| match self.peers[peer].drain(self.links.as_mut(), peer) {
                Drained::Farewell(abort) => Some(abort),
                Drained::Open | Drained::Closed => None,
            },
        )
    }
}

/// What was behind everything else that a peer has sent.
enum Drained {
    /// Nothing yet.
    Open,
    /// News that the group is over.
    Farewell(Abort),
    /// The end of the link.
    Closed,
}

impl Peer {
    /// Passes over frame after frame, until one tells that the group is over or nothing more is there.
    fn drain(&mut self, links: &mut dyn Links, index: usize) -> Drained {
        for _ in 0..DRAIN_READS_MAX {
            let step = self.skip.min(self.inbox.bytes().len());
            self.inbox.consume(step);
            self.skip -= step;
            if self.skip == 0 {
                match Header::decode(self.inbox.bytes()) {
                    Ok(None) => {}
                    Ok(Some(header)) if header.kind == Kind::Abort => {
                        if let Some(abort) = self.inbox.abort() {
                            return Drained::Farewell(abort);
                        }
                    }
                    Ok(Some(header)) => {
                        self.skip = frame::HEADER_BYTES + header.length as usize;
                        continue;
                    }
                    Err(_) => return Drained::Closed,
                }
            }
            match self.fill(links, index) {
                Ok(true) => {}
                Ok(false) => return Drained::Open,
                Err(_) => return Drained::Closed,
            }
        }
        Drained::Open
    }
}

impl Cause {
    fn into_error(self, kind: Kind) -> FabricError {
        match self {
            Self::Lost { peer, reason } => FabricError::RankLost {
                rank: Rank::at(peer),
                reason,
            },
            Self::Aborted(Abort { rank, reason }) => FabricError::RankLost { rank, reason },
            Self::Silent { peer, waited } => {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                FabricError::Timeout {
                    rank: Rank::at(peer),
                    waited_ms,
                    doing: doing(kind),
                }
            }
            Self::Broken { peer, reason } => {
                let rank = Rank::at(peer);
                FabricError::Protocol {
                    rank: Some(rank),
                    peer: rank.to_string(),
                    reason,
                }
            }
            Self::Wait(error) => FabricError::Io(error),
        }
    }
}

fn doing(kind: Kind) -> &'static str {
    match kind {
        Kind::Sum | Kind::SumPart | Kind::SumDone => "summing over all ranks",
        Kind::Gather => "gathering from all ranks",
        Kind::Broadcast => "broadcasting",
        Kind::Message => "passing a message",
        Kind::Barrier => "meeting at a barrier",
        Kind::Abort => "ending the group",
    }
}

/// How long a rank that gives up talks to the survivors.
const FAREWELL_TIME_MAX: Duration = Duration::from_millis(250);
/// Bounds one look at what a peer has sent; more than sockets hold.
const DRAIN_READS_MAX: usize = 1024;
