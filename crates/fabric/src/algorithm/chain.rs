//! A reduction over neighbours: sums grow on their way up the ranks, and come down again when all are in.
//!
//! ```text
//!            piece 2        piece 1        piece 0
//!   rank 0 ──────────▶ 1 ──────────▶ 2 ──────────▶ 3      up: f32, the ranks so far in rank order
//!          ◀──────────   ◀──────────   ◀──────────        down: reduced and rounded
//! ```
//! Pieces follow each other, so after 2(N-1) of them every link is busy both ways, and carries all of the data once each
//! way. A ring in which each rank reduces its own chunk would carry (N-1)/N of that; but its chunks begin at different
//! ranks, and so do their sums. Here the order is that of the ranks, and the bits are those of every other algorithm. The
//! link between the last rank and the first rests.

use std::ops::Range;

use crate::frame::Kind;
use crate::reduce::{Element, Reduce};
use crate::transfer::{Destination, Traffic};

/// A reduction of all ranks, for all.
pub(crate) struct Chain<'a, E> {
    pub(crate) op: Reduce,
    pub(crate) own: usize,
    pub(crate) world: usize,
    /// The values of this rank; in the end, the reduced ones.
    pub(crate) data: &'a mut [E],
    /// Room for two pieces on their way up.
    pub(crate) sums: &'a mut [f32],
    pub(crate) piece_len: usize,
}

impl<E: Element> Chain<'_, E> {
    fn pieces(&self) -> usize {
        self.data.len().div_ceil(self.piece_len)
    }

    /// Returns where a piece lies, if there is one of this number.
    fn piece(&self, number: Option<usize>) -> Option<Range<usize>> {
        let start = number? * self.piece_len;
        (start < self.data.len()).then(|| start..self.data.len().min(start + self.piece_len))
    }

    /// Returns where the sum of a piece is, up to this rank. It stays until the next but one comes.
    fn sum(&self, number: usize, len: usize) -> Range<usize> {
        let start = number % 2 * self.piece_len;
        start * E::LEN..(start + len) * E::LEN
    }

    /// Returns how many rounds after its sum a piece comes back: one for each link on its way.
    fn way(&self) -> usize {
        2 * (self.world - 1 - self.own)
    }

    fn is_above(&self, peer: usize) -> bool {
        peer == self.own + 1
    }

    fn is_below(&self, peer: usize) -> bool {
        peer + 1 == self.own
    }
}

/// In round t, the sum of piece t comes from below and the result of piece t - way from above; what came in one round goes
/// on in the next.
impl<E: Element> Traffic for Chain<'_, E> {
    fn rounds(&self) -> usize {
        self.pieces() + self.way() + 1
    }

    fn kind(&self, _round: usize) -> Kind {
        Kind::ReducePart
    }

    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]> {
        let before = round.checked_sub(1)?;
        if self.is_above(peer) {
            let piece = self.piece(Some(before))?;
            let sum = self.sum(before, piece.len());
            Some(bytemuck::cast_slice(&self.sums[sum]))
        } else if self.is_below(peer) {
            let piece = self.piece(before.checked_sub(self.way()))?;
            Some(bytemuck::cast_slice(&self.data[piece]))
        } else {
            None
        }
    }

    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>> {
        let bytes = if self.is_below(peer) {
            let piece = self.piece(Some(round))?;
            let sum = self.sum(round, piece.len());
            bytemuck::cast_slice_mut(&mut self.sums[sum])
        } else if self.is_above(peer) {
            let piece = self.piece(round.checked_sub(self.way()))?;
            bytemuck::cast_slice_mut(&mut self.data[piece])
        } else {
            return None;
        };
        Some(Destination::Slice(bytes))
    }

    fn end_round(&mut self, round: usize) {
        let Some(piece) = self.piece(Some(round)) else {
            return;
        };
        let is_top = self.own + 1 == self.world;
        let range = self.sum(round, piece.len());
        let sum = &mut self.sums[range];
        if self.own == 0 {
            E::widen(&self.data[piece.clone()], sum);
        } else {
            E::fold(self.op, sum, &self.data[piece.clone()]);
        }
        if is_top {
            E::round(sum, &mut self.data[piece]);
        }
    }
}
