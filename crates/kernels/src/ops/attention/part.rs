use std::ops::Range;

use super::Attention;
use super::pages::{Element, HeadPages};
use super::partial::Partial;
use super::tiling::{TILE_MAX, Tile};
use crate::arch::{Operation, Simd};
use crate::kv_cache::{Kept, Numbers};

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct PartScratch {
    /// `head_dim × queries`, scaled.
    queries: Vec<f32>,
    /// Scores, then weights, of the positions of a block: a row for each query.
    scores: Vec<f32>,
}

/// Positions whose weights are computed at once; their keys and values stay in the nearest cache meanwhile.
const BLOCK_TOKENS: usize = 128;

/// Computes the attention of a tile over one part of its positions.
pub(super) struct AttendPart<'a, 'b> {
    attention: &'a Attention<'a>,
    tile: &'a Tile<'a>,
    part: usize,
    scratch: &'a mut PartScratch,
    out: &'a mut Partial<'b>,
}

impl<'a, 'b> AttendPart<'a, 'b> {
    /// Takes an empty `out`.
    pub(super) fn new(
        attention: &'a Attention<'a>,
        tile: &'a Tile<'a>,
        part: usize,
        scratch: &'a mut PartScratch,
        out: &'a mut Partial<'b>,
    ) -> Self {
        Self {
            attention,
            tile,
            part,
            scratch,
            out,
        }
    }
}

impl Operation for AttendPart<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.attention.cache.kept() {
            Kept::F16(numbers) => self.attend_to(s, numbers),
            Kept::Q8(numbers) => self.attend_to(s, numbers),
        }
    }
}

impl AttendPart<'_, '_> {
    #[inline(always)]
    fn attend_to<S: Simd, E: Element>(self, s: S, kept: Numbers<'_, E>) {
        // Sums under way at once are queries × vectors × pages of scores, and queries × vectors of values: as many as the
        // registers hold, of which AVX-512 has twice as many; with AVX2, pages in pairs were slower. One query waits for memory.
        match (self.tile.range.len(), S::LANES, self.attention.in_pairs) {
            (0, ..) => {}
            (1, 16, true) => self.attend::<S, E, 1, 2, 4, 2>(s, kept),
            (1, ..) => self.attend::<S, E, 1, 2, 2, 1>(s, kept),
            (2..=4, 16, true) => self.attend::<S, E, 4, 2, 4, 2>(s, kept),
            (2..=4, 16, false) => self.attend::<S, E, 4, 1, 4, 1>(s, kept),
            (2..=4, ..) => self.attend::<S, E, 4, 2, 2, 1>(s, kept),
            (_, 16, true) => self.attend::<S, E, TILE_MAX, 1, 2, 2>(s, kept),
            (_, 16, false) => self.attend::<S, E, TILE_MAX, 1, 2, 1>(s, kept),
            _ => self.attend::<S, E, TILE_MAX, 1, 1, 1>(s, kept),
        }
    }

    /// Goes through the part block by block, and there through `P` pages side by side. Queries beyond the tile are zero and
    /// see nothing.
    ///
    /// A position that a query may not see gets weight 0, so a NaN among the values of a later
    /// token of the same span can reach earlier queries of its tile; other sequences it cannot reach.
    #[inline(always)]
    fn attend<
        S: Simd,
        E: Element,
        const Q: usize,
        const K: usize,
        const V: usize,
        const P: usize,
    >(
        mut self,
        s: S,
        kept: Numbers<'_, E>,
    ) {
        self.load_queries::<Q>();
        let cache = self.attention.cache;
        let page_tokens = cache.shape().page_tokens;
        let token_stride = cache.token_stride();
        let block_pages = block_pages(page_tokens, BLOCK_TOKENS);
        let row = block_pages * token_stride;
        let PartScratch { queries, scores } = self.scratch;
        scores.resize(Q * row, 0.0);

        let pages = &self.tile.span.pages[..self.tile.end.div_ceil(page_tokens)];
        let kept_pages = HeadPages::<E, P> {
            kept,
            layer: self.attention.layer,
            head: self.tile.kv_head,
            pages,
            positions: self.tile.end,
            ahead: block_pages,
        };
        let first = self.part * self.attention.part_pages();
        let end = pages.len().min(first + self.attention.part_pages());
        for block in (first..end).step_by(block_pages) {
            let range = block..end.min(block + block_pages);
            let used = range.len() * token_stride;
            kept_pages.score::<S, Q, K>(s, range.clone(), queries, scores, row);
            for q in 0..Q {
                // Some with each query, not all at once.
                for page in range.clone().skip(q).step_by(Q) {
                    kept_pages.ask(s, page);
                }
                let scores = &mut scores[q * row..][..used];
                let query = self.tile.range.clone().nth(q);
                let seen = query.map_or(0, |i| self.tile.seen(i));
                weigh(s, &kept_pages, range.clone(), seen, scores, self.out, q);
            }
            kept_pages.add::<S, Q, V>(s, range, scores, row, self.out.all_sums);
        }
    }

