//! What gathering gathers: bytes of each rank, wherever they lie.

use std::ops::Range;

use crate::reduce::Element;
use crate::transfer::Destination;

/// One block of bytes of each rank, each of which is to become known to all.
pub(crate) trait Blocks {
    /// Returns the block of `rank`, which is here.
    fn block(&self, rank: usize) -> &[u8];

    /// Returns where to put the block of another rank.
    fn room(&mut self, rank: usize) -> Destination<'_>;
}

/// Parts of unlike length, each in a vector of its own.
impl Blocks for &mut [Vec<u8>] {
    fn block(&self, rank: usize) -> &[u8] {
        &self[rank]
    }

    fn room(&mut self, rank: usize) -> Destination<'_> {
        Destination::Vec(&mut self[rank])
    }
}

/// Parts that follow each other.
pub(crate) struct Row<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) lens: &'a [usize],
}

impl Row<'_> {
    pub(crate) fn range(&self, rank: usize) -> Range<usize> {
        let start = self.lens[..rank].iter().sum();
        start..start + self.lens[rank]
    }
}

impl Blocks for Row<'_> {
    fn block(&self, rank: usize) -> &[u8] {
        bytemuck::cast_slice(&self.values[self.range(rank)])
    }

    fn room(&mut self, rank: usize) -> Destination<'_> {
        let range = self.range(rank);
        Destination::Slice(bytemuck::cast_slice_mut(&mut self.values[range]))
    }
}

/// What all ranks bring to a reduction: of this rank in its own place, of the others one after the other.
pub(crate) struct Terms<'a, E> {
    pub(crate) own: usize,
    pub(crate) mine: &'a [E],
    pub(crate) others: &'a mut [E],
}

impl<E> Terms<'_, E> {
    fn range(&self, rank: usize) -> Range<usize> {
        let slot = rank - usize::from(rank > self.own);
        slot * self.mine.len()..(slot + 1) * self.mine.len()
    }
}

impl<E: Element> Blocks for Terms<'_, E> {
    fn block(&self, rank: usize) -> &[u8] {
        let values = if rank == self.own {
            self.mine
        } else {
            &self.others[self.range(rank)]
        };
        bytemuck::cast_slice(values)
    }

    fn room(&mut self, rank: usize) -> Destination<'_> {
        let range = self.range(rank);
        Destination::Slice(bytemuck::cast_slice_mut(&mut self.others[range]))
    }
}

/// Blocks without bytes: that they come says all.
pub(crate) struct Nothing;

impl Blocks for Nothing {
    fn block(&self, _rank: usize) -> &[u8] {
        &[]
    }

    fn room(&mut self, _rank: usize) -> Destination<'_> {
        Destination::Slice(&mut [])
    }
}
