//! Attention of many queries of a span, in tiles of bfloat16.
//!
//! Queries, keys, weights and values are rounded to bfloat16, as models are trained with; scores, their softmax and sums are in `f32`.
//! Keys and values of a block are rounded once for [`QUERIES`] queries, which go through it in squares of 32. In all operands columns
//! lie side by side with those 16 further on, which gives the sums of [`crate::arch::tiles`] in another order.

use std::ops::Range;

use super::Attention;
use super::pages::{Element, HeadPages};
use super::part::{block_pages, weigh};
use super::partial::Partial;
use super::tiling::Tile as QueryTile;
use crate::KvCache;
use crate::arch::tiles::{SIDE, STEP_COLS, Start, TILE_ROWS, Tile, TileUnit, Tiles, ZERO, pairs};
use crate::arch::{Simd, TiledOperation};
use crate::kv_cache::{Kept, Numbers};

/// Queries of one key-value head that share every read of the cache, and where tiles of so many are too few for the threads.
pub(super) const QUERIES: usize = 4 * SIDE;
pub(super) const QUERIES_FEW: usize = SIDE;
/// Fewest tokens of a span that are worth it; products of as many tokens round their activations as well.
pub(super) const TOKENS_MIN: usize = 32;

/// Positions whose keys and values are rounded at once.
const BLOCK_TOKENS: usize = 256;

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct PromptScratch {
    /// Places of a block, in squares.
    row: usize,
    /// Steps over the dimensions of a head.
    dim_steps: usize,
    /// Steps over the places of a block.
    place_steps: usize,
    /// The steps of each square of queries, over the dimensions of a head.
    queries: Vec<[Tile; 2]>,
    /// The steps of each 32 places of a block, over the dimensions of a head.
    keys: Vec<[Tile; 2]>,
    /// Scores, then weights, of a square of queries: a row for each.
    scores: Vec<f32>,
    /// The steps of a square of queries, over the places of a block.
    weights: Vec<[Tile; 2]>,
    /// The steps of each 32 dimensions, over the places of a block.
    values: Vec<[Tile; 2]>,
}

/// Computes the attention of a tile over one part of its positions.
pub(super) struct AttendPrompt<'a, 'b> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) tile: &'a QueryTile<'a>,
    pub(super) part: usize,
    pub(super) scratch: &'a mut PromptScratch,
    /// Over no positions yet.
    pub(super) out: &'a mut Partial<'b>,
}

impl TiledOperation for AttendPrompt<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, U: TileUnit>(self, s: S, unit: U) {
        match self.attention.cache.kept() {
            Kept::F16(numbers) => self.attend(s, unit.tiles(), numbers),
            Kept::Q8(numbers) => self.attend(s, unit.tiles(), numbers),
        }
    }
}

impl AttendPrompt<'_, '_> {
    /// Goes through the part block by block.
    ///
    /// A token's output does not depend on what else is in its span: blocks lie where they lie, and what a query does not see has
    /// weight 0. A value that is not finite can reach the queries of its tile before it, as in [`super::part`].
    #[inline(always)]
    fn attend<S: Simd, E: Element, T: Tiles>(self, s: S, mut tiles: T, kept: Numbers<'_, E>) {
        let Self {
            attention,
            tile,
            part,
            scratch,
            out,
        } = self;
        if tile.range.is_empty() {
            return;
        }
        let page_tokens = attention.cache.shape().page_tokens;
        let block_pages = block_pages(page_tokens, BLOCK_TOKENS);
        scratch.resize(attention.cache, block_pages);
        scratch.round_queries(s, attention, tile);

        let pages = HeadPages::<E, 1> {
            kept,
            layer: attention.layer,
            head: tile.kv_head,
            pages: &tile.span.pages[..tile.end.div_ceil(page_tokens)],
            positions: tile.end,
            // Keys and values are rounded row by row, as they lie: nobody asks for them before.
            next_head: tile.kv_head,
            ahead: 0,
        };
        let first = part * attention.part_pages();
        let end = pages.pages.len().min(first + attention.part_pages());
        for block in (first..end).step_by(block_pages) {
            let range = block..end.min(block + block_pages);
            scratch.round_keys(s, &pages, range.clone());
            scratch.round_values(s, &pages, range.clone());
            for query in (0..tile.range.len()).step_by(SIDE) {
                let square = query..tile.range.len().min(query + SIDE);
                // What none of them sees is not computed.
                let sees = tile.seen(tile.range.start + square.end - 1);
                let seen = block..range.end.min(sees.div_ceil(page_tokens));
                if !seen.is_empty() {
                    let places = seen.len() * attention.cache.token_stride();
                    scratch.score(&mut tiles, query, places);
                    scratch.weigh(s, &pages, tile, square.clone(), seen, out);
                    scratch.add(s, &mut tiles, square, places, out);
                }
            }
        }
    }
}