    /// Gathers the tile's queries as `head_dim × Q`, scaled.
    #[inline(always)]
    fn load_queries<const Q: usize>(&mut self) {
        let Attention {
            q, heads, scale, ..
        } = *self.attention;
        let head_dim = self.attention.cache.shape().head_dim;
        let queries = &mut self.scratch.queries;
        queries.clear();
        queries.resize(head_dim * Q, 0.0);
        for (column, i) in self.tile.range.clone().enumerate() {
            let from = &q[self.tile.row(i, heads.heads) * head_dim..][..head_dim];
            for (to, x) in queries[column..].iter_mut().step_by(Q).zip(from) {
                *to = x * scale;
            }
        }
    }
}

/// Returns the pages of a block of about so many positions.
pub(super) fn block_pages(page_tokens: usize, block_tokens: usize) -> usize {
    (block_tokens / page_tokens).max(1)
}

/// Makes weights of the scores of some pages, of which a query sees the positions before `seen`, and adds them to its total;
/// 0 where it sees none.
#[inline(always)]
pub(super) fn weigh<S: Simd, E: Element, const P: usize>(
    s: S,
    pages: &HeadPages<'_, E, P>,
    range: Range<usize>,
    seen: usize,
    scores: &mut [f32],
    out: &mut Partial<'_>,
    query: usize,
) {
    let cache = pages.kept.cache;
    let (page_tokens, token_stride) = (cache.shape().page_tokens, cache.token_stride());
    if seen <= range.start * page_tokens {
        scores.fill(0.0);
        return;
    }
    let valid = |page: usize| seen.saturating_sub(page * page_tokens).min(page_tokens);
    for (i, scores) in range.clone().zip(scores.chunks_exact_mut(token_stride)) {
        if let Some((keys, _)) = pages.scales(i) {
            scale(s, scores, keys);
        }
        scores[valid(i)..].fill(f32::NEG_INFINITY);
    }
    let largest = largest(s, scores);
    if largest > out.largest[query] {
        out.raise(s, query, largest);
    }
    out.totals[query] += exponentiate(s, scores, out.largest[query]);
    for (i, weights) in range.zip(scores.chunks_exact_mut(token_stride)) {
        if let Some((_, values)) = pages.scales(i) {
            scale(s, weights, values);
            weights[valid(i)..].fill(0.0);
        }
    }
}

/// `x[i] *= by[i]`.
#[inline(always)]
fn scale<S: Simd>(s: S, x: &mut [f32], by: &[f32]) {
    for (x, by) in x.chunks_exact_mut(S::LANES).zip(by.chunks_exact(S::LANES)) {
        s.store(s.mul(s.load(x), s.load(by)), x);
    }
}

#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut maximum = s.splat(f32::NEG_INFINITY);
    for x in x.chunks_exact(S::LANES) {
        maximum = s.max(maximum, s.load(x));
    }
    s.largest(maximum)
}

/// `x = e^(x - maximum)`; returns the sum.
#[inline(always)]
fn exponentiate<S: Simd>(s: S, x: &mut [f32], maximum: f32) -> f32 {
    let mut sum = s.splat(0.0);
    for x in x.chunks_exact_mut(S::LANES) {
        let weight = s.exp(s.sub(s.load(x), s.splat(maximum)));
        sum = s.add(sum, weight);
        s.store(weight, x);
    }
    s.sum(sum)
}
