//! Products of many tokens in tiles of bfloat16.
//!
//! Weights and activations are rounded to bfloat16, 8 bits of mantissa, and their products are summed in `f32`: closer to the
//! definition than the integers of [`super::panel`], where the largest of a block takes most of the bits. Every output
//! is summed in the order of its columns, whatever the batch and the threads.
//!
//! A block of columns of two panels is rounded once and multiplied with up to 512 tokens. It stays in the processor's first cache
//! meanwhile; the same columns of these tokens, and the sums of a group of panels, stay in the second.

use std::ops::Range;

use crate::Matrix;
use crate::arch::Simd;
use crate::arch::tiles::{
    SIDE, STEP_COLS, Square, Start, TILE_ROWS, Tile, TileUnit, Tiles, ZERO, pairs,
};
use crate::formats::{CHUNK, Format, Lanes, PANEL_ROWS, Scales, Shape};

use super::{Columns, Rows};

mod activations;

pub(crate) use activations::Activations;

/// Fewest tokens of a batch that are worth it: rounding the weights takes as long as multiplying them with some tens of tokens.
pub(crate) const TOKENS_MIN: usize = 32;

/// Rows that go through the activations together, and squares of tokens that they take at a time: a megabyte of sums.
pub(crate) const GROUP_ROWS: usize = 16 * SIDE;
const TOKEN_SQUARES: usize = 16;
const CACHE_LINE_BYTES: usize = 64;

const _: () = assert!(STEP_COLS == CHUNK && TILE_ROWS == PANEL_ROWS);

/// Scratch memory of a thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Those of a block of columns of two panels.
    weights: Vec<[Tile; 2]>,
    /// Those of a group.
    sums: Vec<Square>,
}

/// Computes `rows`, which start with a panel, for all tokens.
#[inline(always)]
pub(crate) fn multiply<S: Simd, F: Format, U: TileUnit>(
    s: S,
    unit: U,
    format: F,
    rows: &Rows<'_>,
    activations: &Activations,
    scratch: &mut Scratch,
    out: &Columns<'_>,
) {
    let mut tiles = unit.tiles();
    let token_squares = out.tokens.div_ceil(SIDE);
    for token in (0..token_squares).step_by(TOKEN_SQUARES) {
        for row in rows.range.clone().step_by(GROUP_ROWS) {
            let group = Group {
                format,
                matrix: rows.matrix,
                rows: row..rows.range.end.min(row + GROUP_ROWS),
                activations,
                tokens: token..token_squares.min(token + TOKEN_SQUARES),
            };
            let sums = group.sums(s, &mut tiles, scratch);
            group.write(sums, out);
        }
    }
}

/// What is multiplied at a time.
struct Group<'a, F> {
    format: F,
    matrix: &'a Matrix,
    rows: Range<usize>,
    activations: &'a Activations,
    /// Squares of them.
    tokens: Range<usize>,
}

impl<F: Format> Group<'_, F> {
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
            let weights = &mut weights[..activations.steps(block)];
            for (i, sums) in sums.chunks_exact_mut(tokens).enumerate() {
                // A square of which one panel is not there keeps old weights in its place; nobody reads those sums.
                for (half, panel) in self.panels(i).enumerate() {
                    round(s, self.format, self.block(panel, block), half, weights);
                }
                // The next ones begin where no processor expects them.
                for panel in self.panels(i + 1) {
                    for line in self.block(panel, block).chunks(CACHE_LINE_BYTES) {
                        s.prefetch(line.as_ptr());
                    }
                }
                for (token, sums) in self.tokens.clone().zip(sums) {
                    let activations = activations.square(block, token);
                    tiles.multiply(activations, weights, start, sums);
                }
            }
        }
        sums
    }

    /// Returns the panels of square `i` of rows, two or fewer.
    #[inline(always)]
    fn panels(&self, i: usize) -> impl Iterator<Item = &[u8]> {
        let first = self.rows.start + i * SIDE;
        let rows = first..self.rows.end.min(first + SIDE);
        rows.step_by(PANEL_ROWS)
            .map(|row| self.matrix.panel(row / PANEL_ROWS))
    }

    /// Returns the weights of a block of columns of a panel.
    #[inline(always)]
    fn block<'a>(&self, panel: &'a [u8], block: usize) -> &'a [u8] {
        let Shape { bytes, chunks, .. } = self.format.shape();
        let steps = self.activations.block_steps();
        debug_assert!(steps.is_multiple_of(chunks), "blocks are whole");
        let most = steps / chunks * PANEL_ROWS * bytes;
        &panel[block * most..panel.len().min((block + 1) * most)]
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

