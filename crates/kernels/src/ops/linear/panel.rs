//! Integer products: panels of quantised rows with tiles of tokens.
//!
//! A panel is read once for all tokens; within it, each tile of tokens goes through all blocks with its sums in
//! registers. It is read from its first byte to its last, which some processors foresee well enough that asking for what
//! comes makes few tokens slower. One instruction multiplies four weights of each lane's row with four activations, and nothing is summed
//! across lanes. Every output is summed in the order of its columns whatever the tile, so that a token's outputs do not
//! depend on which other tokens are computed with it, nor on the instruction set.

use std::ops::Range;

use crate::arch::Simd;
use crate::formats::{CHUNK, Format, Lanes, PANEL_ROWS, Scales, Shape};
use crate::machine;

use super::activations::{Activations, Side, Tile};
use super::{Columns, Rows};

/// Most tokens that are multiplied with a panel at a time.
pub(crate) const TILE: usize = 8;

/// From so many tokens on, weights are asked for: their arithmetic leaves too little under way otherwise. Intel's processors gain
/// from it for fewer too (one token 18 to 22 tokens/s on a Xeon), where AMD's lose (Zen 4).
const ASKED_FOR_TOKENS_MIN: usize = 4;
const AHEAD_BYTES: usize = 4096;
const CACHE_LINE_BYTES: usize = 64;

/// Computes `rows`, which start with a panel, for all tokens.
#[inline(always)]
pub(crate) fn multiply<S: Simd, F: Format>(
    s: S,
    format: F,
    rows: &Rows<'_>,
    activations: &Activations,
    out: &Columns<'_>,
) {
    let asked_for_tokens_min = if machine::is_intel() {
        1
    } else {
        ASKED_FOR_TOKENS_MIN
    };
    let mut first = rows.range.start;
    while first < rows.range.end {
        let panel = Panel {
            format,
            bytes: rows.matrix.panel(first / PANEL_ROWS),
            first,
            rows: PANEL_ROWS.min(rows.range.end - first),
            asked_for_tokens_min,
        };
        for i in 0..activations.tiles() {
            let tile = activations.tile(i);
            // As many vectors of rows go with as many tokens as the registers hold sums of: 32 of AVX-512, of which one
            // holds a panel; 16 of AVX2, two a panel; 32 of NEON, four a panel.
            match S::LANES {
                PANEL_ROWS => match tile.width {
                    1 => panel.multiply::<S, 1, 1, 1>(s, tile, out),
                    2 => panel.multiply::<S, 1, 2, 2>(s, tile, out),
                    4 => panel.multiply::<S, 1, 4, 4>(s, tile, out),
                    _ => panel.multiply::<S, 1, 8, TILE>(s, tile, out),
                },
                8 => match tile.width {
                    1 => panel.multiply::<S, 2, 1, 1>(s, tile, out),
                    2 => panel.multiply::<S, 2, 2, 2>(s, tile, out),
                    4 => panel.multiply::<S, 1, 4, 4>(s, tile, out),
                    _ => panel.multiply::<S, 1, 4, TILE>(s, tile, out),
                },
                _ => match tile.width {
                    1 => panel.multiply::<S, 4, 1, 1>(s, tile, out),
                    2 => panel.multiply::<S, 4, 2, 2>(s, tile, out),
                    4 => panel.multiply::<S, 4, 4, 4>(s, tile, out),
                    _ => panel.multiply::<S, 4, 4, TILE>(s, tile, out),
                },
            }
        }
        first += PANEL_ROWS;
    }
}

struct Panel<'a, F> {
    format: F,
    bytes: &'a [u8],
    /// Its first row.
    first: usize,
    rows: usize,
    asked_for_tokens_min: usize,
}

impl<F: Format> Panel<'_, F> {
    /// Computes a tile of `W` tokens, `T` tokens and `R` vectors of rows at a time.
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const T: usize, const W: usize>(
        &self,
        s: S,
        tile: Tile<'_>,
        out: &Columns<'_>,
    ) {
        for offset in (0..W).step_by(T) {
            for lane in (0..PANEL_ROWS).step_by(R * S::LANES) {
                let sums = self.sums::<S, R, T, W>(s, tile, offset, lane);
                for (t, sums) in sums.iter().enumerate() {
                    let token = tile.first + offset + t;
                    if token >= out.tokens || lane >= self.rows {
                        continue;
                    }
                    let mut rows = [0.0; PANEL_ROWS];
                    for (v, &sum) in sums.iter().enumerate() {
                        s.store(sum, &mut rows[v * S::LANES..]);
                    }
                    let count = (R * S::LANES).min(self.rows - lane);
                    out.write(token, self.first + lane, &rows[..count]);
                }
            }
        }
    }

    /// Returns the products of `R` vectors of rows from `lane` on with `T` tokens of a tile of `W`, from `offset` on.
    #[inline(always)]
    fn sums<S: Simd, const R: usize, const T: usize, const W: usize>(
        &self,
        s: S,
        tile: Tile<'_>,
        offset: usize,
        lane: usize,
    ) -> [[S::F32; R]; T] {
        let mut sums = [[s.splat(0.0); R]; T];
        let Shape { bytes, chunks, .. } = self.format.shape();
        let records = self.bytes.chunks_exact(PANEL_ROWS * bytes);
        let blocks = tile
            .quants
            .chunks_exact(W * chunks)
            .zip(tile.sides.chunks_exact(W * chunks));
        let is_asked_for = W >= self.asked_for_tokens_min && tile.first + offset + lane == 0;
        for (record, (quants, sides)) in records.zip(blocks) {
            if is_asked_for {
                let ahead = record.as_ptr().wrapping_add(AHEAD_BYTES);
                for line in (0..record.len()).step_by(CACHE_LINE_BYTES) {
                    s.prefetch(ahead.wrapping_add(line));
                }
            }
            let mut lanes = [Lanes {
                record,
                first: lane,
            }; R];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                lanes.first += v * S::LANES;
            }
            let mut headers = [self.format.header(s, lanes[0]); R];
            for v in 1..R {
                headers[v] = self.format.header(s, lanes[v]);
            }
            let block = Block::<F, S, R, W> {
                format: self.format,
                lanes: &lanes,
                headers: &headers,
                quants: quants.as_chunks::<W>().0,
                sides: sides.as_chunks::<W>().0,
                offset,
            };
            if F::UNROLLED {
                debug_assert_eq!(chunks, 8, "what is unrolled has eight chunks");
                block.add(s, 0, &mut sums);
                block.add(s, 1, &mut sums);
                block.add(s, 2, &mut sums);
                block.add(s, 3, &mut sums);
                block.add(s, 4, &mut sums);
                block.add(s, 5, &mut sums);
                block.add(s, 6, &mut sums);
                block.add(s, 7, &mut sums);
            } else {
                for i in 0..chunks {
                    block.add(s, i, &mut sums);
                }
            }
        }
        sums
    }
}

