use crate::arch::{Operation, Simd};

/// How large a [`Partial`] is.
#[derive(Clone, Copy)]
pub(super) struct PartialShape {
    pub(super) queries: usize,
    /// Floats of a sum, padded.
    pub(super) head_stride: usize,
}

impl PartialShape {
    /// Returns the floats that one takes.
    pub(super) fn len(self) -> usize {
        self.queries * (2 + self.head_stride)
    }
}

/// The softmax of a tile's queries over some positions, before it is divided by its total
/// ([online softmax](https://arxiv.org/abs/1805.02867)).
pub(super) struct Partial<'a> {
    /// The largest score of each query.
    pub(super) largest: &'a mut [f32],
    /// The sum of each query's weights, `e^(score - largest)`; 0 where it sees no position.
    pub(super) totals: &'a mut [f32],
    /// The sums of the weighted values, `queries × head_stride`.
    pub(super) all_sums: &'a mut [f32],
    head_stride: usize,
}

impl<'a> Partial<'a> {
    /// Returns the one at the start of `memory`.
    pub(super) fn of(memory: &'a mut [f32], shape: PartialShape) -> Self {
        let (largest, rest) = memory[..shape.len()].split_at_mut(shape.queries);
        let (totals, all_sums) = rest.split_at_mut(shape.queries);
        Self {
            largest,
            totals,
            all_sums,
            head_stride: shape.head_stride,
        }
    }

    /// Makes the start of `memory` one over no positions.
    pub(super) fn empty(memory: &'a mut [f32], shape: PartialShape) -> Self {
        let partial = Self::of(memory, shape);
        partial.largest.fill(f32::NEG_INFINITY);
        partial.totals.fill(0.0);
        partial.all_sums.fill(0.0);
        partial
    }

    pub(super) fn sums(&self, query: usize) -> &[f32] {
        &self.all_sums[query * self.head_stride..][..self.head_stride]
    }

    /// Returns the sums of a query and of those that follow.
    pub(super) fn sums_from(&mut self, query: usize) -> &mut [f32] {
        &mut self.all_sums[query * self.head_stride..]
    }

    pub(super) fn sums_mut(&mut self, query: usize) -> &mut [f32] {
        &mut self.all_sums[query * self.head_stride..][..self.head_stride]
    }

    /// Takes the largest score of a query to `largest`, which is no smaller.
    #[inline(always)]
    pub(super) fn raise<S: Simd>(&mut self, s: S, query: usize, largest: f32) {
        let factor = (self.largest[query] - largest).exp();
        self.largest[query] = largest;
        self.totals[query] *= factor;
        for sums in self.sums_mut(query).chunks_exact_mut(S::LANES) {
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
        for q in 0..new.totals.len() {
            // Not a comparison of `largest`: a total that is not a number has to be handed on.
            if new.totals[q] == 0.0 {
                continue;
            }
            if new.largest[q] > into.largest[q] {
                into.raise(s, q, new.largest[q]);
            }
            let factor = (new.largest[q] - into.largest[q]).exp();
            into.totals[q] += new.totals[q] * factor;
            let vectors = into.sums_mut(q).chunks_exact_mut(S::LANES);
            for (sums, new) in vectors.zip(new.sums(q).chunks_exact(S::LANES)) {
                let sum = s.mul_add(s.load(new), s.splat(factor), s.load(sums));
                s.store(sum, sums);
            }
        }
    }
}
