use std::sync::Mutex;

use crate::KvCache;
use crate::arch::{Operation, Simd, Token};
use crate::kv_cache::ALIGN;
use crate::pool::{Pool, SharedSlice, lock};

/// Consecutive queries of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpan<'a> {
    /// Pages of the sequence, in order of position.
    pub pages: &'a [u32],
    /// Position of the first query.
    pub start: u32,
    /// Queries, consecutive in the input.
    pub tokens: usize,
}

/// Which key-value head each query head held here reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadMap {
    /// Query heads held here.
    pub heads: usize,
    /// Query heads for each key-value head in the whole model.
    pub group: usize,
    /// Index of the first local head within its group: local head `i` reads local key-value head
    /// `(phase + i) / group`.
    pub phase: usize,
}

impl HeadMap {
    /// Returns the number of key-value heads that are read.
    pub(crate) fn kv_heads(&self) -> usize {
        (self.phase + self.heads).div_ceil(self.group)
    }

    /// Returns the local query heads of a key-value head.
    fn heads_of(&self, kv_head: usize) -> std::ops::Range<usize> {
        let end = ((kv_head + 1) * self.group - self.phase).min(self.heads);
        (kv_head * self.group).saturating_sub(self.phase)..end
    }
}

/// Queries of one key-value head that share every read of the cache.
const TILE_MAX: usize = 8;

/// Everything about one call; shapes were checked by the caller.
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
    pub(crate) spans: &'a [AttentionSpan<'a>],
    pub(crate) heads: &'a HeadMap,
    pub(crate) scale: f32,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `head_dim × tile`, scaled.
    queries: Vec<f32>,
    /// `tile × token_stride`: scores, then weights of the positions of a page.
    scores: Vec<f32>,
    /// `tile × head_stride`.
    sums: Vec<f32>,
}

impl Attention<'_> {
    /// Computes all heads of all tokens; tasks are tiles of queries.
    pub(crate) fn run(&self, pool: &Pool, isa: Token, scratch: &[Mutex<Scratch>], out: &mut [f32]) {
        let out = SharedSlice::new(out);
        let kv_heads = self.heads.kv_heads();
        let tiles = |span: &AttentionSpan<'_>| {
            kv_heads * (span.tokens * self.heads.group).div_ceil(TILE_MAX)
        };
        let tasks = self.spans.iter().map(tiles).sum();
        pool.run(tasks, |thread, mut task| {
            let mut first_token = 0;
            for span in self.spans {
                if task < tiles(span) {
                    let tile = self.tile(span, first_token, task % kv_heads, task / kv_heads);
                    let scratch = &mut lock(&scratch[thread]);
                    isa.run(AttendTile {
                        attention: self,
                        span,
                        tile,
                        scratch,
                        out: &out,
                    });
                    return;
                }
                task -= tiles(span);
                first_token += span.tokens;
            }
        });
    }

    fn tile(&self, span: &AttentionSpan<'_>, first_token: usize, kv_head: usize, i: usize) -> Tile {
        let heads = self.heads.heads_of(kv_head);
        let queries = span.tokens * heads.len();
        let start = (i * TILE_MAX).min(queries);
        Tile {
            first_token,
            kv_head,
            heads,
            range: start..queries.min(start + TILE_MAX),
        }
    }
}

/// Queries `range` of a span and key-value head: query `i` is head `i % heads.len()` of token `i / heads.len()`.
struct Tile {
    first_token: usize,
    kv_head: usize,
    heads: std::ops::Range<usize>,
    range: std::ops::Range<usize>,
}

struct AttendTile<'a> {
    attention: &'a Attention<'a>,
    span: &'a AttentionSpan<'a>,
    tile: Tile,
    scratch: &'a mut Scratch,
    out: &'a SharedSlice<'a, f32>,
}

impl Operation for AttendTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.tile.range.len() {
            0 => {}
            1 => self.attend::<S, 1>(s),
            2..=4 => self.attend::<S, 4>(s),
            _ => self.attend::<S, TILE_MAX>(s),
        }
    }
}