/// A block of `R` vectors of rows, and of a tile of `W` tokens.
struct Block<'a, F: Format, S: Simd, const R: usize, const W: usize> {
    format: F,
    lanes: &'a [Lanes<'a>; R],
    headers: &'a [F::Header<S>; R],
    quants: &'a [[[i8; CHUNK]; W]],
    sides: &'a [[Side; W]],
    /// The first token.
    offset: usize,
}

impl<F: Format, S: Simd, const R: usize, const W: usize> Block<'_, F, S, R, W> {
    /// Adds the products of chunk `i`.
    #[inline(always)]
    fn add<const T: usize>(&self, s: S, i: usize, sums: &mut [[S::F32; R]; T]) {
        let mut parts = *self.lanes;
        let mut scales = [self.format.scales(s, &self.headers[0], self.lanes[0], i); R];
        for v in 0..R {
            parts[v] = self.format.chunk(self.lanes[v], i);
            scales[v] = self.format.scales(s, &self.headers[v], self.lanes[v], i);
        }
        let chunk = Chunk::<F, R, W> {
            format: self.format,
            lanes: &parts,
            i,
            fours: self.quants[i].as_flattened().as_chunks::<4>().0,
            sides: &self.sides[i],
            offset: self.offset,
        };
        if F::HALVES {
            chunk.add::<S, T>(s, 0..4, 0, &scales, sums);
            chunk.add::<S, T>(s, 4..8, 1, &scales, sums);
        } else {
            chunk.add::<S, T>(s, 0..8, 0, &scales, sums);
        }
    }
}

/// A chunk of `R` vectors of rows, and of a tile of `W` tokens.
struct Chunk<'a, F, const R: usize, const W: usize> {
    format: F,
    lanes: &'a [Lanes<'a>; R],
    /// Its place in the block.
    i: usize,
    /// Activations, group by group.
    fours: &'a [[i8; 4]],
    sides: &'a [Side],
    /// The first token.
    offset: usize,
}

impl<F: Format, const R: usize, const W: usize> Chunk<'_, F, R, W> {
    /// Adds the products of some groups, which have the scales of `half`, for `T` tokens.
    ///
    /// With weights `d (q - z) + m` and activations `s y` that is `d × s × (Σ q y - z × Σ y) + m × (s × Σ y)`; the first
    /// bracket is in integers, the second is kept in [`Side`].
    #[inline(always)]
    fn add<S: Simd, const T: usize>(
        &self,
        s: S,
        groups: Range<usize>,
        half: usize,
        scales: &[Scales<S>; R],
        sums: &mut [[S::F32; R]; T],
    ) {
        let sides = &self.sides[self.offset..][..T];
        let mut dots = [[s.splat_i32(0); R]; T];
        for t in 0..T {
            dots[t] = [s.splat_i32(zero_points::<F>(&sides[t], half)); R];
        }
        for group in groups {
            let mut w = [s.splat_i32(0); R];
            for (w, &lanes) in w.iter_mut().zip(self.lanes) {
                *w = self.format.quants(s, lanes, self.i, group);
            }
            for (t, dots) in dots.iter_mut().enumerate() {
                let y = s.splat_bytes(self.fours[group * W + self.offset + t]);
                for (dots, &w) in dots.iter_mut().zip(&w) {
                    *dots = s.dot_add(*dots, w, y, F::WIDE);
                }
            }
        }
        for v in 0..R {
            for t in 0..T {
                let dots = dots[t][v];
                sums[t][v] = add_scaled::<S, F>(s, dots, &scales[v], half, &sides[t], sums[t][v]);
            }
        }
    }
}

/// Returns what the zero points take from the product sums of a chunk, or of one half if these have their own scales.
#[inline(always)]
fn zero_points<F: Format>(side: &Side, half: usize) -> i32 {
    let sum = if F::HALVES {
        side.sums[half]
    } else {
        side.sums[0] + side.sums[1]
    };
    -i32::from(F::ZERO) * sum
}

/// Adds what the product sums `dots` stand for, less their [`zero_points`], to the outputs `sum`.
#[inline(always)]
fn add_scaled<S: Simd, F: Format>(
    s: S,
    dots: S::I32,
    scales: &Scales<S>,
    half: usize,
    side: &Side,
    sum: S::F32,
) -> S::F32 {
    let unit = s.mul(scales.scales[half], s.splat(side.scale));
    let sum = s.mul_add(s.to_f32(dots), unit, sum);
    if F::MINS {
        s.mul_add(scales.min, s.splat(side.sum), sum)
    } else {
        sum
    }
}
