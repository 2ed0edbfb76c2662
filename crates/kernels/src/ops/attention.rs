use std::ops::Range;
use std::sync::Mutex;

use crate::KvCache;
use crate::arch::{Operation, Simd, Token};
use crate::pool::{Pool, SharedSlice, lock};

mod pages;
mod part;
mod partial;
mod prompt;

use part::{AttendPart, PartScratch};
use partial::{Merge, Partial, PartialShape};
use prompt::{AttendPrompt, PromptScratch};

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
    fn heads_of(&self, kv_head: usize) -> Range<usize> {
        let end = ((kv_head + 1) * self.group - self.phase).min(self.heads);
        (kv_head * self.group).saturating_sub(self.phase)..end
    }
}

/// Queries of one key-value head that share every read of the cache.
const TILE_MAX: usize = 8;
/// Positions whose softmax is computed for itself before it is merged with that of the positions before. Always the same
/// ones, so that a result does not depend on who computes which part.
const PART_TOKENS: usize = 512;
/// With fewer for each thread, they would not end at about the same time.
const TILES_PER_THREAD: usize = 2;

/// Everything about one call; shapes were checked by the caller.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
    pub(crate) spans: &'a [AttentionSpan<'a>],
    pub(crate) heads: &'a HeadMap,
    pub(crate) scale: f32,
    /// Whether vectors of 16 numbers read pages two at a time.
    pub(crate) in_pairs: bool,
    /// The most queries that tiles multiply together, of spans that are long enough; 0 where there are no tiles. Chosen by
    /// [`run`](Self::run).
    pub(crate) tiled_queries: usize,
}

/// Memory kept between calls.
pub(crate) struct Scratch {
    threads: Vec<Mutex<ThreadScratch>>,
    parts: Mutex<PartsScratch>,
}

#[derive(Default)]
struct PartsScratch {
    /// A [`Partial`] for each part of each tile.
    results: Vec<f32>,
    /// Of each tile the place of its first part, and the end of the last one's.
    starts: Vec<usize>,
}

#[derive(Default)]
struct ThreadScratch {
    part: PartScratch,
    prompt: PromptScratch,
    /// Two [`Partial`]s.
    partials: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: (0..threads).map(|_| Mutex::default()).collect(),
            parts: Mutex::default(),
        }
    }
}

