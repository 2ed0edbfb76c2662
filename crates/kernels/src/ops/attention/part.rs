use super::partial::Partial;
use super::{Attention, TILE_MAX, Tile};
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
/// What the processor fetches at once.
const LINE_BYTES: usize = 64;

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
        // Sums under way at once are queries × vectors, of scores and of values: enough to fill the pipelines, few enough for
        // the registers, of which AVX-512 has twice as many; there the queries of scores come straight from memory.
        match (self.tile.range.len(), S::LANES) {
            (0, _) => {}
            (1, _) => self.attend::<S, E, 1, 2, 2>(s, kept),
            (2..=4, 16) => self.attend::<S, E, 4, 1, 4>(s, kept),
            (2..=4, _) => self.attend::<S, E, 4, 2, 2>(s, kept),
            (_, 16) => self.attend::<S, E, TILE_MAX, 1, 2>(s, kept),
            _ => self.attend::<S, E, TILE_MAX, 1, 1>(s, kept),
        }
    }

    /// Goes through the part block by block. Queries beyond the tile are zero and see nothing.
    ///
    /// A position that a query may not see gets weight 0, so a NaN among the values of a later
    /// token of the same span can reach earlier queries of its tile; other sequences it cannot reach.
    #[inline(always)]
    fn attend<S: Simd, E: Element, const Q: usize, const K: usize, const V: usize>(
        mut self,
        s: S,
        kept: Numbers<'_, E>,
    ) {
        self.load_queries::<Q>();
        let Attention { cache, layer, .. } = *self.attention;
        let page_tokens = cache.shape().page_tokens;
        let (token_stride, head_stride) = (cache.token_stride(), cache.head_stride());
        let block_pages = (BLOCK_TOKENS / page_tokens).max(1);
        let row = block_pages * token_stride;
        let PartScratch { queries, scores } = self.scratch;
        scores.resize(Q * row, 0.0);

        let pages = &self.tile.span.pages[..self.tile.end.div_ceil(page_tokens)];
        let head = |page| kept.head(layer, page, self.tile.kv_head);
        let scales = |i: usize| kept.scales(layer, pages[i], self.tile.kv_head);
        let next = |i: usize| head(*pages.get(i + block_pages).unwrap_or(&pages[i]));
        let keys = |i: usize| Page {
            rows: head(pages[i]).0,
            next: next(i).0,
            stride: token_stride,
        };
        let values = |i: usize| {
            let count = page_tokens.min(self.tile.end - i * page_tokens);
            Page {
                rows: &head(pages[i]).1[..count * head_stride],
                next: next(i).1,
                stride: head_stride,
            }
        };
        let first = self.part * self.attention.part_pages();
        let end = pages.len().min(first + self.attention.part_pages());
        for block in (first..end).step_by(block_pages) {
            let range = block..end.min(block + block_pages);
            let used = range.len() * token_stride;
            for i in range.clone() {
                let scores = &mut scores[(i - block) * token_stride..];
                score_page::<S, E, Q, K>(s, queries, keys(i), scores, row);
            }
            for q in 0..Q {
                let scores = &mut scores[q * row..][..used];
                let query = self.tile.range.clone().nth(q);
                let seen = query.map_or(0, |i| self.tile.seen(i));
                for (i, scores) in range.clone().zip(scores.chunks_exact_mut(token_stride)) {
                    if let Some((keys, _)) = scales(i) {
                        scale(s, scores, keys);
                    }
                    let valid = seen.saturating_sub(i * page_tokens).min(page_tokens);
                    scores[valid..].fill(f32::NEG_INFINITY);
                }
                if seen <= block * page_tokens {
                    scores.fill(0.0);
                    continue;
                }
                let largest = largest(s, scores);
                if largest > self.out.largest[q] {
                    self.out.raise(s, q, largest);
                }
                self.out.totals[q] += exponentiate(s, scores, self.out.largest[q]);
                for (i, weights) in range.clone().zip(scores.chunks_exact_mut(token_stride)) {
                    if let Some((_, values)) = scales(i) {
                        scale(s, weights, values);
                    }
                }
            }
            for i in range {
                let weights = &scores[(i - block) * token_stride..];
                add_values::<S, E, Q, V>(s, weights, row, values(i), self.out.all_sums);
            }
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

/// What numbers are kept as.
trait Element: Copy {
    /// Loads a vector of them.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32;
}

/// The bits of a number in half precision.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32 {
        s.load_f16(from)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F32 {
        s.load_i8(from)
    }
}

/// Keys or values of a head in one page.
#[derive(Clone, Copy)]
struct Page<'a, E> {
    rows: &'a [E],
    /// Those of the page that takes this one's place in the next block. Pages are anywhere in memory, which the processor
    /// cannot foresee: it is told.
    next: &'a [E],
    /// Width of a row.
    stride: usize,
}

