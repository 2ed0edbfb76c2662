use std::ops::Range;

use super::Attention;
use super::pages::{Element, HeadPages};
use super::partial::Partial;
use super::tiling::{Bundle, TILE_MAX, Tile, side_by_side};
use crate::arch::{Operation, Simd, Token};
use crate::kv_cache::{Kept, Numbers};

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct PartScratch {
    /// `head_dim × queries` of each tile, scaled.
    queries: Vec<f32>,
    /// Scores, then weights, of the positions of a block: a row for each query.
    scores: Vec<f32>,
}

/// Positions whose weights are computed at once; their keys and values stay in the nearest cache meanwhile.
const BLOCK_TOKENS: usize = 128;

/// Computes the attention of a bundle over one part of its positions, into an empty `out`: block by block, and there head by
/// head, which is the order that pages have in memory.
pub(super) fn attend_part(
    isa: Token,
    attention: &Attention<'_>,
    bundle: &Bundle<'_>,
    part: usize,
    scratch: &mut PartScratch,
    out: &mut Partial<'_>,
) {
    let page_tokens = attention.cache.shape().page_tokens;
    let block_pages = block_pages(page_tokens, BLOCK_TOKENS);
    scratch.load_queries(attention, bundle);
    let first = part * attention.part_pages();
    let end = bundle.end().div_ceil(page_tokens);
    let end = end.min(first + attention.part_pages());
    for block in (first..end).step_by(block_pages) {
        for (place, tile) in bundle.tiles() {
            // On its own for each head: within a loop over them the compiler keeps what all of them need in registers that
            // the sums then lack.
            isa.run(AttendBlock {
                attention,
                kv_heads: bundle.kv_heads.clone(),
                tile,
                pages: block..end.min(block + block_pages),
                scratch,
                out,
                place,
            });
        }
    }
}

/// Computes the attention of a tile over a block.
struct AttendBlock<'a, 'b> {
    attention: &'a Attention<'a>,
    /// Those whose tiles take turns.
    kv_heads: Range<usize>,
    tile: Tile<'a>,
    pages: Range<usize>,
    scratch: &'a mut PartScratch,
    out: &'a mut Partial<'b>,
    /// The tile's first query in `scratch` and `out`.
    place: usize,
}

impl Operation for AttendBlock<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.attention.cache.kept() {
            Kept::F16(numbers) => self.attend_to(s, numbers),
            Kept::Q8(numbers) => self.attend_to(s, numbers),
        }
    }
}

impl AttendBlock<'_, '_> {
    #[inline(always)]
    fn attend_to<S: Simd, E: Element>(self, s: S, kept: Numbers<'_, E>) {
        // Sums under way at once are queries × vectors × pages of scores, and queries × vectors of values: as many as the
        // registers hold, of which AVX-512 has twice as many; with AVX2, pages in pairs were slower. One query waits for memory.
        match (
            side_by_side(self.tile.range.len()),
            S::LANES,
            self.attention.in_pairs,
        ) {
            (0, ..) => {}
            (1, 16, true) => self.attend::<S, E, 1, 2, 4, 2>(s, kept),
            (1, ..) => self.attend::<S, E, 1, 2, 2, 1>(s, kept),
            (4, 16, true) => self.attend::<S, E, 4, 2, 4, 2>(s, kept),
            (4, 16, false) => self.attend::<S, E, 4, 1, 4, 1>(s, kept),
            (4, ..) => self.attend::<S, E, 4, 2, 2, 1>(s, kept),
            (_, 16, true) => self.attend::<S, E, TILE_MAX, 1, 2, 2>(s, kept),
            (_, 16, false) => self.attend::<S, E, TILE_MAX, 1, 2, 1>(s, kept),
            _ => self.attend::<S, E, TILE_MAX, 1, 1, 1>(s, kept),
        }
    }

    /// Goes through `P` pages side by side. Queries beyond the tile are zero and see nothing.
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
        self,
        s: S,
        kept: Numbers<'_, E>,
    ) {
        let Self {
            attention,
            kv_heads,
            tile,
            pages: range,
            scratch,
            out,
            place,
        } = self;
        let cache = attention.cache;
        let page_tokens = cache.shape().page_tokens;
        let token_stride = cache.token_stride();
        let block_pages = block_pages(page_tokens, BLOCK_TOKENS);
        let row = block_pages * token_stride;
        let PartScratch { queries, scores } = scratch;
        scores.resize(Q * row, 0.0);
        let head_dim = cache.shape().head_dim;
        let queries = &queries[place * head_dim..][..Q * head_dim];

        let (next_head, ahead) = if tile.kv_head + 1 < kv_heads.end {
            (tile.kv_head + 1, 0)
        } else {
            (kv_heads.start, block_pages)
        };
        let pages = HeadPages::<E, P> {
            kept,
            layer: attention.layer,
            head: tile.kv_head,
            pages: &tile.span.pages[..tile.end.div_ceil(page_tokens)],
            positions: tile.end,
            next_head,
            ahead,
        };
        let used = range.len() * token_stride;
        pages.score::<S, Q, K>(s, range.clone(), queries, scores, row);
        for q in 0..Q {
            // Some with each query, not all at once.
            for page in range.clone().skip(q).step_by(Q) {
                pages.ask(s, page);
            }
            let scores = &mut scores[q * row..][..used];
            let query = tile.range.clone().nth(q);
            let seen = query.map_or(0, |i| tile.seen(i));
            weigh(s, &pages, range.clone(), seen, scores, out, place + q);
        }
        pages.add::<S, Q, V>(s, range, scores, row, out.sums_from(place));
    }
}

impl PartScratch {
    /// Gathers the queries of each tile as `head_dim × side_by_side`, scaled.
    fn load_queries(&mut self, attention: &Attention<'_>, bundle: &Bundle<'_>) {
        let head_dim = attention.cache.shape().head_dim;
        self.queries.clear();
        self.queries.resize(head_dim * bundle.room(), 0.0);
        for (place, tile) in bundle.tiles() {
            let queries = &mut self.queries[place * head_dim..];
            let side_by_side = side_by_side(tile.range.len());
            for (column, i) in tile.range.clone().enumerate() {
                let row = tile.row(i, attention.heads.heads);
                let from = &attention.q[row * head_dim..][..head_dim];
                for (to, x) in queries.chunks_exact_mut(side_by_side).zip(from) {
                    to[column] = x * attention.scale;
                }
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
