//! The ranks of a group and what they do together.

use std::time::Duration;

use crate::error::FabricError;
use crate::frame::{Abort, Kind};
use crate::link::{Links, Transport};
use crate::memory;
use crate::pace::Pace;
use crate::rank::{Rank, WORLD_MAX};
use crate::transfer::{Destination, Incoming, Outgoing};
use crate::wire::Wire;

/// One rank's place in a group of ranks that work together.
///
/// Every rank calls the same collectives in the same order. Each returns once this rank has its result and has handed
/// over what the others need. A wait ends with an error when a peer moves no byte for the [timeout](Self::set_timeout).
///
/// The first failure ends the group on every rank: whoever notices a loss tells all the others, so that all of them name
/// the same rank, and every later call returns that loss again. Dropping a group closes its links, which the others see
/// at once as the loss of this rank (as soon as they want something from it); nothing more is sent, so a rank that ends
/// for another's sake calls [`abort`](Self::abort) before.
pub struct Group {
    wire: Wire,
    /// What the others bring to a sum; kept, so that steps do not allocate.
    terms: Vec<f32>,
}

/// Returns the groups of `world` ranks that run in one process, in rank order: for tests.
///
/// # Panics
/// If `world` is 0 or above [`WORLD_MAX`].
#[must_use]
pub fn in_process(world: usize, timeout: Duration) -> Vec<Group> {
    assert!(
        (1..=WORLD_MAX).contains(&world),
        "a group has 1 to {WORLD_MAX} ranks"
    );
    let mut links = Vec::with_capacity(world);
    for (rank, own) in memory::mesh(world).into_iter().enumerate() {
        let mut group = Group::new(
            Rank::at(rank),
            world,
            Box::new(own),
            Pace::of_machine(world),
        );
        group.set_timeout(timeout);
        links.push(group);
    }
    links
}

/// Returns a group of one rank: every collective is a copy at most.
#[must_use]
pub fn solo() -> Group {
    in_process(1, TIMEOUT).remove(0)
}

impl Group {
    pub(crate) fn new(rank: Rank, world: usize, links: Box<dyn Links>, pace: Pace) -> Self {
        Self {
            wire: Wire::new(rank, world, links, pace, TIMEOUT),
            terms: Vec::new(),
        }
    }

