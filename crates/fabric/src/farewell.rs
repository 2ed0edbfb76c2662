//! How a group ends: every rank that can still be told learns which rank was lost.

use std::iter;
use std::time::{Duration, Instant};

use crate::error::FabricError;
use crate::frame::{self, Abort, Header, Kind};
use crate::link::{Interest, Links};
use crate::moving::Moving;
use crate::rank::Rank;
use crate::transfer::{Outgoing, Traffic};
use crate::wire::{Cause, Peer, Wire};

impl Wire {
    /// Ends the group after a failure in the middle of an operation; returns the error of that operation.
    pub(crate) fn fail(
        &mut self,
        cause: Cause,
        traffic: &dyn Traffic,
        moving: &Moving,
    ) -> FabricError {
        self.links.give_up();
        for recv in &moving.recvs {
            self.peers[recv.peer].skip = recv.bytes_left();
        }
        // A peer that ends because it lost another says so before it closes; that rank is the one to name.
        let cause = match cause {
            Cause::Lost { .. } => self.find_abort().map_or(cause, Cause::Aborted),
            cause => cause,
        };
        // Told that somebody waits in vain, each says whom it waits for itself.
        let cause = match cause {
            Cause::Aborted(Abort {
                is_silence: true, ..
            }) => self.waits_for(moving),
            cause => cause,
        };
        let error = cause.into_error(traffic.kind(moving.receiving));
        let is_silence = matches!(error, FabricError::Timeout { .. });
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
        let abort = Abort {
            rank,
            is_silence,
            reason,
        };
        let ended = self.end(abort, midway.collect());
        if is_silence && (ended.rank != rank || rank == self.rank) {
            let Abort { rank, reason, .. } = ended;
            return FabricError::RankLost { rank, reason };
        }
        error
    }

    /// Says whom this rank waits for: itself, if it has not waited for long.
    fn waits_for(&self, moving: &Moving) -> Cause {
        let now = Instant::now();
        let waited = moving
            .slept_since
            .map_or(Duration::ZERO, |since| now - since);
        let stillest = moving.stillest(now);
        // Not by when its frame has last moved: the system takes bytes for a rank that does not.
        let (peer, cable) = match stillest.filter(|_| waited >= self.timeout / 2) {
            Some((_, peer, comes)) => {
                let cable = comes.and_then(|comes| self.links.turn(peer, comes));
                (peer, cable)
            }
            None => (self.rank.index(), None),
        };
        Cause::Silent {
            peer,
            waited,
            cable: cable.map(str::to_owned),
        }
    }

    /// Tells all peers of `abort` and hears them out, for a short time at most; nothing is possible after that. Returns what the
    /// group has ended with, by all that was said.
    ///
    /// Frames that are half out, `midway`, are finished first, or the peer would take the news for payload. A survivor is heard until
    /// it says farewell as well: a socket that is closed before may take back what the other end has not read yet. The
    /// lost rank is told if that goes without waiting, so that it knows if it should wake up.
    pub(crate) fn end(&mut self, abort: Abort, midway: Vec<(Outgoing, &[u8])>) -> Abort {
        self.links.give_up();
        let began = Instant::now();
        let (mut until, last) = (began + FAREWELL_STILL_MAX, began + FAREWELL_TIME_MAX);
        let (payload, own) = (abort.encode(), self.rank.index());
        let mut said = vec![None; self.world()];
        said[own] = Some(abort);
        let mut news = midway;
        for peer in self.others() {
            let sequence = self.peers[peer].frames_sent;
            let send = Outgoing::new(peer, Kind::Abort, sequence, &payload);
            news.push((send, &payload));
        }
        let mut talking: Vec<usize> = self.others().collect();
        loop {
            // One that goes on reading is there to be told.
            if self.push_in_order(&mut news, last) {
                until = last.min(Instant::now() + FAREWELL_STILL_MAX);
            }
            talking.retain(|&peer| {
                let drained = self.peers[peer].drain(self.links.as_mut(), peer);
                if let Drained::Farewell(abort) = drained {
                    said[peer] = Some(abort);
                    return false;
                }
                matches!(drained, Drained::Open)
            });
            let verdict = verdict(own, &said);
            // Of one that is only waited for, nobody knows yet whether it has something to say.
            let counts = |peer: usize| verdict.is_silence || peer != verdict.rank.index();
            news.retain(|(send, _)| counts(send.peer));
            // One for each, for a peer that is only written to is not heard out.
            let interest = |peer: usize| Interest {
                peer,
                read: counts(peer) && talking.contains(&peer),
                write: news.iter().any(|(send, _)| send.peer == peer),
                ..Interest::none(peer)
            };
            let interests = self.others().map(interest);
            let interests: Vec<Interest> = interests.filter(|it| it.is_any()).collect();
            let left = until.saturating_duration_since(Instant::now());
            if interests.is_empty() || left.is_zero() || self.links.wait(&interests, left).is_err()
            {
                self.links.reclaim();
                self.ended = Some(verdict.clone());
                return verdict;
            }
        }
    }

    /// Writes what the links take; what is done or hopeless leaves `news`. True when anything moved.
    fn push_in_order(&mut self, news: &mut Vec<(Outgoing, &[u8])>, last: Instant) -> bool {
        let (mut blocked, mut moved) = (Vec::new(), false);
        news.retain_mut(|(send, payload)| {
            // Nothing to the same peer overtakes what is half out.
            if blocked.contains(&send.peer) {
                return true;
            }
            while !send.is_done() {
                // A long frame to one that goes on reading must not outlast the farewell.
                if Instant::now() >= last {
                    return false;
                }
                match send.push(self.links.as_mut(), payload) {
                    Ok(true) => moved = true,
                    Ok(false) => {
                        blocked.push(send.peer);
                        return true;
                    }
                    Err(_) => return false,
                }
            }
            false
        });
        moved
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

/// Returns what counts of all that was said: what is certain, or else who is at the end of those that wait for each other.
fn verdict(own: usize, said: &[Option<Abort>]) -> Abort {
    let mine = said[own].as_ref().expect("this rank has spoken");
    if !mine.is_silence {
        return mine.clone();
    }
    if let Some(certain) = said.iter().flatten().find(|abort| !abort.is_silence) {
        return certain.clone();
    }
    let awaited = |rank: usize| Some(said.get(rank)?.as_ref()?.rank.index());
    let waits = |rank: &usize| awaited(*rank).is_some_and(|other| other != *rank);
    let way = |from| iter::successors(Some(from), |rank| awaited(*rank));
    let start = (0..said.len()).find(waits).unwrap_or(own);
    let last = match way(start).nth(said.len()) {
        None => way(start).last(),
        // A circle, or one that says that it waits for nobody.
        Some(within) => way(within).take(said.len()).min(),
    };
    let names = |abort: &&Abort| Some(abort.rank.index()) == last;
    said.iter().flatten().find(names).unwrap_or(mine).clone()
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
            Self::Aborted(Abort { rank, reason, .. }) => FabricError::RankLost { rank, reason },
            Self::Silent {
                peer,
                waited,
                cable,
            } => {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                FabricError::Timeout {
                    rank: Rank::at(peer),
                    waited_ms,
                    doing: doing(kind),
                    cable,
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

/// How long a rank that gives up talks to survivors that take nothing and say nothing, and to any.
const FAREWELL_STILL_MAX: Duration = Duration::from_millis(250);
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);
/// Bounds one look at what a peer has sent; more than sockets and rings hold.
const DRAIN_READS_MAX: usize = 1024;