impl PromptScratch {
    fn resize(&mut self, cache: &KvCache, block_pages: usize) {
        let head_dim = cache.shape().head_dim.next_multiple_of(STEP_COLS);
        self.row = (block_pages * cache.token_stride()).next_multiple_of(SIDE);
        self.dim_steps = head_dim / STEP_COLS;
        self.place_steps = self.row / STEP_COLS;
        let zero = [Tile::ZERO; 2];
        self.queries.resize(QUERIES / SIDE * self.dim_steps, zero);
        self.keys.resize(self.row / SIDE * self.dim_steps, zero);
        // Queries are scaled there before.
        self.scores.resize(SIDE * self.row.max(head_dim), 0.0);
        self.weights.resize(self.place_steps, zero);
        self.values.resize(head_dim / SIDE * self.place_steps, zero);
    }

    /// Rounds the tile's queries, scaled; those beyond it are zero.
    #[inline(always)]
    fn round_queries<S: Simd>(&mut self, s: S, attention: &Attention<'_>, tile: &QueryTile<'_>) {
        let head_dim = attention.cache.shape().head_dim;
        let scaled = &mut self.scores[..head_dim.next_multiple_of(STEP_COLS)];
        let mut range = tile.range.clone();
        let squares = tile.range.len().div_ceil(SIDE);
        let queries = self.queries.chunks_exact_mut(self.dim_steps);
        for queries in queries.take(squares) {
            for q in 0..SIDE {
                scaled.fill(0.0);
                if let Some(i) = range.next() {
                    let from = tile.row(i, attention.heads.heads) * head_dim;
                    for (to, x) in scaled.iter_mut().zip(&attention.q[from..][..head_dim]) {
                        *to = x * attention.scale;
                    }
                }
                round_row(s, scaled, queries, q);
            }
        }
    }

    /// Rounds the keys of some pages: of each 32 places the steps over all dimensions. Places of no page keep what was there; nobody
    /// reads their scores.
    #[inline(always)]
    fn round_keys<S: Simd, E: Element>(
        &mut self,
        s: S,
        pages: &HeadPages<'_, E, 1>,
        range: Range<usize>,
    ) {
        let stride = pages.kept.cache.token_stride();
        for (i, page) in range.enumerate() {
            let (keys, _) = pages.page(page);
            let key = |d: usize| keys.get(d * stride..(d + 1) * stride);
            for slot in (0..stride).step_by(TILE_ROWS) {
                let place = i * stride + slot;
                let steps = &mut self.keys[place / SIDE * self.dim_steps..][..self.dim_steps];
                for (step, first) in steps.iter_mut().zip((0..).step_by(STEP_COLS)) {
                    let tile = &mut step[place % SIDE / TILE_ROWS];
                    for (k, to) in tile.0.iter_mut().enumerate() {
                        let d = first + k;
                        round_rows(s, [key(d), key(d + TILE_ROWS)], slot, to);
                    }
                }
            }
        }
    }

    /// Rounds the values of some pages: of each 32 dimensions the steps over all places. A place that is not used is zero, for it has
    /// a weight of 0 and may hold anything.
    #[inline(always)]
    fn round_values<S: Simd, E: Element>(
        &mut self,
        s: S,
        pages: &HeadPages<'_, E, 1>,
        range: Range<usize>,
    ) {
        let cache = pages.kept.cache;
        let (stride, head_stride) = (cache.token_stride(), cache.head_stride());
        let page_tokens = cache.shape().page_tokens;
        // Of 16 places, which lie in one page, the values of those that are used.
        let used = |place: usize| {
            let (page, slot) = (range.start + place / stride, place % stride);
            let end = pages.positions.saturating_sub(page * page_tokens);
            let end = if page < range.end {
                end.min(page_tokens)
            } else {
                0
            };
            let slots = slot.min(end)..end;
            match slots.is_empty() {
                true => &[],
                false => &pages.page(page).1[slots.start * head_stride..slots.end * head_stride],
            }
        };
        for place in (0..range.len() * stride).step_by(SIDE) {
            let groups = [used(place), used(place + TILE_ROWS)];
            for k in 0..TILE_ROWS {
                let rows = groups.map(|rows| rows.get(k * head_stride..(k + 1) * head_stride));
                for (half, dim) in (0..head_stride).step_by(TILE_ROWS).enumerate() {
                    let step = &mut self.values[half / 2 * self.place_steps + place / STEP_COLS];
                    round_rows(s, rows, dim, &mut step[half % 2].0[k]);
                }
            }
        }
    }

