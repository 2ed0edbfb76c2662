//! Moves frames between one rank and its peers, all at once, with a bound on every wait.

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use crate::error::FabricError;
use crate::frame::{Abort, FrameError};
use crate::inbox::Inbox;
use crate::link::{Interest, Links};
use crate::moving::{Moving, Unsettled};
use crate::pace::Pace;
use crate::rank::Rank;
use crate::transfer::{Destination, Incoming, Outgoing, Traffic};

/// One rank's end of all its links, with what has to be remembered between two operations.
pub(crate) struct Wire {
    pub(crate) rank: Rank,
    pub(crate) timeout: Duration,
    pace: Pace,
    pub(crate) links: Box<dyn Links>,
    pub(crate) peers: Vec<Peer>,
    /// Empty between two operations; kept, so that they do not allocate.
    moving: Moving,
    /// Set once the group is over.
    pub(crate) ended: Option<Abort>,
}

/// What is remembered of one peer.
pub(crate) struct Peer {
    pub(crate) inbox: Inbox,
    pub(crate) frames_sent: u32,
    frames_received: u32,
    /// Its end of the link is closed; what is in the inbox still counts.
    closed: bool,
    /// Bytes to pass over before the next header; of use once the group is over.
    pub(crate) skip: usize,
}

/// Why an operation cannot go on.
#[derive(Debug)]
pub(crate) enum Cause {
    /// The link to a peer ended.
    Lost { peer: usize, reason: String },
    /// A peer told that the group is over.
    Aborted(Abort),
    /// A peer moved nothing for the whole timeout, over the cable whose turn it was if there are several.
    Silent {
        peer: usize,
        waited: Duration,
        cable: Option<String>,
    },
    /// A peer sent what it must not send now.
    Broken { peer: usize, reason: String },
    /// The operating system would not let us wait.
    Wait(io::Error),
}

impl Wire {
    pub(crate) fn new(
        rank: Rank,
        world: usize,
        links: Box<dyn Links>,
        pace: Pace,
        timeout: Duration,
    ) -> Self {
        let peer = || Peer {
            inbox: Inbox::new(),
            frames_sent: 0,
            frames_received: 0,
            closed: false,
            skip: 0,
        };
        let peers = (0..world).map(|_| peer()).collect();
        Self {
            rank,
            timeout,
            pace,
            links,
            peers,
            moving: Moving::with_room_for(world),
            ended: None,
        }
    }

    pub(crate) fn world(&self) -> usize {
        self.peers.len()
    }

