//! Every rank reduces one chunk and gives it to the others: each link carries 2/N of the data each way.
//!
//! ```text
//! round    0        1        2        3        4        5 …
//!          terms 0  —        terms 1  done 0   terms 2  done 1
//! ```
//! Chunks are cut into pieces. In an even round the terms of one piece of each chunk go to the rank that reduces it; two
//! odd rounds later that piece goes back, reduced. The sends are two rounds ahead of the receives, so the terms of the next
//! piece travel while one is reduced, and what is reduced is still in the cache when it is sent. One rank computes each
//! value, so the bits agree.

use std::ops::Range;

use crate::algorithm::chunk;
use crate::frame::Kind;
use crate::reduce::{self, Element, Reduce};
use crate::transfer::{Destination, Traffic};

/// A reduction in chunks.
pub(crate) struct Chunks<'a, E> {
    pub(crate) op: Reduce,
    pub(crate) own: usize,
    pub(crate) world: usize,
    /// The values of this rank; in the end, the reduced ones.
    pub(crate) data: &'a mut [E],
    /// Room for one piece of each other rank.
    pub(crate) terms: &'a mut [E],
    pub(crate) piece_len: usize,
    /// Whether every rank gets all chunks in the end, or only its own.
    pub(crate) gathers: bool,
}

impl<E: Element> Chunks<'_, E> {
    fn pieces(&self) -> usize {
        let chunk_len_max = self.data.len().div_ceil(self.world);
        chunk_len_max.div_ceil(self.piece_len)
    }

    /// Returns where a piece of the chunk of `rank` lies; nothing if the chunk has fewer.
    fn piece(&self, rank: usize, number: usize) -> Option<Range<usize>> {
        let Range { start, end } = chunk(self.data.len(), self.world, rank);
        let start = start + number * self.piece_len;
        (start < end).then(|| start..end.min(start + self.piece_len))
    }

    /// Returns where the terms of `peer` go; `len` is that of the present piece.
    fn term(&self, peer: usize, len: usize) -> Range<usize> {
        let slot = peer - usize::from(peer > self.own);
        slot * len..(slot + 1) * len
    }
}

enum Round {
    Terms(usize),
    Done(usize),
}

impl Round {
    fn of(round: usize) -> Option<Self> {
        match round % 2 {
            0 => Some(Self::Terms(round / 2)),
            _ => (round / 2).checked_sub(1).map(Self::Done),
        }
    }
}

impl<E: Element> Traffic for Chunks<'_, E> {
    fn rounds(&self) -> usize {
        match self.gathers {
            true => 2 * self.pieces() + 2,
            false => 2 * self.pieces(),
        }
    }

    fn lead(&self) -> usize {
        2
    }

    fn kind(&self, round: usize) -> Kind {
        match round % 2 {
            0 => Kind::ReducePart,
            _ => Kind::ReduceDone,
        }
    }

    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]> {
        let range = match Round::of(round)? {
            Round::Terms(number) => self.piece(peer, number),
            Round::Done(number) if self.gathers => self.piece(self.own, number),
            Round::Done(_) => None,
        };
        Some(bytemuck::cast_slice(&self.data[range?]))
    }

    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>> {
        let values = match Round::of(round)? {
            Round::Terms(number) => {
                let term = self.term(peer, self.piece(self.own, number)?.len());
                &mut self.terms[term]
            }
            Round::Done(number) if self.gathers => {
                let piece = self.piece(peer, number)?;
                &mut self.data[piece]
            }
            Round::Done(_) => return None,
        };
        Some(Destination::Slice(bytemuck::cast_slice_mut(values)))
    }

    fn end_round(&mut self, round: usize) {
        if let Some(Round::Terms(number)) = Round::of(round)
            && let Some(piece) = self.piece(self.own, number)
        {
            let terms = &self.terms[..piece.len() * (self.world - 1)];
            reduce::in_rank_order(self.op, &mut self.data[piece], self.own, terms);
        }
    }
}
