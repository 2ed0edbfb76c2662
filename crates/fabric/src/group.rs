//! The ranks of a group and what they do together.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::algorithm::blocks::{Blocks, Nothing, Row, Terms};
use crate::algorithm::chain::Chain;
use crate::algorithm::chunks::Chunks;
use crate::algorithm::{Choice, Place, THRESHOLDS, Topology, chunk, direct, relay};
use crate::error::FabricError;
use crate::exchange::{self, Exchange};
use crate::frame::{Abort, Kind};
use crate::link::{Links, Transport};
use crate::memory;
use crate::pace::Pace;
use crate::pages::Pages;
use crate::rank::{Rank, WORLD_MAX};
use crate::reduce::{self, Element, Reduce};
use crate::region::Region;
use crate::transfer::check_length;
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
    topology: Topology,
    exchange: Exchange,
    /// What the others bring to a reduction; kept, so that steps do not allocate. Words, so that it suits all values.
    terms: Vec<u64>,
    /// What is passed on from neighbour to neighbour; kept as well.
    transit: Vec<Vec<u8>>,
    /// This rank's values, where they do not travel as they are; kept as well.
    blocks: Vec<exchange::Block>,
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
        THRESHOLDS.log(rank, world);
        Self {
            wire: Wire::new(rank, world, links, pace, TIMEOUT),
            topology: Topology::default(),
            exchange: Exchange::default(),
            blocks: Vec::new(),
            terms: Vec::new(),
            transit: Vec::new(),
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

    /// Returns how many cables carry the bytes to and from `peer`: several where a link is striped.
    #[must_use]
    pub fn cables(&self, peer: Rank) -> usize {
        self.wire.links.cables(peer.index())
    }

    /// Returns how many cables like the fastest of those would carry as much as they do together: fewer than there are where
    /// some are slower.
    #[must_use]
    pub fn breadth(&self, peer: Rank) -> f64 {
        self.wire.links.breadth(peer.index())
    }

    /// Sets how long a peer may move no byte before it counts as lost: 30 s at first, a day at most.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.wire.timeout = timeout.min(TIMEOUT_MAX);
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.wire.timeout
    }

    /// Returns which links the collectives use.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// Sets which links the collectives use from now on; all ranks set the same. Every rank keeps its links to all others,
    /// for [`send`](Self::send) and for word that a rank was lost.
    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = topology;
    }

    /// Sets what [`all_reduce_sum`](Self::all_reduce_sum) sends from now on; all ranks set the same.
    pub fn set_exchange(&mut self, exchange: Exchange) {
        self.exchange = exchange;
    }

    /// Lends memory for `len` values: RDMA devices send what lies there, and ranks of the same machine read it there, without its
    /// being copied first, where that is worth it.
    ///
    /// With other links it is memory like any other. Ask once, for all that will be needed, at most 32 times: it stays until both
    /// the region and the group are gone, and counts as locked memory for every device and each peer of that. A device or a rank
    /// that does not take it gets copies, as the log says at level debug.
    ///
    /// # Errors
    /// [`FabricError::Io`] when the system has no memory for it.
    pub fn region(&mut self, len: usize) -> Result<Region, FabricError> {
        let bytes = len.saturating_mul(size_of::<f32>());
        let links = &mut self.wire.links;
        let is_shared = |peer| links.transport(peer) == Some(Transport::SharedMemory);
        let pages = match (0..self.wire.peers.len()).any(is_shared) {
            true => Pages::to_lend(bytes)?,
            false => Pages::new(bytes)?,
        };
        let pages = Arc::new(pages);
        links.lend(&pages);
        Ok(Region::new(pages))
    }

    /// Replaces `data` on every rank by its sum over all ranks: [`all_reduce`](Self::all_reduce) of what a model mostly needs,
    /// by the [exchange](Self::set_exchange) that is set.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn all_reduce_sum(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        if self.exchange == Exchange::F32 || self.world() == 1 {
            return self.all_reduce(Reduce::Sum, data);
        }
        let mut blocks = mem::take(&mut self.blocks);
        exchange::pack(data, &mut blocks);
        let outcome = self.all_reduce(Reduce::Sum, &mut blocks);
        exchange::unpack(&blocks, data);
        self.blocks = blocks;
        outcome
    }

    /// Replaces `data` on every rank by what `op` makes of that of all ranks, strictly in rank order: all ranks get the same
    /// bits, and get them whatever the [topology](Self::set_topology) and the size.
    ///
    /// All ranks give the same `op`, kind of value and length. An empty `data` returns at once, without a message.
    ///
    /// # Errors
    /// [`FabricError::RankLost`], [`FabricError::Timeout`], [`FabricError::Protocol`] when ranks disagree on the length.
    pub fn all_reduce<E: Element>(
        &mut self,
        op: Reduce,
        data: &mut [E],
    ) -> Result<(), FabricError> {
        if self.world() == 1 || data.is_empty() {
            return Ok(());
        }
        match THRESHOLDS.choose(self.place(), size_of_val(data)) {
            Choice::Whole => self.reduce_whole(op, data),
            Choice::Chunks => self.reduce_in_chunks(op, data, true),
            Choice::Chain => self.reduce_along_chain(op, data),
        }
    }

    /// Reduces `data` as [`all_reduce`](Self::all_reduce) does, and returns this rank's part of the result, which is rank r
    /// of N's `r * len / N .. (r + 1) * len / N`. What is left in `data` outside of it has no meaning.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn reduce_scatter<'a, E: Element>(
        &mut self,
        op: Reduce,
        data: &'a mut [E],
    ) -> Result<&'a mut [E], FabricError> {
        if self.world() > 1 && !data.is_empty() {
            match self.place().is_ring {
                false => self.reduce_in_chunks(op, data, false)?,
                // Sums go up the whole chain in any case, and come down it at the same time.
                true => self.all_reduce(op, data)?,
            }
        }
        let part = chunk(data.len(), self.world(), self.rank().index());
        Ok(&mut data[part])
    }

    /// Gives every rank the bytes of each: `all[r]` becomes what rank r passed as `mine`. Lengths may differ.
    ///
    /// # Errors
    /// [`FabricError::RankLost`], [`FabricError::Timeout`], [`FabricError::Protocol`]; [`FabricError::Invalid`] for more than
    /// [`PAYLOAD_BYTES_MAX`](crate::frame::PAYLOAD_BYTES_MAX).
    pub fn all_gather(&mut self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<(), FabricError> {
        check_length(mine.len())?;
        let own = self.rank().index();
        all.resize_with(self.world(), Vec::new);
        all[own].clear();
        all[own].extend_from_slice(mine);
        self.gather(Kind::Gather, all.as_mut_slice())
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
        check_length(size_of_val(mine))?;
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
        let row = Row { values: out, lens };
        let place = row.range(own);
        row.values[place].copy_from_slice(mine);
        self.gather(Kind::Gather, row)
    }

    /// Gives every rank the bytes that each has for it: `all[r]` becomes what rank r passed as the `parts[s]` of this rank s.
    /// Lengths may differ.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] unless there is one part for each rank, else as [`all_gather`](Self::all_gather).
    pub fn all_to_all<P: AsRef<[u8]>>(
        &mut self,
        parts: &[P],
        all: &mut Vec<Vec<u8>>,
    ) -> Result<(), FabricError> {
        if parts.len() != self.world() {
            let (count, world) = (parts.len(), self.world());
            return Err(FabricError::Invalid(format!(
                "{count} parts for {world} ranks"
            )));
        }
        for part in parts {
            check_length(part.as_ref().len())?;
        }
        let (place, own) = (self.place(), self.rank().index());
        all.resize_with(self.world(), Vec::new);
        all[own].clear();
        all[own].extend_from_slice(parts[own].as_ref());
        if !place.is_ring {
            return self.wire.exchange(&mut direct::AllToAll { parts, all });
        }
        let transit_len = relay::AllToAll::<P>::transit_len(place);
        self.transit.resize_with(transit_len, Vec::new);
        self.wire.exchange(&mut relay::AllToAll {
            place,
            parts,
            all,
            transit: &mut self.transit,
        })
    }

    /// Replaces `data` on every rank by that of `root`.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such rank, else as [`all_gather`](Self::all_gather).
    pub fn broadcast(&mut self, root: Rank, data: &mut Vec<u8>) -> Result<(), FabricError> {
        let (place, kind) = (self.place(), Kind::Broadcast);
        if root == self.rank() {
            check_length(data.len())?;
        } else {
            self.peer(root)?;
        }
        let root = root.index();
        if place.is_ring {
            self.wire
                .exchange(&mut relay::Broadcast { place, root, data })
        } else if root == place.own {
            let to = None;
            self.wire.exchange(&mut direct::Send { kind, to, data })
        } else {
            let from = root;
            self.wire.exchange(&mut direct::Recv { kind, from, data })
        }
    }

    /// Sends `data` to one rank, which [receives](Self::recv) it; messages to one rank arrive in the order they were sent.
    ///
    /// Returns once the bytes are handed over to the link, which may be before they are received; those of a
    /// [region](Self::region) once nobody reads them there any more, which on one machine is when they are received: of ranks
    /// that send to each other, or in a circle, one receives first.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such other rank, else as [`all_gather`](Self::all_gather).
    pub fn send(&mut self, to: Rank, data: &[u8]) -> Result<(), FabricError> {
        check_length(data.len())?;
        let (kind, to) = (Kind::Message, Some(self.peer(to)?));
        self.wire.exchange(&mut direct::Send { kind, to, data })
    }

    /// Receives the next message of one rank; it replaces `data`.
    ///
    /// # Errors
    /// [`FabricError::Invalid`] when there is no such other rank, else as [`all_gather`](Self::all_gather).
    pub fn recv(&mut self, from: Rank, data: &mut Vec<u8>) -> Result<(), FabricError> {
        let (kind, from) = (Kind::Message, self.peer(from)?);
        self.wire.exchange(&mut direct::Recv { kind, from, data })
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn barrier(&mut self) -> Result<(), FabricError> {
        match self.place() {
            place if place.is_ring => self.wire.exchange(&mut relay::Barrier(place)),
            _ => self.gather(Kind::Barrier, Nothing),
        }
    }

    /// Ends the group, and tells every peer that can be told within a moment that `lost` is the rank to name.
    ///
    /// Failures inside a collective do this by themselves. Does nothing when the group is over already.
    pub fn abort(&mut self, lost: Rank, reason: &str) {
        self.wire.abort(Abort {
            rank: lost,
            is_silence: false,
            reason: reason.to_owned(),
        });
    }

    /// Every rank gets all values of every other and reduces for itself: few messages deep, best for small data.
    fn reduce_whole<E: Element>(&mut self, op: Reduce, data: &mut [E]) -> Result<(), FabricError> {
        let place = self.place();
        let mut terms = mem::take(&mut self.terms);
        let others = room::<E>(&mut terms, data.len() * (place.world - 1));
        let blocks = Terms {
            own: place.own,
            mine: data,
            others,
        };
        let outcome = self.gather(Kind::Reduce, blocks);
        if outcome.is_ok() {
            reduce::in_rank_order(op, data, place.own, others);
        }
        self.terms = terms;
        outcome
    }

    fn reduce_in_chunks<E: Element>(
        &mut self,
        op: Reduce,
        data: &mut [E],
        gathers: bool,
    ) -> Result<(), FabricError> {
        let Place { own, world, .. } = self.place();
        let piece_len = THRESHOLDS.piece_len::<E>(world - 1);
        self.wire.exchange(&mut Chunks {
            op,
            own,
            world,
            terms: room(&mut self.terms, (world - 1) * piece_len.min(data.len())),
            data,
            piece_len,
            gathers,
        })
    }

    fn reduce_along_chain<E: Element>(
        &mut self,
        op: Reduce,
        data: &mut [E],
    ) -> Result<(), FabricError> {
        let Place { own, world, .. } = self.place();
        let piece_len = THRESHOLDS.piece_len::<f32>(1) / E::LEN;
        self.wire.exchange(&mut Chain {
            op,
            own,
            world,
            data,
            sums: room(&mut self.terms, 2 * piece_len * E::LEN),
            piece_len,
        })
    }

    fn gather(&mut self, kind: Kind, blocks: impl Blocks) -> Result<(), FabricError> {
        let place = self.place();
        let own = place.own;
        match place.is_ring {
            false => self
                .wire
                .exchange(&mut direct::Gather { kind, own, blocks }),
            true => self.wire.exchange(&mut relay::Gather {
                kind,
                place,
                blocks,
            }),
        }
    }

    fn place(&self) -> Place {
        Place::new(self.rank().index(), self.world(), self.topology)
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

/// Returns room for `len` values in a buffer that grows as needed and never shrinks.
fn room<E: Element>(buffer: &mut Vec<u64>, len: usize) -> &mut [E] {
    let bytes = len * size_of::<E>();
    let words = bytes.div_ceil(size_of::<u64>());
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    let room: &mut [u8] = bytemuck::cast_slice_mut(buffer);
    bytemuck::cast_slice_mut(&mut room[..bytes])
}

/// How long a peer may be still, unless the owner of the group says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds what is added to the present.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
