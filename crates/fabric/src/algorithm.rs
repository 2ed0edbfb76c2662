//! How collectives go about their work: which frames cross which links, and in which order.
//!
//! An algorithm is a [`Traffic`](crate::transfer::Traffic): it moves nothing itself.

pub(crate) mod blocks;
pub(crate) mod chain;
pub(crate) mod chunks;
pub(crate) mod direct;
pub(crate) mod relay;

use std::ops::Range;

use tracing::debug;

use crate::rank::Rank;

/// Which links the collectives of a group use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Topology {
    /// Those between all ranks.
    #[default]
    Mesh,
    /// Those between ranks that follow each other, and between the last and the first: for machines that only have cables
    /// to their neighbours. Up to three ranks, that is all of them.
    Ring,
}

/// Which algorithm a reduction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Everybody gets everything and reduces for itself.
    Whole,
    /// Everybody reduces one chunk.
    Chunks,
    /// Everybody adds to what comes from below; only over the ring.
    Chain,
}

/// Where one algorithm takes over from another, in bytes of the data of one rank.
///
/// Measured with `cargo bench -p shoal-fabric --bench links`; docs/FABRIC.md has the same table.
#[derive(Debug)]
pub(crate) struct Thresholds {
    /// Two ranks: up to here one message deep beats half the sums.
    whole_of_two_bytes_max: usize,
    /// More ranks, mesh or ring: up to here fewer messages deep beats fewer bytes.
    whole_bytes_max: usize,
    /// What comes in at a time to be reduced, while the next of it travels: shorter pieces wait for each other more often,
    /// longer ones have left a core's own cache by then.
    piece_bytes_max: usize,
}

/// What all groups go by.
pub(crate) const THRESHOLDS: Thresholds = Thresholds {
    whole_of_two_bytes_max: 64 * 1024,
    whole_bytes_max: 32 * 1024,
    piece_bytes_max: 512 * 1024,
};

impl Thresholds {
    /// Says once what the group goes by.
    pub(crate) fn log(&self, rank: Rank, world: usize) {
        let Self {
            whole_of_two_bytes_max,
            whole_bytes_max,
            piece_bytes_max,
        } = self;
        debug!(
            %rank,
            world,
            whole_of_two_bytes_max,
            whole_bytes_max,
            piece_bytes_max,
            "algorithms by size"
        );
    }

    /// Chooses for a reduction of `bytes`.
    pub(crate) fn choose(&self, place: Place, bytes: usize) -> Choice {
        let (larger, whole_bytes_max) = match (place.is_ring, place.world) {
            (true, _) => (Choice::Chain, self.whole_bytes_max),
            (false, 2) => (Choice::Chunks, self.whole_of_two_bytes_max),
            (false, _) => (Choice::Chunks, self.whole_bytes_max),
        };
        if bytes <= whole_bytes_max {
            Choice::Whole
        } else {
            larger
        }
    }

    /// Returns the number of values of a piece whose like comes from `terms` ranks at the same time.
    pub(crate) fn piece_len<E>(&self, terms: usize) -> usize {
        let bytes = (self.piece_bytes_max / terms).max(PIECE_BYTES_MIN);
        bytes / size_of::<E>()
    }
}

/// Shorter pieces cost more in frames than they save in waiting.
const PIECE_BYTES_MIN: usize = 16 * 1024;

/// Where a rank is among all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) own: usize,
    pub(crate) world: usize,
    /// Whether only the links to the two neighbours, who are two, are used.
    pub(crate) is_ring: bool,
}

impl Place {
    pub(crate) fn new(own: usize, world: usize, topology: Topology) -> Self {
        // Up to three ranks, everybody is a neighbour.
        let is_ring = topology == Topology::Ring && world > 3;
        Self {
            own,
            world,
            is_ring,
        }
    }

    /// Returns the rank `steps` to the right, up to once round.
    fn right(self, steps: usize) -> usize {
        (self.own + steps) % self.world
    }

    /// Returns the rank `steps` to the left, up to once round.
    fn left(self, steps: usize) -> usize {
        (self.own + self.world - steps) % self.world
    }

    /// Returns how far what goes to the right goes, and what goes to the left: together, to every other rank.
    fn reach(self) -> (usize, usize) {
        (self.world / 2, (self.world - 1) / 2)
    }
}

/// Returns which of `len` values belong to `rank`: as many as to every other, give or take one.
pub(crate) fn chunk(len: usize, world: usize, rank: usize) -> Range<usize> {
    let bound = |rank: usize| rank * len / world;
    bound(rank)..bound(rank + 1)
}