    /// Returns the other ranks, in order.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank.index();
        (0..self.peers.len()).filter(move |peer| *peer != own)
    }

    /// Sends and receives all frames of `traffic`, those of a round at the same time and in whatever order they move.
    ///
    /// Any failure ends the group: every peer is told who was lost, so that all of them name the same rank.
    pub(crate) fn exchange(&mut self, traffic: &mut dyn Traffic) -> Result<(), FabricError> {
        if let Some(Abort { rank, reason, .. }) = self.ended.clone() {
            return Err(FabricError::RankLost { rank, reason });
        }
        if traffic.rounds() == 0 {
            return Ok(());
        }
        let mut moving = mem::take(&mut self.moving);
        let outcome = self
            .drive(traffic, &mut moving)
            .and_then(|()| self.settle(&mut moving));
        let outcome = outcome.map_err(|cause| self.fail(cause, traffic, &moving));
        moving.clear();
        self.moving = moving;
        outcome
    }

    /// Tells every peer that the group is over because of `lost`.
    pub(crate) fn abort(&mut self, abort: Abort) {
        if self.ended.is_none() {
            self.end(abort, Vec::new());
        }
    }

    fn drive(&mut self, traffic: &mut dyn Traffic, moving: &mut Moving) -> Result<(), Cause> {
        let (rounds, lead) = (traffic.rounds(), traffic.lead());
        // Rounds whose sends have begun, and those of which they are over; the receives are those of round `ended`.
        let (mut begun, mut gone, mut ended) = (0, 0, 0);
        let mut patience = self.pace.start();
        self.await_round(traffic, ended, moving);
        loop {
            let mut moved = false;
            if begun == gone && begun < rounds && begun <= ended + lead {
                self.begin_round(traffic, begun, moving);
                begun += 1;
                moved = true;
            }
            for send in moving.sends.iter_mut().filter(|send| !send.is_done()) {
                let payload = traffic.payload(moving.sending, send.peer);
                moved |= send
                    .push(self.links.as_mut(), payload.unwrap_or_default())
                    .map_err(|error| lost(send.peer, &error))?;
            }
            if moving.sends.iter().all(Outgoing::is_done) {
                gone = begun;
            }
            for recv in moving.recvs.iter_mut().filter(|recv| !recv.is_done()) {
                let into = traffic.destination(ended, recv.peer);
                let into = into.unwrap_or(Destination::Slice(&mut []));
                moved |= recv.pull(self.links.as_mut(), &mut self.peers[recv.peer], into)?;
            }
            if gone > ended && moving.recvs.iter().all(Incoming::is_done) {
                traffic.end_round(ended);
                ended += 1;
                if ended == rounds {
                    return Ok(());
                }
                self.await_round(traffic, ended, moving);
                moved = true;
            }
            if moved {
                patience.renew();
            } else if !patience.pass() {
                self.sleep(moving)?;
            }
        }
    }

    /// Waits until memory that was lent may change again. Before the end of an exchange nothing has to be waited for: what
    /// replaces values of a caller comes from peers that have received them. (What is used again sooner is never lent.)
    fn settle(&mut self, moving: &mut Moving) -> Result<(), Cause> {
        moving.slept_since = None;
        moving.loans.extend(self.others().map(Unsettled::with));
        let mut patience = self.pace.start();
        loop {
            let mut moved = false;
            for loan in &mut moving.loans {
                moved |= loan.look(self.links.as_mut())?;
            }
            moving.loans.retain(|loan| loan.left > 0);
            if moving.loans.is_empty() {
                return Ok(());
            } else if moved {
                patience.renew();
            } else if !patience.pass() {
                self.sleep(moving)?;
            }
        }
    }

    /// Makes the frames that `round` sends.
    fn begin_round(&mut self, traffic: &dyn Traffic, round: usize, moving: &mut Moving) {
        moving.sends.clear();
        moving.sending = round;
        let kind = traffic.kind(round);
        for peer in self.others() {
            if let Some(payload) = traffic.payload(round, peer) {
                let sequence = &mut self.peers[peer].frames_sent;
                let send = Outgoing::new(peer, kind, *sequence, payload);
                *sequence = sequence.wrapping_add(1);
                moving.sends.push(send);
            }
        }
    }

    /// Makes the frames that `round` receives.
    fn await_round(&mut self, traffic: &mut dyn Traffic, round: usize, moving: &mut Moving) {
        moving.recvs.clear();
        moving.receiving = round;
        let kind = traffic.kind(round);
        for peer in self.others() {
            if traffic.destination(round, peer).is_some() {
                let sequence = &mut self.peers[peer].frames_received;
                moving.recvs.push(Incoming::new(peer, kind, *sequence));
                *sequence = sequence.wrapping_add(1);
            }
        }
    }

    /// Sleeps until something may move, no longer than until the timeout of the peer that has been still the longest.
    fn sleep(&mut self, moving: &mut Moving) -> Result<(), Cause> {
        self.listen(&moving.recvs)?;
        let now = Instant::now();
        moving.slept_since.get_or_insert(now);
        self.list_interests(moving, now)?;
        let stillest = moving.stillest(now);
        let (since, peer, comes) = stillest.expect("something is left to do when a rank sleeps");
        let waited = now.duration_since(since);
        let left = self.timeout.saturating_sub(waited);
        if left.is_zero() {
            let cable = comes.and_then(|comes| self.links.turn(peer, comes));
            let cable = cable.map(str::to_owned);
            return Err(Cause::Silent {
                peer,
                waited,
                cable,
            });
        }
        self.links
            .wait(&moving.interests, left)
            .map_err(Cause::Wait)
    }

    /// Lists what to wake for, and takes note of what is still.
    ///
    /// Every link is listened to, also those of peers that owe nothing: one of them may tell that the group is over.
    fn list_interests(&self, moving: &mut Moving, now: Instant) -> Result<(), Cause> {
        let interests = &mut moving.interests;
        let listening = |(peer, Peer { inbox, closed, .. }): (usize, &Peer)| Interest {
            read: peer != self.rank.index() && !closed && !inbox.is_full(),
            ..Interest::none(peer)
        };
        interests.clear();
        interests.extend(self.peers.iter().enumerate().map(listening));
        for recv in moving.recvs.iter_mut().filter(|recv| !recv.is_done()) {
            interests[recv.peer].read = true;
            recv.still_since.get_or_insert(now);
        }
        for send in moving.sends.iter_mut().filter(|send| !send.is_done()) {
            if self.peers[send.peer].closed {
                return Err(Cause::Lost {
                    peer: send.peer,
                    reason: CLOSED.to_owned(),
                });
            }
            interests[send.peer].write = true;
            send.still_since.get_or_insert(now);
        }
        for loan in &mut moving.loans {
            interests[loan.peer].settle = true;
            loan.still_since.get_or_insert(now);
        }
        interests.retain(|interest| interest.is_any());
        Ok(())
    }

    /// Reads what came from peers that owe nothing now.
    fn listen(&mut self, recvs: &[Incoming]) -> Result<(), Cause> {
        for index in self.others() {
            let peer = &mut self.peers[index];
            let owes = recvs
                .iter()
                .any(|recv| recv.peer == index && !recv.is_done());
            if owes {
                continue;
            }
            if !peer.closed && !peer.inbox.is_full() {
                // One that has ended may have done its part and left; that is no loss before something is wanted from it.
                peer.closed = peer.fill(self.links.as_mut(), index, usize::MAX).is_err();
            }
            if let Some(abort) = peer.inbox.abort() {
                return Err(Cause::Aborted(abort));
            }
        }
        Ok(())
    }
}

impl Peer {
    /// Reads once into the inbox, `bytes_max` at most; true when something came.
    pub(crate) fn fill(
        &mut self,
        links: &mut dyn Links,
        index: usize,
        bytes_max: usize,
    ) -> Result<bool, Cause> {
        let room = self.inbox.room();
        let bytes = room.len().min(bytes_max);
        match links.read(index, &mut room[..bytes]) {
            Ok(None) => Ok(false),
            Ok(Some(0)) => Err(Cause::Lost {
                peer: index,
                reason: CLOSED.to_owned(),
            }),
            Ok(Some(count)) => {
                self.inbox.filled(count);
                Ok(true)
            }
            Err(error) => Err(lost(index, &error)),
        }
    }
}

impl From<(usize, FrameError)> for Cause {
    fn from((peer, error): (usize, FrameError)) -> Self {
        Self::Broken {
            peer,
            reason: error.to_string(),
        }
    }
}

/// Returns the loss of a peer whose link failed.
pub(crate) fn lost(peer: usize, error: &io::Error) -> Cause {
    let reason = match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CLOSED.to_owned(),
        _ => format!("its connection failed ({error})"),
    };
    Cause::Lost { peer, reason }
}

pub(crate) const CLOSED: &str = "its connection was closed";