    /// Computes the scores of the square of queries from `query` on, for the first `places` of a block.
    #[inline(always)]
    fn score<T: Tiles>(&mut self, tiles: &mut T, query: usize, places: usize) {
        let queries = &self.queries[query / SIDE * self.dim_steps..][..self.dim_steps];
        let mut square = ZERO;
        let keys = self.keys.chunks_exact(self.dim_steps);
        for (place, keys) in (0..places).step_by(SIDE).zip(keys) {
            tiles.multiply(queries, keys, Start::Zero, &mut square);
            for (q, scores) in self
                .scores
                .chunks_exact_mut(self.row)
                .enumerate()
                .take(SIDE)
            {
                let halves = scores[place..].chunks_exact_mut(TILE_ROWS);
                for (scores, sums) in halves.zip(&square[q / TILE_ROWS]) {
                    scores.copy_from_slice(&sums.0[q % TILE_ROWS]);
                }
            }
        }
    }

    /// Makes weights of the scores of some of a tile's queries for the pages `seen`, and rounds them.
    #[inline(always)]
    fn weigh<S: Simd, E: Element>(
        &mut self,
        s: S,
        pages: &HeadPages<'_, E, 1>,
        tile: &QueryTile<'_>,
        queries: Range<usize>,
        seen: Range<usize>,
        out: &mut Partial<'_>,
    ) {
        let places = seen.len() * pages.kept.cache.token_stride();
        for q in 0..SIDE {
            let row = &mut self.scores[q * self.row..][..places.next_multiple_of(SIDE)];
            let query = queries.start + q;
            if query < queries.end {
                let sees = tile.seen(tile.range.start + query);
                weigh(s, pages, seen.clone(), sees, &mut row[..places], out, query);
                row[places..].fill(0.0);
            } else {
                row.fill(0.0);
            }
            round_row(s, row, &mut self.weights, q);
        }
    }

    /// Adds the weighted values of the first `places` of a block to the sums of some queries.
    #[inline(always)]
    fn add<S: Simd, T: Tiles>(
        &self,
        s: S,
        tiles: &mut T,
        queries: Range<usize>,
        places: usize,
        out: &mut Partial<'_>,
    ) {
        let weights = &self.weights[..places.div_ceil(STEP_COLS)];
        let mut square = ZERO;
        for (i, values) in self.values.chunks_exact(self.place_steps).enumerate() {
            tiles.multiply(weights, &values[..weights.len()], Start::Zero, &mut square);
            for (q, query) in queries.clone().enumerate() {
                let halves = out.sums_mut(query)[i * SIDE..].chunks_exact_mut(TILE_ROWS);
                for (sums, new) in halves.zip(&square[q / TILE_ROWS]) {
                    let new = new.0[q % TILE_ROWS].chunks_exact(S::LANES);
                    for (sum, new) in sums.chunks_exact_mut(S::LANES).zip(new) {
                        s.store(s.add(s.load(sum), s.load(new)), sum);
                    }
                }
            }
        }
    }
}

/// Rounds a query's row, whole steps of it, to row `q` of a square.
#[inline(always)]
fn round_row<S: Simd>(s: S, row: &[f32], to: &mut [[Tile; 2]], q: usize) {
    for (row, step) in row.chunks_exact(STEP_COLS).zip(to) {
        let to = &mut step[q / TILE_ROWS].0[q % TILE_ROWS];
        for lane in (0..TILE_ROWS).step_by(S::LANES) {
            let floats = [s.load(&row[lane..]), s.load(&row[TILE_ROWS + lane..])];
            round(s, floats, &mut to[2 * lane..]);
        }
    }
}

/// Rounds 16 numbers of two rows, from column `from` on; zeros where there is no row.
#[inline(always)]
fn round_rows<S: Simd, E: Element>(
    s: S,
    rows: [Option<&[E]>; 2],
    from: usize,
    to: &mut [u16; STEP_COLS],
) {
    for lane in (0..TILE_ROWS).step_by(S::LANES) {
        let mut floats = [s.splat(0.0); 2];
        for (floats, row) in floats.iter_mut().zip(rows) {
            if let Some(row) = row {
                *floats = E::load(s, &row[from + lane..]);
            }
        }
        round(s, floats, &mut to[2 * lane..]);
    }
}

/// Rounds columns that are 16 apart. What is not finite becomes the usual NaN first: rounding carries into the sign of those whose
/// bits are all ones.
#[inline(always)]
fn round<S: Simd>(s: S, mut floats: [S::F32; 2], to: &mut [u16]) {
    for x in &mut floats {
        let least = s.min(*x, s.splat(f32::INFINITY));
        *x = s.mul_add(least, s.splat(0.0), least);
    }
    s.store_halves(pairs(s, floats[0], floats[1]), to);
}
