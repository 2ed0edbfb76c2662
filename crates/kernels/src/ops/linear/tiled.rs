//! Products of many tokens in tiles of bfloat16.
//!
//! Weights and activations are rounded to bfloat16, 8 bits of mantissa, and their products are summed in `f32`: for quantised weights closer to the
//! definition than the integers of [`super::panel`], where the largest of a block takes most of the bits. Every output
//! is summed in the order of its columns, whatever the batch and the threads.
//!
//! A block of columns of two panels is rounded once and multiplied with up to 512 tokens. It stays in the processor's first cache
//! meanwhile; the same columns of these tokens, and the sums of a group of panels, stay in the second.

use std::ops::Range;

use crate::arch::Simd;
use crate::arch::tiles::{SIDE, Square, Start, TILE_ROWS, Tile, TileUnit, Tiles, ZERO};

use super::Columns;

mod activations;
mod weights;

pub(crate) use activations::Activations;
pub(crate) use weights::{Floats, Panels, Weights};

/// Fewest tokens of a batch that are worth it: rounding the weights takes as long as multiplying them with some tens of tokens.
pub(crate) const TOKENS_MIN: usize = 32;

/// Rows that go through the activations together, and squares of tokens that they take at a time: a megabyte of sums.
pub(crate) const GROUP_ROWS: usize = 16 * SIDE;
const TOKEN_SQUARES: usize = 16;

/// Scratch memory of a thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Those of a block of columns of two panels.
    weights: Vec<[Tile; 2]>,
    /// Those of a group.
    sums: Vec<Square>,
}

/// Computes all rows of `out`, which start with a panel, for all tokens.
#[inline(always)]
pub(crate) fn multiply<S: Simd, W: Weights, U: TileUnit>(
    s: S,
    unit: U,
    weights: W,
    activations: &Activations,
    scratch: &mut Scratch,
    out: &Columns<'_>,
) {
    let mut tiles = unit.tiles();
    let token_squares = out.tokens.div_ceil(SIDE);
    for token in (0..token_squares).step_by(TOKEN_SQUARES) {
        for row in out.range.clone().step_by(GROUP_ROWS) {
            let group = Group {
                weights,
                rows: row..out.range.end.min(row + GROUP_ROWS),
                activations,
                tokens: token..token_squares.min(token + TOKEN_SQUARES),
            };
            let sums = group.sums(s, &mut tiles, scratch);
            group.write(sums, out);
        }
    }
}

/// What is multiplied at a time.
struct Group<'a, W> {
    weights: W,
    rows: Range<usize>,
    activations: &'a Activations,
    /// Squares of them.
    tokens: Range<usize>,
}

impl<W: Weights> Group<'_, W> {
    /// Returns the sums: for each square of rows, a square for each of tokens.
    #[inline(always)]
    fn sums<'a, S: Simd, T: Tiles>(
        &self,
        s: S,
        tiles: &mut T,
        scratch: &'a mut Scratch,
    ) -> &'a [Square] {
        let (tokens, activations) = (self.tokens.len(), self.activations);
        let Scratch { weights, sums } = scratch;
        weights.resize(activations.block_steps(), [Tile::ZERO; 2]);
        let squares = self.rows.len().div_ceil(SIDE) * tokens;
        if sums.len() < squares {
            sums.resize(squares, ZERO);
        }
        let sums = &mut sums[..squares];
        for block in 0..activations.blocks() {
            let start = if block == 0 { Start::Zero } else { Start::Sums };
            let steps = activations.steps(block);
            let weights = &mut weights[..steps.len()];
            for (i, sums) in sums.chunks_exact_mut(tokens).enumerate() {
                // A square of which one panel is not there keeps old weights in its place; nobody reads those sums.
                for (half, panel) in self.panels(i).enumerate() {
                    self.weights
                        .round(s, tiles, panel, steps.clone(), half, weights);
                }
                // The next ones begin where no processor expects them.
                for panel in self.panels(i + 1) {
                    self.weights.prefetch(s, panel, steps.clone());
                }
                for (token, sums) in self.tokens.clone().zip(sums) {
                    let activations = activations.square(block, token);
                    tiles.multiply(activations, weights, start, sums);
                }
            }
        }
        sums
    }

    /// Returns the first rows of the panels of square `i`, two or fewer.
    #[inline(always)]
    fn panels(&self, i: usize) -> impl Iterator<Item = usize> + use<W> {
        let first = self.rows.start + i * SIDE;
        (first..self.rows.end.min(first + SIDE)).step_by(TILE_ROWS)
    }

    /// Writes the sums, token by token.
    #[inline(always)]
    fn write(&self, sums: &[Square], out: &Columns<'_>) {
        let rows = &self.rows;
        // What has a length known here is copied without a call.
        let (whole, rest) = (rows.len() / TILE_ROWS, rows.len() % TILE_ROWS);
        let tokens = self.tokens.start * SIDE..out.tokens.min(self.tokens.end * SIDE);
        for (i, token) in tokens.enumerate() {
            let squares = sums.iter().skip(i / SIDE).step_by(self.tokens.len());
            let tiles = squares.flat_map(|square| &square[i % SIDE / TILE_ROWS]);
            let mut sums = tiles.map(|sums| &sums.0[i % TILE_ROWS]);
            for (tile, sums) in sums.by_ref().take(whole).enumerate() {
                out.write(token, rows.start + tile * TILE_ROWS, sums);
            }
            if let Some(sums) = sums.next().filter(|_| rest > 0) {
                out.write(token, rows.end - rest, &sums[..rest]);
            }
        }
    }
}