    /// Returns this rank.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.wire.rank
    }

    /// Returns the number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.wire.world()
    }

    /// Returns what carries bytes to and from `peer`; nothing for this rank itself and for one beyond the world.
    #[must_use]
    pub fn transport(&self, peer: Rank) -> Option<Transport> {
        self.wire.links.transport(peer.index())
    }

    /// Sets how long a peer may move no byte before it counts as lost: 30 s at first, a day at most.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout.min(TIMEOUT_MAX);
    }

    /// Replaces `data` on every rank by its sum over all ranks, added up strictly in rank order: all ranks get the same bits.
    ///
    /// All ranks give the same length. An empty `data` returns at once, without a message.
    ///
    /// # Errors
    /// [`FabricError::RankLost`], [`FabricError::Timeout`], [`FabricError::Protocol`] when ranks disagree on the length.
    pub fn all_reduce_sum(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        if self.world() == 1 || data.is_empty() {
            Ok(())
        } else if self.world() == 2 || size_of_val(data) <= DIRECT_BYTES_MAX {
            self.sum_directly(data)
        } else {
            self.sum_in_chunks(data)
        }
    }

    /// Gives every rank the bytes of each: `all[r]` becomes what rank r passed as `mine`. Lengths may differ.
    ///
    /// # Errors
    /// [`FabricError::RankLost`], [`FabricError::Timeout`], [`FabricError::Protocol`].
    pub fn all_gather(&mut self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<(), FabricError> {
        let own = self.rank().index();
        all.resize_with(self.world(), Vec::new);
        all[own].clear();
        all[own].extend_from_slice(mine);
        let recvs = all.iter_mut().enumerate().filter(|(peer, _)| *peer != own);
        let recvs = recvs
            .map(|(peer, part)| Incoming::new(peer, Destination::Vec(part)))
            .collect();
        self.wire
            .exchange(Kind::Gather, to_all(&self.wire, mine), recvs)
    }

    /// Concatenates the values of all ranks into `out`, in rank order, where `lens[r]` is the number of values of rank r.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when the lengths do not fit together, else as [`all_gather`](Self::all_gather).
    pub fn all_gather_f32(
        &mut self,
        mine: &[f32],
        lens: &[usize],
        out: &mut [f32],
    ) -> Result<(), FabricError> {
        let own = self.rank().index();
        if lens.len() != self.world()
            || lens[own] != mine.len()
            || lens.iter().sum::<usize>() != out.len()
        {
            let (values, room, world) = (mine.len(), out.len(), self.world());
            return Err(FabricError::Invalid(format!(
                "gathering {values} values of rank {own} of {world} into room for {room} with lengths {lens:?}"
            )));
        }
        if self.world() == 1 {
            out.copy_from_slice(mine);
            return Ok(());
        }
        let mut parts = split(out, lens);
        parts.remove(own).copy_from_slice(mine);
        let recvs = from_all(&self.wire, parts);
        self.wire.exchange(
            Kind::Gather,
            to_all(&self.wire, bytemuck::cast_slice(mine)),
            recvs,
        )
    }

    /// Replaces `data` on every rank by that of `root`.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such rank, else as [`all_gather`](Self::all_gather).
    pub fn broadcast(&mut self, root: Rank, data: &mut Vec<u8>) -> Result<(), FabricError> {
        if root == self.rank() {
            let sends = to_all(&self.wire, data);
            self.wire.exchange(Kind::Broadcast, sends, Vec::new())
        } else {
            let root = self.peer(root)?;
            self.wire.exchange(
                Kind::Broadcast,
                Vec::new(),
                vec![Incoming::new(root, Destination::Vec(data))],
            )
        }
    }

    /// Sends `data` to one rank, which [receives](Self::recv) it; messages to one rank arrive in the order they were sent.
    ///
    /// Returns once the bytes are handed over to the link, which may be before they are received.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such other rank, else as [`all_gather`](Self::all_gather).
    pub fn send(&mut self, to: Rank, data: &[u8]) -> Result<(), FabricError> {
        let to = self.peer(to)?;
        self.wire
            .exchange(Kind::Message, vec![Outgoing::new(to, data)], Vec::new())
    }

    /// Receives the next message of one rank; it replaces `data`.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such other rank, else as [`all_gather`](Self::all_gather).
    pub fn recv(&mut self, from: Rank, data: &mut Vec<u8>) -> Result<(), FabricError> {
        let from = self.peer(from)?;
        self.wire.exchange(
            Kind::Message,
            Vec::new(),
            vec![Incoming::new(from, Destination::Vec(data))],
        )
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn barrier(&mut self) -> Result<(), FabricError> {
        let recvs = self
            .wire
            .others()
            .map(|peer| Incoming::new(peer, Destination::Slice(&mut [])));
        self.wire
            .exchange(Kind::Barrier, to_all(&self.wire, &[]), recvs.collect())
    }

    /// Ends the group, and tells every peer that can be told within 250 ms that `lost` is the rank to name.
    ///
    /// Failures inside a collective do this by themselves. Does nothing when the group is over already.
    pub fn abort(&mut self, lost: Rank, reason: &str) {
        self.wire.abort(Abort {
            rank: lost,
            reason: reason.to_owned(),
        });
    }

    /// Every rank sends all of its values to every other and sums up for itself: one message deep, best for small data.
    fn sum_directly(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        let terms = resized(&mut self.terms, data.len() * (self.wire.world() - 1));
        let sends = to_all(&self.wire, bytemuck::cast_slice(data));
        let recvs = from_all(&self.wire, terms.chunks_exact_mut(data.len()));
        self.wire.exchange(Kind::Sum, sends, recvs)?;
        sum_in_rank_order(data, self.wire.rank.index(), terms);
        Ok(())
    }

    /// Every rank sums up one chunk and gives it to the others (reduce-scatter, then all-gather, both by direct exchange):
    /// each link carries 2/N of the data each way, best for large data. One rank computes each sum, so the bits agree.
    fn sum_in_chunks(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        let (own, world) = (self.wire.rank.index(), self.wire.world());
        let bound = |rank: usize| rank * data.len() / world;
        let lens: Vec<usize> = (0..world)
            .map(|rank| bound(rank + 1) - bound(rank))
            .collect();
        let mut chunks = split(data, &lens);
        let mine = chunks.remove(own);

        let terms = resized(&mut self.terms, mine.len() * (world - 1));
        let pairs = self.wire.others().zip(&chunks);
        let sends = pairs
            .map(|(peer, chunk)| Outgoing::new(peer, bytemuck::cast_slice(chunk)))
            .collect();
        let recvs = from_all(&self.wire, terms.chunks_exact_mut(mine.len()));
        self.wire.exchange(Kind::SumPart, sends, recvs)?;
        sum_in_rank_order(mine, own, terms);

        let sends = to_all(&self.wire, bytemuck::cast_slice(mine));
        let recvs = from_all(&self.wire, chunks);
        self.wire.exchange(Kind::SumDone, sends, recvs)
    }

    fn peer(&self, rank: Rank) -> Result<usize, FabricError> {
        let index = rank.index();
        if index >= self.world() || rank == self.rank() {
            let (own, world) = (self.rank(), self.world());
            return Err(FabricError::Invalid(format!(
                "{own} of {world} has no peer {rank}"
            )));
        }
        Ok(index)
    }
}

/// Returns one frame with `payload` to each peer.
fn to_all<'a>(wire: &Wire, payload: &'a [u8]) -> Vec<Outgoing<'a>> {
    wire.others()
        .map(|peer| Outgoing::new(peer, payload))
        .collect()
}

