//! How a group ends: every rank that can still be told learns which rank was lost.

use std::time::{Duration, Instant};

use crate::error::FabricError;
use crate::frame::{self, Abort, Header, Kind};
use crate::link::{Interest, Links};
use crate::rank::Rank;
use crate::transfer::{Outgoing, Traffic};
use crate::wire::{Cause, Moving, Peer, Wire};

impl Wire {
    /// Ends the group after a failure in the middle of an operation; returns the error of that operation.
    pub(crate) fn fail(
        &mut self,
        cause: Cause,
        traffic: &dyn Traffic,
        moving: &Moving,
    ) -> FabricError {
        for recv in &moving.recvs {
            self.peers[recv.peer].skip = recv.bytes_left();
        }
        // A peer that ends because it lost another says so before it closes; that rank is the one to name.
        let cause = match cause {
            Cause::Lost { .. } => self.find_abort().map_or(cause, Cause::Aborted),
            cause => cause,
        };
        let error = cause.into_error(traffic.kind(moving.receiving));
        let rank = error.lost_rank().unwrap_or(self.rank);
        let reason = match &error {
            FabricError::RankLost { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        let midway = moving.sends.iter().filter(|send| send.is_midway());
        let midway = midway.map(|send| {
            let payload = traffic.payload(moving.sending, send.peer);
            (send.clone(), payload.unwrap_or_default())
        });
        self.end(Abort { rank, reason }, midway.collect());
        error
    }

    /// Tells all peers of `abort` and hears them out, for a short time at most; nothing is possible after that.
    ///
    /// Frames that are half out, `midway`, are finished first, or the peer would take the news for payload. A survivor is heard until
    /// it says farewell as well: a socket that is closed before may take back what the other end has not read yet. The
    /// lost rank is told if that goes without waiting, so that it knows if it should wake up.
    pub(crate) fn end(&mut self, abort: Abort, midway: Vec<(Outgoing, &[u8])>) {
        let until = Instant::now() + FAREWELL_TIME_MAX;
        let (payload, blamed) = (abort.encode(), abort.rank.index());
        self.ended = Some(abort);
        let mut news = midway;
        for peer in self.others() {
            let sequence = self.peers[peer].frames_sent;
            let send = Outgoing::new(peer, Kind::Abort, sequence, &payload);
            news.push((send, &payload));
        }
        let mut talking: Vec<usize> = self.others().filter(|peer| *peer != blamed).collect();
        loop {
            self.push_in_order(&mut news);
            news.retain(|(send, _)| send.peer != blamed);
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
            let writing = news.iter().map(|(send, _)| Interest {
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
    fn push_in_order(&mut self, news: &mut Vec<(Outgoing, &[u8])>) {
        let mut blocked = Vec::new();
        news.retain_mut(|(send, payload)| {
            // Nothing to the same peer overtakes what is half out.
            if blocked.contains(&send.peer) {
                return true;
            }
            while !send.is_done() {
                match send.push(self.links.as_mut(), payload) {
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
            match self.fill(links, index, usize::MAX) {
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
        Kind::Reduce | Kind::ReducePart | Kind::ReduceDone => "reducing over all ranks",
        Kind::Gather => "gathering from all ranks",
        Kind::Broadcast => "broadcasting",
        Kind::AllToAll => "exchanging parts with all ranks",
        Kind::Message => "passing a message",
        Kind::Barrier => "meeting at a barrier",
        Kind::Abort => "ending the group",
    }
}

/// How long a rank that gives up talks to the survivors.
const FAREWELL_TIME_MAX: Duration = Duration::from_millis(250);
/// Bounds one look at what a peer has sent; more than sockets hold.
const DRAIN_READS_MAX: usize = 1024;