/// Rounds weights of a panel to tile `half` of each step.
#[inline(always)]
fn round<S: Simd, F: Format>(s: S, format: F, records: &[u8], half: usize, to: &mut [[Tile; 2]]) {
    let Shape { bytes, chunks, .. } = format.shape();
    let records = records.chunks_exact(PANEL_ROWS * bytes);
    for (record, to) in records.zip(to.chunks_exact_mut(chunks)) {
        for first in (0..PANEL_ROWS).step_by(S::LANES) {
            let lanes = Lanes { record, first };
            let header = format.header(s, lanes);
            for (i, to) in to.iter_mut().enumerate() {
                let scales = format.scales(s, &header, lanes, i);
                let chunk = format.chunk(lanes, i);
                let lines = to[half].0.as_chunks_mut::<2>().0;
                for (group, lines) in lines.iter_mut().enumerate() {
                    let (scale, min) = line::<S, F>(s, &scales, group / 4);
                    let quants = format.quants(s, chunk, i, group);
                    let mut weights = [min; 4];
                    for (byte, weight) in weights.iter_mut().enumerate() {
                        *weight = s.mul_add(value::<S, F>(s, quants, 8 * byte as u32), scale, min);
                    }
                    let [a, b, c, d] = weights;
                    s.store_halves(pairs(s, a, b), &mut lines[0][2 * first..]);
                    s.store_halves(pairs(s, c, d), &mut lines[1][2 * first..]);
                }
            }
        }
    }
}

/// Returns the byte of each lane from this bit on, as a float; without minimums with [`ABOVE`] added, which a mantissa does sooner
/// than a conversion, and which [`line`] takes off.
#[inline(always)]
fn value<S: Simd, F: Format>(s: S, quants: S::I32, bit: u32) -> S::F32 {
    if F::MINS {
        return s.to_f32(s.and(s.shift_right(quants, bit), 0xff));
    }
    let bits = match bit.checked_sub(ABOVE_BIT) {
        Some(down) => s.shift_right(quants, down),
        None => s.shift_left(quants, ABOVE_BIT - bit),
    };
    let above = s.bits(s.splat(ABOVE));
    s.with_bits(s.or(s.and(bits, 0xff << ABOVE_BIT), above))
}

/// Returns what makes weights of [`value`]s in one half of a chunk: `value × first + second`.
///
/// Without minimums the second is exact where a scale has 16 bits, and else off by less than 2^-15 of the smallest weight. With them it
/// could not be: a minimum may be far below the scale. A NaN becomes infinite, as rounding may lose its bits; products with it are
/// not finite either way, nor are those with a scale from 2^119 on.
#[inline(always)]
fn line<S: Simd, F: Format>(s: S, scales: &Scales<S>, half: usize) -> (S::F32, S::F32) {
    const { assert!(!F::MINS || F::ZERO == 0) };
    let most = s.splat(f32::INFINITY);
    let scale = s.min(scales.scales[if F::HALVES { half } else { 0 }], most);
    let below = if F::MINS {
        s.min(scales.min, most)
    } else {
        s.mul(s.splat(-ABOVE - f32::from(F::ZERO)), scale)
    };
    (scale, below)
}

/// A float in whose mantissa a byte counts as what it is, from this bit on.
const ABOVE: f32 = 256.0;
const ABOVE_BIT: u32 = f32::MANTISSA_DIGITS - 1 - 8;
