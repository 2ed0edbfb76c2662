use std::ops::Range;
use std::sync::Mutex;

use crate::KvCache;
use crate::arch::{Operation, Simd, Token};
use crate::pool::{Pool, SharedSlice, lock};

mod pages;
mod part;
mod partial;
mod prompt;
mod tiling;

use part::{PartScratch, attend_part};
use partial::{Merge, Partial, PartialShape};
use prompt::{AttendPrompt, PromptScratch};
use tiling::{Bundle, TILES_PER_THREAD, Tiling};

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

/// Positions whose softmax is computed for itself before it is merged with that of the positions before. Always the same
/// ones, so that a result does not depend on who computes which part.
const PART_TOKENS: usize = 512;

/// Everything about one call; shapes were checked by the caller.
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
    pub(crate) spans: &'a [AttentionSpan<'a>],
    pub(crate) heads: &'a HeadMap,
    pub(crate) scale: f32,
    /// Whether vectors of 16 numbers read pages two at a time.
    pub(crate) in_pairs: bool,
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
    attend: AttendScratch,
    /// Two [`Partial`]s.
    partials: Vec<f32>,
}

#[derive(Default)]
struct AttendScratch {
    part: PartScratch,
    prompt: PromptScratch,
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
    /// Computes all heads of all tokens. Tasks are bundles of queries, or their parts where bundles are too few for the threads.
    pub(crate) fn run(&self, pool: &Pool, isa: Token, scratch: &Scratch, out: &mut [f32]) {
        let out = SharedSlice::new(out);
        let tiling = Tiling::new(self.spans, self.heads, isa.has_tiles(), pool.threads());
        if self.leaves_idle(&tiling, pool.threads()) {
            return self.run_parts(pool, isa, scratch, &tiling, &out);
        }
        pool.run(tiling.len(), |thread, task| {
            let bundle = tiling.bundle(task);
            let ThreadScratch { attend, partials } = &mut *lock(&scratch.threads[thread]);
            let shape = self.partial(bundle.room());
            partials.resize(2 * shape.len(), 0.0);
            let (sum, new) = partials.split_at_mut(shape.len());
            let mut sum = Partial::empty(sum, shape);
            for i in 0..self.parts(bundle.end()) {
                let mut new = Partial::empty(new, shape);
                self.attend(isa, &bundle, i, attend, &mut new);
                isa.run(Merge(&mut sum, &new));
            }
            self.finish(isa, &bundle, &sum, &out);
        });
    }

    /// Computes the parts of all bundles side by side, then merges those of each bundle.
    fn run_parts(
        &self,
        pool: &Pool,
        isa: Token,
        scratch: &Scratch,
        tiling: &Tiling<'_>,
        out: &SharedSlice<'_, f32>,
    ) {
        let queries = self.spans.iter().map(|span| tiling.bundle_max(span));
        let len = self.partial(queries.max().unwrap_or(0)).len();
        let PartsScratch { results, starts } = &mut *lock(&scratch.parts);
        let mut parts = 0;
        starts.clear();
        starts.extend((0..tiling.len()).map(|bundle| {
            let start = parts;
            parts += self.parts(tiling.bundle(bundle).end());
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
            let (bundle, i) = (tiling.bundle(place), task - starts[place]);
            let attend = &mut lock(&scratch.threads[thread]).attend;
            let mut new = Partial::empty(result(task), self.partial(bundle.room()));
            self.attend(isa, &bundle, i, attend, &mut new);
        });
        pool.run(tiling.len(), |_, task| {
            let bundle = tiling.bundle(task);
            let shape = self.partial(bundle.room());
            let mut sum = Partial::of(result(starts[task]), shape);
            for i in starts[task] + 1..starts[task + 1] {
                isa.run(Merge(&mut sum, &Partial::of(result(i), shape)));
            }
            self.finish(isa, &bundle, &sum, out);
        });
    }

    /// Computes the attention of a bundle over part `i` of its positions.
    fn attend(
        &self,
        isa: Token,
        bundle: &Bundle<'_>,
        i: usize,
        scratch: &mut AttendScratch,
        out: &mut Partial<'_>,
    ) {
        let AttendScratch { part, prompt } = scratch;
        if bundle.is_prompt {
            isa.run_tiled(AttendPrompt {
                attention: self,
                tile: &bundle.tile(bundle.kv_heads.start),
                part: i,
                scratch: prompt,
                out,
            });
        } else {
            attend_part(isa, self, bundle, i, part, out);
        }
    }

    /// Says whether threads would wait for others that have whole tiles to compute: tiles are few, or one is longer than what
    /// each thread has to do.
    fn leaves_idle(&self, tiling: &Tiling<'_>, threads: usize) -> bool {
        let (mut longest, mut all) = (0, 0);
        for span in self.spans {
            let parts = self.parts(span.start as usize + span.tokens);
            longest = longest.max(parts);
            all += parts * tiling.count(span);
        }
        threads > 1
            && longest > 1
            && (tiling.len() < TILES_PER_THREAD * threads || longest * threads > all)
    }

    /// Returns the parts that `positions` from the first one on make.
    fn parts(&self, positions: usize) -> usize {
        positions.div_ceil(self.part_pages() * self.cache.shape().page_tokens)
    }

    fn part_pages(&self) -> usize {
        (PART_TOKENS / self.cache.shape().page_tokens).max(1)
    }

    fn partial(&self, queries: usize) -> PartialShape {
        PartialShape {
            queries,
            head_stride: self.cache.head_stride(),
        }
    }

    fn finish(
        &self,
        isa: Token,
        bundle: &Bundle<'_>,
        sum: &Partial<'_>,
        out: &SharedSlice<'_, f32>,
    ) {
        let head_dim = self.cache.shape().head_dim;
        for (place, tile) in bundle.tiles() {
            for (q, i) in (place..).zip(tile.range.clone()) {
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

#[cfg(test)]
mod tests;
