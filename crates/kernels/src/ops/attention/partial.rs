use super::TILE_MAX;
use crate::arch::{Operation, Simd};

/// The softmax of a tile's queries over some positions, before it is divided by its total
/// ([online softmax](https://arxiv.org/abs/1805.02867)).
pub(super) struct Partial<'a> {
    /// The largest score of each query.
    pub(super) largest: &'a mut [f32; TILE_MAX],
    /// The sum of each query's weights, `e^(score - largest)`; 0 where it sees no position.
    pub(super) totals: &'a mut [f32; TILE_MAX],
    /// The sums of the weighted values, `TILE_MAX × head_stride`.
    pub(super) all_sums: &'a mut [f32],
}

impl<'a> Partial<'a> {
    /// Returns the floats that one takes.
    pub(super) fn len(head_stride: usize) -> usize {
        TILE_MAX * (2 + head_stride)
    }

    /// Returns the one in `memory` of [`len`](Self::len) floats.
    pub(super) fn of(memory: &'a mut [f32]) -> Self {
        let (largest, rest) = memory.split_first_chunk_mut().expect("it has its length");
        let (totals, all_sums) = rest.split_first_chunk_mut().expect("it has its length");
        Self {
            largest,
            totals,
            all_sums,
        }
    }

    /// Makes `memory` one over no positions.
    pub(super) fn empty(memory: &'a mut [f32]) -> Self {
        memory.fill(0.0);
        let partial = Self::of(memory);
        partial.largest.fill(f32::NEG_INFINITY);
        partial
    }

    pub(super) fn sums(&self, query: usize) -> &[f32] {
        let stride = self.all_sums.len() / TILE_MAX;
        &self.all_sums[query * stride..][..stride]
    }

    /// Takes the largest score of a query to `largest`, which is no smaller.
    #[inline(always)]
    pub(super) fn raise<S: Simd>(&mut self, s: S, query: usize, largest: f32) {
        let factor = (self.largest[query] - largest).exp();
        self.largest[query] = largest;
        self.totals[query] *= factor;
        let stride = self.all_sums.len() / TILE_MAX;
        let sums = &mut self.all_sums[query * stride..][..stride];
        for sums in sums.chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(sums), s.splat(factor)), sums);
        }
    }
}

/// Adds the second to the first, whose positions come before.
pub(super) struct Merge<'a, 'b, 'c>(pub(super) &'a mut Partial<'b>, pub(super) &'a Partial<'c>);

impl Operation for Merge<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(into, new) = self;
        let stride = into.all_sums.len() / TILE_MAX;
        for q in 0..TILE_MAX {
            // Not a comparison of `largest`: a total that is not a number has to be handed on.
            if new.totals[q] == 0.0 {
                continue;
            }
            if new.largest[q] > into.largest[q] {
                into.raise(s, q, new.largest[q]);
            }
            let factor = (new.largest[q] - into.largest[q]).exp();
            into.totals[q] += new.totals[q] * factor;
            let sums = &mut into.all_sums[q * stride..][..stride];
            let vectors = sums.chunks_exact_mut(S::LANES);
            for (sums, new) in vectors.zip(new.sums(q).chunks_exact(S::LANES)) {
                let sum = s.mul_add(s.load(new), s.splat(factor), s.load(sums));
                s.store(sum, sums);
            }
        }
    }
}
