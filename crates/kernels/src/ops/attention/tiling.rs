use std::ops::Range;

use super::{AttentionSpan, HeadMap, prompt};

/// Queries of one key-value head that share every read of the cache.
pub(super) const TILE_MAX: usize = 8;
/// With fewer for each thread, they would not end at about the same time.
pub(super) const TILES_PER_THREAD: usize = 2;

/// How the queries of a call are cut into tiles, and those put in bundles. No output depends on it.
#[derive(Clone, Copy)]
pub(super) struct Tiling<'a> {
    spans: &'a [AttentionSpan<'a>],
    heads: &'a HeadMap,
    /// The most queries of a tile of a prompt; none where prompts are nothing else.
    prompt_max: Option<usize>,
    /// Key-value heads of a single token that are in one bundle: all, or one.
    heads_at_once: usize,
}

impl<'a> Tiling<'a> {
    /// Cuts them; spans of some length are prompts if the processor `has_tiles` for them.
    ///
    /// One thread goes through a page's heads for a single token as they lie in memory, which measured a twentieth faster.
    /// Several threads share the heads; sharing the pages instead measured no faster.
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
            heads_at_once: if threads == 1 { heads.kv_heads() } else { 1 },
        };
        let large = of(prompt::QUERIES);
        if large.len() < TILES_PER_THREAD * threads {
            of(prompt::QUERIES_FEW)
        } else {
            large
        }
    }

    /// Returns the number of bundles.
    pub(super) fn len(&self) -> usize {
        self.spans.iter().map(|span| self.count(span)).sum()
    }

    /// Returns the bundles of a span.
    pub(super) fn count(&self, span: &AttentionSpan<'_>) -> usize {
        let queries = span.tokens * self.heads.group;
        let tiles = queries.div_ceil(self.queries_max(span));
        self.heads.kv_heads() / self.heads_at_once(span) * tiles
    }

    /// Returns the most queries of a tile of a span.
    fn queries_max(&self, span: &AttentionSpan<'_>) -> usize {
        self.prompt_queries(span)
            .unwrap_or_else(|| side_by_side((span.tokens * self.heads.group).min(TILE_MAX)))
    }

    fn prompt_queries(&self, span: &AttentionSpan<'_>) -> Option<usize> {
        self.prompt_max
            .filter(|_| span.tokens >= prompt::TOKENS_MIN)
    }

    fn heads_at_once(&self, span: &AttentionSpan<'_>) -> usize {
        if span.tokens == 1 {
            self.heads_at_once
        } else {
            1
        }
    }

    /// Returns the most queries of a bundle of a span.
    pub(super) fn bundle_max(&self, span: &AttentionSpan<'_>) -> usize {
        self.heads_at_once(span) * self.queries_max(span)
    }

    /// Returns bundle `index`.
    pub(super) fn bundle(&self, mut index: usize) -> Bundle<'a> {
        let mut first_token = 0;
        let mut spans = self.spans.iter();
        let span = loop {
            let span = spans.next().expect("there are no more tasks than bundles");
            if index < self.count(span) {
                break span;
            }
            index -= self.count(span);
            first_token += span.tokens;
        };
        let heads_at_once = self.heads_at_once(span);
        let of_a_tile = self.heads.kv_heads() / heads_at_once;
        let kv_head = index % of_a_tile * heads_at_once;
        Bundle {
            heads: self.heads,
            span,
            first_token,
            kv_heads: kv_head..kv_head + heads_at_once,
            start: index / of_a_tile * self.queries_max(span),
            queries_max: self.queries_max(span),
            is_prompt: self.prompt_queries(span).is_some(),
        }
    }
}

/// Tiles of the same tokens, one for each of some key-value heads. Their keys and values are neighbours in every page.
pub(super) struct Bundle<'a> {
    heads: &'a HeadMap,
    span: &'a AttentionSpan<'a>,
    /// Row of the span's first token in the input.
    first_token: usize,
    pub(super) kv_heads: Range<usize>,
    /// First query of each tile.
    start: usize,
    /// As many queries as a tile has room for.
    queries_max: usize,
    /// Whether the processor's tiles multiply it.
    pub(super) is_prompt: bool,
}

impl<'a> Bundle<'a> {
    /// Returns the tile of a key-value head.
    pub(super) fn tile(&self, kv_head: usize) -> Tile<'a> {
        let heads = self.heads.heads_of(kv_head);
        let queries = self.span.tokens * heads.len();
        let start = self.start.min(queries);
        let range = start..queries.min(start + self.queries_max);
        Tile {
            span: self.span,
            first_token: self.first_token,
            kv_head,
            end: self.span.start as usize + range.end.div_ceil(heads.len()),
            heads,
            range,
        }
    }

    /// Returns all tiles, each with the place of its first query among those of the bundle.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (usize, Tile<'a>)> {
        let places = (0..).step_by(self.queries_max);
        places.zip(self.kv_heads.clone().map(|kv_head| self.tile(kv_head)))
    }

    /// Returns as many queries as it has room for.
    pub(super) fn room(&self) -> usize {
        self.kv_heads.len() * self.queries_max
    }

    /// Returns the positions that the last of its queries sees.
    pub(super) fn end(&self) -> usize {
        // More tiles than one are of one token.
        self.tile(self.kv_heads.start).end
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

/// Returns how many queries are computed where a tile has so many.
pub(super) fn side_by_side(queries: usize) -> usize {
    match queries {
        0..=1 => queries,
        2..=4 => 4,
        _ => TILE_MAX,
    }
}