/// Returns one frame of each peer, in rank order, into its own part.
fn from_all<'a>(wire: &Wire, parts: impl IntoIterator<Item = &'a mut [f32]>) -> Vec<Incoming<'a>> {
    let into = |part| Destination::Slice(bytemuck::cast_slice_mut(part));
    wire.others()
        .zip(parts)
        .map(|(peer, part)| Incoming::new(peer, into(part)))
        .collect()
}

/// Adds to `mine` what the other ranks have, `terms`, in the order of all ranks with `own` in its place.
///
/// Float addition is not associative: only one order on all ranks gives all of them the same bits.
fn sum_in_rank_order(mine: &mut [f32], own: usize, terms: &mut [f32]) {
    let (before, after) = terms.split_at_mut(own * mine.len());
    if let Some((sum, later)) = before.split_at_mut_checked(mine.len()) {
        for term in later.chunks_exact(mine.len()) {
            sum.iter_mut()
                .zip(term)
                .for_each(|(sum, term)| *sum += term);
        }
        mine.iter_mut()
            .zip(sum)
            .for_each(|(mine, sum)| *mine += *sum);
    }
    for term in after.chunks_exact(mine.len()) {
        mine.iter_mut()
            .zip(term)
            .for_each(|(mine, term)| *mine += term);
    }
}

/// Cuts `data` into consecutive parts of `lens`.
fn split<'a>(mut data: &'a mut [f32], lens: &[usize]) -> Vec<&'a mut [f32]> {
    let mut cut = |len: &usize| {
        data.split_off_mut(..*len)
            .expect("the lengths add up to that of the data")
    };
    lens.iter().map(&mut cut).collect()
}

/// Returns the first `len` values of a buffer that grows as needed and never shrinks.
fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Up to here one message deep beats fewer bytes.
const DIRECT_BYTES_MAX: usize = 32 * 1024;
/// How long a peer may be still, unless the owner of the group says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds what is added to the present.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
