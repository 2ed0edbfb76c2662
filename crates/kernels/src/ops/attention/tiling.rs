use std::ops::Range;

use super::{AttentionSpan, HeadMap, prompt};

/// Queries of one key-value head that share every read of the cache.
pub(super) const TILE_MAX: usize = 8;
/// With fewer for each thread, they would not end at about the same time.
pub(super) const TILES_PER_THREAD: usize = 2;

/// How the queries of a call are cut into tiles. No output depends on it.
#[derive(Clone, Copy)]
pub(super) struct Tiling<'a> {
    spans: &'a [AttentionSpan<'a>],
    heads: &'a HeadMap,
    /// The most queries of a tile of a prompt; none where prompts are nothing else.
    prompt_max: Option<usize>,
}

impl<'a> Tiling<'a> {
    /// Cuts them; spans of some length are prompts if the processor `has_tiles` for them.
    pub(super) fn new(
        spans: &'a [AttentionSpan<'a>],
        heads: &'a HeadMap,
        has_tiles: bool,
        threads: usize,
    ) -> Self {
        let of = |queries| Self {
            spans,
            heads,
            prompt_max: has_tiles.then_some(queries),
        };
        let large = of(prompt::QUERIES);
        if large.len() < TILES_PER_THREAD * threads {
            of(prompt::QUERIES_FEW)
        } else {
            large
        }
    }

    /// Returns the number of tiles.
    pub(super) fn len(&self) -> usize {
        self.spans.iter().map(|span| self.count(span)).sum()
    }

    /// Returns the tiles of a span.
    pub(super) fn count(&self, span: &AttentionSpan<'_>) -> usize {
        let queries = span.tokens * self.heads.group;
        self.heads.kv_heads() * queries.div_ceil(self.queries_max(span))
    }

    /// Returns the most queries of a tile of a span.
    pub(super) fn queries_max(&self, span: &AttentionSpan<'_>) -> usize {
        self.prompt_queries(span).unwrap_or(TILE_MAX)
    }

    fn prompt_queries(&self, span: &AttentionSpan<'_>) -> Option<usize> {
        self.prompt_max
            .filter(|_| span.tokens >= prompt::TOKENS_MIN)
    }

    /// Returns tile `index`.
    pub(super) fn tile(&self, mut index: usize) -> Tile<'a> {
        let mut first_token = 0;
        let mut spans = self.spans.iter();
        let span = loop {
            let span = spans.next().expect("there are no more tasks than tiles");
            if index < self.count(span) {
                break span;
            }
            index -= self.count(span);
            first_token += span.tokens;
        };
        let kv_heads = self.heads.kv_heads();
        let heads = self.heads.heads_of(index % kv_heads);
        let queries = span.tokens * heads.len();
        let queries_max = self.queries_max(span);
        let start = (index / kv_heads * queries_max).min(queries);
        let range = start..queries.min(start + queries_max);
        Tile {
            span,
            first_token,
            kv_head: index % kv_heads,
            end: span.start as usize + range.end.div_ceil(heads.len()),
            heads,
            range,
            queries_max,
            is_prompt: self.prompt_queries(span).is_some(),
        }
    }
}

/// Queries `range` of a span and key-value head: query `i` is head `i % heads.len()` of token `i / heads.len()`.
pub(super) struct Tile<'a> {
    pub(super) span: &'a AttentionSpan<'a>,
    /// Row of the span's first token in the input.
    first_token: usize,
    pub(super) kv_head: usize,
    heads: Range<usize>,
    pub(super) range: Range<usize>,
    /// Positions that the last of its queries sees.
    pub(super) end: usize,
    /// As many queries as it has room for.
    pub(super) queries_max: usize,
    /// Whether the processor's tiles multiply it.
    pub(super) is_prompt: bool,
}

impl Tile<'_> {
    /// Returns the row of query `i` in the input, `tokens × heads`.
    pub(super) fn row(&self, i: usize, heads: usize) -> usize {
        let token = self.first_token + i / self.heads.len();
        token * heads + self.heads.start + i % self.heads.len()
    }

    /// Returns how many positions query `i` sees.
    pub(super) fn seen(&self, i: usize) -> usize {
        self.span.start as usize + i / self.heads.len() + 1
    }
}