/// `scores[q, p] = Σ queries[d, q] × keys[d, p]` for all places of a page, used or not.
#[inline(always)]
fn score_page<S: Simd, E: Element, const Q: usize, const V: usize>(
    s: S,
    queries: &[f32],
    keys: Page<'_, E>,
    scores: &mut [f32],
    row: usize,
) {
    let mut p = 0;
    while p + V * S::LANES <= keys.stride {
        score_vectors::<S, E, Q, V>(s, queries, keys, p, scores, row);
        p += V * S::LANES;
    }
    while p < keys.stride {
        score_vectors::<S, E, Q, 1>(s, queries, keys, p, scores, row);
        p += S::LANES;
    }
}

/// Does so for `V` vectors from place `p` on.
#[inline(always)]
fn score_vectors<S: Simd, E: Element, const Q: usize, const V: usize>(
    s: S,
    queries: &[f32],
    keys: Page<'_, E>,
    p: usize,
    scores: &mut [f32],
    row: usize,
) {
    let mut dots = [[s.splat(0.0); V]; Q];
    let rows = keys.rows.chunks_exact(keys.stride);
    let rows = rows.zip(keys.next.chunks_exact(keys.stride));
    for ((keys, next), queries) in rows.zip(queries.as_chunks::<Q>().0) {
        let key = load::<S, E, V>(s, &keys[p..], &next[p..]);
        for q in 0..Q {
            let query = s.splat(queries[q]);
            for v in 0..V {
                dots[q][v] = s.mul_add(query, key[v], dots[q][v]);
            }
        }
    }
    for (q, dots) in dots.into_iter().enumerate() {
        for (v, dot) in dots.into_iter().enumerate() {
            s.store(dot, &mut scores[q * row + p + v * S::LANES..]);
        }
    }
}

/// `sums[q, d] += Σ weights[q, p] × values[p, d]` for all positions of a page.
#[inline(always)]
fn add_values<S: Simd, E: Element, const Q: usize, const V: usize>(
    s: S,
    weights: &[f32],
    row: usize,
    values: Page<'_, E>,
    sums: &mut [f32],
) {
    let mut d = 0;
    while d + V * S::LANES <= values.stride {
        add_vectors::<S, E, Q, V>(s, weights, row, values, d, sums);
        d += V * S::LANES;
    }
    while d < values.stride {
        add_vectors::<S, E, Q, 1>(s, weights, row, values, d, sums);
        d += S::LANES;
    }
}

/// Does so for `V` vectors from dimension `d` on.
#[inline(always)]
fn add_vectors<S: Simd, E: Element, const Q: usize, const V: usize>(
    s: S,
    weights: &[f32],
    row: usize,
    values: Page<'_, E>,
    d: usize,
    sums: &mut [f32],
) {
    let rows = values.rows.chunks_exact(values.stride);
    let rows = rows.zip(values.next.chunks_exact(values.stride));
    // The loop's own count, so that no index is checked within it: a check there cost the sums their registers.
    let positions = rows.len();
    let mut own = [weights; Q];
    let mut parts = [[s.splat(0.0); V]; Q];
    for (q, parts) in parts.iter_mut().enumerate() {
        own[q] = &weights[q * row..][..positions];
        for (v, part) in parts.iter_mut().enumerate() {
            *part = s.load(&sums[q * values.stride + d + v * S::LANES..]);
        }
    }
    for (p, (values, next)) in (0..positions).zip(rows) {
        let value = load::<S, E, V>(s, &values[d..], &next[d..]);
        for q in 0..Q {
            let weight = s.splat(own[q][p]);
            for v in 0..V {
                parts[q][v] = s.mul_add(weight, value[v], parts[q][v]);
            }
        }
    }
    for (q, parts) in parts.into_iter().enumerate() {
        for (v, part) in parts.into_iter().enumerate() {
            s.store(part, &mut sums[q * values.stride + d + v * S::LANES..]);
        }
    }
}

/// Loads `V` vectors, and asks for those at the same place of the page to come.
#[inline(always)]
fn load<S: Simd, E: Element, const V: usize>(s: S, from: &[E], next: &[E]) -> [S::F32; V] {
    for line in next[..V * S::LANES].chunks(LINE_BYTES / size_of::<E>()) {
        s.prefetch(line.as_ptr().cast());
    }
    let mut vectors = [s.splat(0.0); V];
    for (v, vector) in vectors.iter_mut().enumerate() {
        *vector = E::load(s, &from[v * S::LANES..]);
    }
    vectors
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
