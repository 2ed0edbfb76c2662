use std::marker::PhantomData;
use std::ops::Range;

use crate::Matrix;
use crate::arch::Simd;
use crate::arch::tiles::{STEP_COLS, TILE_ROWS, Tile, Tiles, pairs};
use crate::formats::{CHUNK, Format, Lanes, PANEL_ROWS, Scales, Shape};

use super::super::float::Float;
use super::activations::nearest;

const CACHE_LINE_BYTES: usize = 64;

const _: () = assert!(STEP_COLS == CHUNK && TILE_ROWS == PANEL_ROWS);

/// A matrix, of which tiles are made.
pub(crate) trait Weights: Copy {
    /// Rounds the columns of `steps`, of the panel of rows from `row` on, to tile `half` of each step. Rows that there are not may be
    /// anything.
    fn round<S: Simd, T: Tiles>(
        self,
        s: S,
        tiles: &T,
        row: usize,
        steps: Range<usize>,
        half: usize,
        to: &mut [[Tile; 2]],
    );

    /// Asks for what [`round`](Self::round) will read.
    fn prefetch<S: Simd>(self, s: S, row: usize, steps: Range<usize>);
}

/// Quantised weights, in panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a, F> {
    pub(crate) format: F,
    pub(crate) matrix: &'a Matrix,
}

impl<F: Format> Panels<'_, F> {
    /// Returns the records of the panel of `row`.
    #[inline(always)]
    fn records(&self, row: usize, steps: Range<usize>) -> &[u8] {
        let Shape { bytes, chunks, .. } = self.format.shape();
        debug_assert!(steps.start.is_multiple_of(chunks) && steps.end.is_multiple_of(chunks));
        let panel = self.matrix.panel(row / PANEL_ROWS);
        &panel[steps.start / chunks * PANEL_ROWS * bytes..steps.end / chunks * PANEL_ROWS * bytes]
    }
}

impl<F: Format> Weights for Panels<'_, F> {
    #[inline(always)]
    fn round<S: Simd, T: Tiles>(
        self,
        s: S,
        _: &T,
        row: usize,
        steps: Range<usize>,
        half: usize,
        to: &mut [[Tile; 2]],
    ) {
        let Self { format, .. } = self;
        let Shape { bytes, chunks, .. } = format.shape();
        let records = self.records(row, steps);
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
                            *weight =
                                s.mul_add(value::<S, F>(s, quants, 8 * byte as u32), scale, min);
                        }
                        let [a, b, c, d] = weights;
                        s.store_halves(pairs(s, a, b), &mut lines[0][2 * first..]);
                        s.store_halves(pairs(s, c, d), &mut lines[1][2 * first..]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, row: usize, steps: Range<usize>) {
        for line in self.records(row, steps).chunks(CACHE_LINE_BYTES) {
            s.prefetch(line.as_ptr());
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

/// Weights of 16-bit floats, in rows.
#[derive(Clone, Copy)]
pub(crate) struct Floats<'a, F> {
    matrix: &'a Matrix,
    format: PhantomData<F>,
}

impl<'a, F: Float> Floats<'a, F> {
    pub(crate) fn new(matrix: &'a Matrix) -> Self {
        let format = PhantomData;
        Self { matrix, format }
    }

    /// Returns the columns of `steps` of each row of a panel.
    #[inline(always)]
    fn rows(self, row: usize, steps: Range<usize>) -> impl Iterator<Item = &'a [u8]> {
        let columns = steps.start * STEP_COLS * F::BYTES..steps.end * STEP_COLS * F::BYTES;
        let rows = row..self.matrix.rows().min(row + PANEL_ROWS);
        rows.map(move |row| &self.matrix.floats(row)[columns.clone()])
    }
}

impl<F: Float> Weights for Floats<'_, F> {
    #[inline(always)]
    fn round<S: Simd, T: Tiles>(
        self,
        s: S,
        tiles: &T,
        row: usize,
        steps: Range<usize>,
        half: usize,
        to: &mut [[Tile; 2]],
    ) {
        for (step, to) in steps.zip(to) {
            let mut halves = Tile::ZERO;
            for (to, weights) in halves.0.iter_mut().zip(self.rows(row, step..step + 1)) {
                let mut floats = [0.0; STEP_COLS];
                for first in (0..STEP_COLS).step_by(S::LANES) {
                    let loaded = F::load(s, &weights[first * F::BYTES..]);
                    s.store(loaded, &mut floats[first..]);
                }
                for (to, &float) in to.iter_mut().zip(&floats) {
                    *to = nearest(float);
                }
            }
            to[half] = tiles.turned(&halves);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, row: usize, steps: Range<usize>) {
        for row in self.rows(row, steps) {
            for line in row.chunks(CACHE_LINE_BYTES) {
                s.prefetch(line.as_ptr());
            }
        }
    }
}