impl Attention<'_> {
    /// Computes all heads of all tokens. Tasks are tiles of queries, or their parts where tiles are too few for the threads.
    pub(crate) fn run(&self, pool: &Pool, isa: Token, scratch: &Scratch, out: &mut [f32]) {
        let this = &self.fitted(isa, pool.threads());
        this.run_fitted(pool, isa, scratch, &SharedSlice::new(out));
    }

    /// Chooses the queries of a tile.
    fn fitted(&self, isa: Token, threads: usize) -> Self {
        let of = |queries| Self {
            tiled_queries: if isa.has_tiles() { queries } else { 0 },
            ..*self
        };
        let large = of(prompt::QUERIES);
        let tiles: usize = large.spans.iter().map(|span| large.tiles(span)).sum();
        if tiles < TILES_PER_THREAD * threads {
            of(prompt::QUERIES_FEW)
        } else {
            large
        }
    }

    fn run_fitted(&self, pool: &Pool, isa: Token, scratch: &Scratch, out: &SharedSlice<'_, f32>) {
        let tiles = self.spans.iter().map(|span| self.tiles(span)).sum();
        if self.leaves_idle(tiles, pool.threads()) {
            return self.run_parts(pool, isa, scratch, tiles, out);
        }
        pool.run(tiles, |thread, task| {
            let tile = self.tile(task);
            let scratch = &mut *lock(&scratch.threads[thread]);
            let mut partials = std::mem::take(&mut scratch.partials);
            let shape = self.partial(tile.span);
            partials.resize(partials.len().max(2 * shape.len()), 0.0);
            let (sum, new) = partials.split_at_mut(shape.len());
            let mut sum = Partial::empty(sum, shape);
            for i in 0..self.parts(tile.end) {
                let mut new = Partial::empty(new, shape);
                self.attend(isa, &tile, i, scratch, &mut new);
                isa.run(Merge(&mut sum, &new));
            }
            self.finish(isa, &tile, &sum, out);
            scratch.partials = partials;
        });
    }

    /// Computes the parts of all tiles side by side, then merges those of each tile.
    fn run_parts(
        &self,
        pool: &Pool,
        isa: Token,
        scratch: &Scratch,
        tiles: usize,
        out: &SharedSlice<'_, f32>,
    ) {
        let shapes = self.spans.iter().map(|span| self.partial(span).len());
        let len = shapes.max().unwrap_or(0);
        let PartsScratch { results, starts } = &mut *lock(&scratch.parts);
        let mut parts = 0;
        starts.clear();
        starts.extend((0..tiles).map(|tile| {
            let start = parts;
            parts += self.parts(self.tile(tile).end);
            start
        }));
        starts.push(parts);
        let starts = &*starts;
        results.resize(parts * len, 0.0);
        let results = SharedSlice::new(results);
        // SAFETY: each result is asked for by one task of a run, and the runs follow one another.
        let result = |i: usize| unsafe { results.slice(i * len..(i + 1) * len) };
        pool.run(parts, |thread, task| {
            let place = starts.partition_point(|start| *start <= task) - 1;
            let (tile, i) = (self.tile(place), task - starts[place]);
            let mut new = Partial::empty(result(task), self.partial(tile.span));
            self.attend(isa, &tile, i, &mut lock(&scratch.threads[thread]), &mut new);
        });
        pool.run(tiles, |_, task| {
            let tile = self.tile(task);
            let shape = self.partial(tile.span);
            let mut sum = Partial::of(result(starts[task]), shape);
            for i in starts[task] + 1..starts[task + 1] {
                isa.run(Merge(&mut sum, &Partial::of(result(i), shape)));
            }
            self.finish(isa, &tile, &sum, out);
        });
    }

    /// Computes the attention of a tile over part `i` of its positions.
    fn attend(
        &self,
        isa: Token,
        tile: &Tile<'_>,
        i: usize,
        scratch: &mut ThreadScratch,
        out: &mut Partial<'_>,
    ) {
        let ThreadScratch { part, prompt, .. } = scratch;
        if self.is_tiled(tile.span) {
            isa.run_tiled(AttendPrompt {
                attention: self,
                tile,
                part: i,
                scratch: prompt,
                out,
            });
        } else {
            isa.run(AttendPart::new(self, tile, i, part, out));
        }
    }

    /// Says whether threads would wait for others that have whole tiles to compute: tiles are few, or one is longer than what
    /// each thread has to do.
    fn leaves_idle(&self, tiles: usize, threads: usize) -> bool {
        let (mut longest, mut all) = (0, 0);
        for span in self.spans {
            let parts = self.parts(span.start as usize + span.tokens);
            longest = longest.max(parts);
            all += parts * self.tiles(span);
        }
        longest > 1 && (tiles < TILES_PER_THREAD * threads || longest * threads > all)
    }

    /// Returns the parts that `positions` from the first one on make.
    fn parts(&self, positions: usize) -> usize {
        positions.div_ceil(self.part_pages() * self.cache.shape().page_tokens)
    }

    fn part_pages(&self) -> usize {
        (PART_TOKENS / self.cache.shape().page_tokens).max(1)
    }

    fn is_tiled(&self, span: &AttentionSpan<'_>) -> bool {
        self.tiled_queries > 0 && span.tokens >= prompt::TOKENS_MIN
    }

    /// Returns the most queries of a tile.
    fn tile_max(&self, span: &AttentionSpan<'_>) -> usize {
        if self.is_tiled(span) {
            self.tiled_queries
        } else {
            TILE_MAX
        }
    }

    fn partial(&self, span: &AttentionSpan<'_>) -> PartialShape {
        PartialShape {
            queries: self.tile_max(span),
            head_stride: self.cache.head_stride(),
        }
    }

    fn tiles(&self, span: &AttentionSpan<'_>) -> usize {
        let queries = span.tokens * self.heads.group;
        self.heads.kv_heads() * queries.div_ceil(self.tile_max(span))
    }

    fn tile(&self, mut index: usize) -> Tile<'_> {
        let mut first_token = 0;
        let mut spans = self.spans.iter();
        let span = loop {
            let span = spans.next().expect("there are no more tasks than tiles");
            if index < self.tiles(span) {
                break span;
            }
            index -= self.tiles(span);
            first_token += span.tokens;
        };
        let kv_heads = self.heads.kv_heads();
        let heads = self.heads.heads_of(index % kv_heads);
        let queries = span.tokens * heads.len();
        let start = (index / kv_heads * self.tile_max(span)).min(queries);
        let range = start..queries.min(start + self.tile_max(span));
        Tile {
            span,
            first_token,
            kv_head: index % kv_heads,
            end: span.start as usize + range.end.div_ceil(heads.len()),
            heads,
            range,
        }
    }

    fn finish(&self, isa: Token, tile: &Tile<'_>, sum: &Partial<'_>, out: &SharedSlice<'_, f32>) {
        let head_dim = self.cache.shape().head_dim;
        for (q, i) in tile.range.clone().enumerate() {
            let start = tile.row(i, self.heads.heads) * head_dim;
            // SAFETY: each row of the output belongs to one query, each query to one tile, and
            // each tile to one task; the part is not kept.
            let out = unsafe { out.slice(start..start + head_dim) };
            isa.run(Divide {
                sums: sum.sums(q),
                by: sum.totals[q],
                out,
            });
        }
    }
}

/// `out = sums ÷ by`, but for padding.
struct Divide<'a> {
    sums: &'a [f32],
    by: f32,
    out: &'a mut [f32],
}

impl Operation for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, sum) in self.out.iter_mut().zip(self.sums) {
            *out = sum / self.by;
        }
    }
}

/// Queries `range` of a span and key-value head: query `i` is head `i % heads.len()` of token `i / heads.len()`.
struct Tile<'a> {
    span: &'a AttentionSpan<'a>,
    /// Row of the span's first token in the input.
    first_token: usize,
    kv_head: usize,
    heads: Range<usize>,
    range: Range<usize>,
    /// Positions that the last of its queries sees.
    end: usize,
}

impl Tile<'_> {
    /// Returns the row of query `i` in the input, `tokens × heads`.
    fn row(&self, i: usize, heads: usize) -> usize {
        let token = self.first_token + i / self.heads.len();
        token * heads + self.heads.start + i % self.heads.len()
    }

    /// Returns how many positions query `i` sees.
    fn seen(&self, i: usize) -> usize {
        self.span.start as usize + i / self.heads.len() + 1
    }
}

#[cfg(test)]
mod tests;