impl AttendTile<'_> {
    /// Softmax over one page at a time, with running maximum and sum
    /// ([online softmax](https://arxiv.org/abs/1805.02867)). Queries beyond the tile are zero and not written.
    ///
    /// A position that a query may not see gets weight 0, so a NaN among the values of a later
    /// token of the same span can reach earlier queries of its tile; other sequences it cannot reach.
    #[inline(always)]
    fn attend<S: Simd, const Q: usize>(mut self, s: S) {
        let Attention { cache, layer, .. } = *self.attention;
        let shape = cache.shape();
        let (token_stride, head_stride) = (cache.token_stride(), cache.head_stride());
        let page_tokens = shape.page_tokens;
        self.load_queries::<Q>();
        let Scratch {
            queries,
            scores,
            sums,
        } = self.scratch;
        scores.resize(Q * token_stride, 0.0);
        sums.clear();
        sums.resize(Q * head_stride, 0.0);
        let mut maxima = [f32::NEG_INFINITY; Q];
        let mut totals = [0.0; Q];
        // Positions each query sees.
        let mut limits = [0; Q];
        for (limit, i) in limits.iter_mut().zip(self.tile.range.clone()) {
            *limit = self.span.start as usize + i / self.tile.heads.len() + 1;
        }
        let seen = limits.iter().fold(0, |a, &b| a.max(b));
        let pages = self.span.pages;
        for (i, first) in (0..seen).step_by(page_tokens).enumerate() {
            let page = pages[i];
            let count = page_tokens.min(seen - first);
            let (keys, values) = cache.head(layer, page, self.tile.kv_head);
            // Pages are anywhere in memory, which the processor cannot foresee: the next is asked for meanwhile.
            let next = *pages.get(i + 1).unwrap_or(&page);
            let (next_keys, next_values) = cache.head(layer, next, self.tile.kv_head);
            let keys = [keys, next_keys];
            let values = [values, next_values];
            score_page::<S, Q>(s, queries, keys, token_stride, count, scores);
            let vectors = count.next_multiple_of(ALIGN);
            for q in 0..Q {
                let valid = limits[q].saturating_sub(first).min(count);
                let scores = &mut scores[q * token_stride..][..vectors];
                scores[valid..].fill(f32::NEG_INFINITY);
                if valid == 0 {
                    scores.fill(0.0);
                    continue;
                }
                let maximum = largest(s, scores).max(maxima[q]);
                if maximum > maxima[q] {
                    let factor = (maxima[q] - maximum).exp();
                    totals[q] *= factor;
                    scale(s, &mut sums[q * head_stride..][..head_stride], factor);
                    maxima[q] = maximum;
                }
                totals[q] += exponentiate(s, scores, maximum);
            }
            add_values::<S, Q>(s, scores, token_stride, values, head_stride, count, sums);
        }
        let head_dim = shape.head_dim;
        for (q, i) in self.tile.range.clone().enumerate() {
            let start = self.tile.row(i, self.attention.heads.heads) * head_dim;
            // SAFETY: each row of the output belongs to one query, each query to one tile, and
            // each tile to one task; the part is not kept.
            let out = unsafe { self.out.slice(start..start + head_dim) };
            for (out, sum) in out.iter_mut().zip(&sums[q * head_stride..]) {
                *out = sum / totals[q];
            }
        }
    }
}

impl AttendTile<'_> {
    /// Gathers the tile's queries as `head_dim × Q`, scaled.
    #[inline(always)]
    fn load_queries<const Q: usize>(&mut self) {
        let head_dim = self.attention.cache.shape().head_dim;
        let queries = &mut self.scratch.queries;
        queries.clear();
        queries.resize(head_dim * Q, 0.0);
        for (q, i) in self.tile.range.clone().enumerate() {
            let row = self.tile.row(i, self.attention.heads.heads);
            let from = &self.attention.q[row * head_dim..][..head_dim];
            for (to, x) in queries[q..].iter_mut().step_by(Q).zip(from) {
                *to = x * self.attention.scale;
            }
        }
    }
}

impl Tile {
    /// Returns the row of query `i` in the input, `tokens × heads`.
    fn row(&self, i: usize, heads: usize) -> usize {
        let token = self.first_token + i / self.heads.len();
        token * heads + self.heads.start + i % self.heads.len()
    }
}

/// `scores[q, p] = Σ queries[d, q] × keys[d, p]` for the first `count` positions, rounded up to whole vectors.
#[inline(always)]
fn score_page<S: Simd, const Q: usize>(
    s: S,
    queries: &[f32],
    [keys, next]: [&[u16]; 2],
    stride: usize,
    count: usize,
    scores: &mut [f32],
) {
    for p in (0..count).step_by(S::LANES) {
        let mut dots = [s.splat(0.0); Q];
        let columns = keys.chunks_exact(stride).zip(next.chunks_exact(stride));
        for ((column, next), queries) in columns.zip(queries.as_chunks::<Q>().0) {
            s.prefetch(next[p..].as_ptr().cast());
            let key = s.load_f16(&column[p..]);
            for q in 0..Q {
                dots[q] = s.mul_add(s.splat(queries[q]), key, dots[q]);
            }
        }
        for q in 0..Q {
            s.store(dots[q], &mut scores[q * stride + p..]);
        }
    }
    // Lanes between the vector's end and the next multiple of ALIGN are masked by the caller.
}

/// `sums[q, d] += Σ weights[q, p] × values[p, d]`.
#[inline(always)]
fn add_values<S: Simd, const Q: usize>(
    s: S,
    weights: &[f32],
    weight_stride: usize,
    [values, next]: [&[u16]; 2],
    stride: usize,
    count: usize,
    sums: &mut [f32],
) {
    let mut own = [weights; Q];
    for q in 0..Q {
        own[q] = &weights[q * weight_stride..][..count];
    }
    for d in (0..stride).step_by(S::LANES) {
        let mut parts = [s.splat(0.0); Q];
        for q in 0..Q {
            parts[q] = s.load(&sums[q * stride + d..]);
        }
        let rows = values.chunks_exact(stride).zip(next.chunks_exact(stride));
        for (p, (value, next)) in rows.take(count).enumerate() {
            s.prefetch(next[d..].as_ptr().cast());
            let value = s.load_f16(&value[d..]);
            for q in 0..Q {
                parts[q] = s.mul_add(s.splat(own[q][p]), value, parts[q]);
            }
        }
        for q in 0..Q {
            s.store(parts[q], &mut sums[q * stride + d..]);
        }
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

#[inline(always)]
fn scale<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    for x in x.chunks_exact_mut(S::LANES) {
        s.store(s.mul(s.load(x), s.splat(factor)), x);
    }
}
