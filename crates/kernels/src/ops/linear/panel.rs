//! Integer products: panels of quantised rows with tiles of tokens.
//!
//! A panel is read once for all tokens; within it, each tile of tokens goes through all blocks with its sums in registers. It
//! is read from its first byte to its last, which AMD's processors foresee well enough that asking for what comes makes few
//! tokens slower (Zen 4). On Intel's they gain from it (one token of 1B Q4_0 17.8 to 21.6 tokens/s on one thread of a Xeon),
//! and again from two panels side by side, which keep more under way (Q4_K 18.6 to 22.2). One instruction multiplies four
//! weights of each lane's row with four activations, and nothing is summed across lanes. Every output is summed in the order
//! of its columns whatever the tile, so that a token's outputs do not depend on which other tokens are computed with it, nor
//! on the instruction set.

use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::arch::Simd;
use crate::formats::{CHUNK, Format, Lanes, PANEL_ROWS, Scales, Shape};

use super::activations::{Activations, Side, Tile};
use super::{Columns, Rows};

/// Most tokens that are multiplied with a panel at a time.
pub(crate) const TILE: usize = 8;

/// From so many tokens on, weights are asked for on every processor: their arithmetic leaves too little under way otherwise.
/// What is ahead was compared on a Xeon only.
const ASKED_FOR_TOKENS_MIN: usize = 4;
const AHEAD_BYTES: usize = 2048;
const CACHE_LINE_BYTES: usize = 64;

/// Computes `rows`, which start with a panel, for all tokens. With `in_pairs`, few tokens read two panels side by side, and
/// ask for what comes.
#[inline(always)]
pub(crate) fn multiply<S: Simd, F: Format>(
    s: S,
    format: F,
    rows: &Rows<'_>,
    activations: &Activations,
    in_pairs: bool,
    out: &Columns<'_>,
) {
    let mut panels = rows.range.start / PANEL_ROWS..rows.range.end.div_ceil(PANEL_ROWS);
    let tile = activations.tile(0);
    // Where the registers hold the sums of two panels.
    let is_paired = matches!((S::LANES, tile.width), (PANEL_ROWS, 1 | 2 | 4) | (8, 1));
    if in_pairs && is_paired {
        let half = panels.len() / 2;
        for i in panels.start..panels.start + half {
            let pair = Panels::new(format, rows, [i, half + i], true);
            match (S::LANES, tile.width) {
                (PANEL_ROWS, 1) => pair.multiply::<S, 2, 1, 1>(s, tile, out),
                (PANEL_ROWS, 2) => pair.multiply::<S, 2, 2, 2>(s, tile, out),
                (PANEL_ROWS, _) => pair.multiply::<S, 2, 4, 4>(s, tile, out),
                _ => pair.multiply::<S, 4, 1, 1>(s, tile, out),
            }
        }
        panels.start += 2 * half;
    }
    for i in panels {
        for tile in (0..activations.tiles()).map(|i| activations.tile(i)) {
            let is_asked_for = tile.first == 0 && (in_pairs || tile.width >= ASKED_FOR_TOKENS_MIN);
            let panel = Panels::new(format, rows, [i], is_asked_for);
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
    }
}

/// Panels that are read side by side.
struct Panels<'a, F, const P: usize> {
    format: F,
    bytes: [&'a [u8]; P],
    rows: [Range<usize>; P],
    is_asked_for: bool,
}

impl<'a, F: Format, const P: usize> Panels<'a, F, P> {
    #[inline(always)]
    fn new(format: F, rows: &Rows<'a>, panels: [usize; P], is_asked_for: bool) -> Self {
        Self {
            format,
            bytes: panels.map(|i| rows.matrix.panel(i)),
            rows: panels.map(|i| i * PANEL_ROWS..rows.range.end.min((i + 1) * PANEL_ROWS)),
            is_asked_for,
        }
    }

    /// Computes a tile of `W` tokens, `T` tokens and `R` vectors of rows at a time.
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const T: usize, const W: usize>(
        &self,
        s: S,
        tile: Tile<'_>,
        out: &Columns<'_>,
    ) {
        for offset in (0..W).step_by(T) {
            for lane in (0..PANEL_ROWS).step_by(R / P * S::LANES) {
                let sums = self.sums::<S, R, T, W>(s, tile, offset, lane);
                for (t, sums) in sums.iter().enumerate() {
                    let token = tile.first + offset + t;
                    for (rows, sums) in self.rows.iter().zip(sums.chunks_exact(R / P)) {
                        if token >= out.tokens || lane >= rows.len() {
                            continue;
                        }
                        let mut values = [0.0; PANEL_ROWS];
                        for (v, &sum) in sums.iter().enumerate() {
                            s.store(sum, &mut values[v * S::LANES..]);
                        }
                        let count = (R / P * S::LANES).min(rows.len() - lane);
                        out.write(token, rows.start + lane, &values[..count]);
                    }
                }
            }
        }
    }

    /// Returns the products of `R` vectors of rows, as many of each panel from `lane` on, with `T` tokens of a tile of `W`, from
    /// `offset` on.
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
        let mut records = self
            .bytes
            .map(|panel| panel.chunks_exact(PANEL_ROWS * bytes));
        let blocks = tile
            .quants
            .chunks_exact(W * chunks)
            .zip(tile.sides.chunks_exact(W * chunks));
        for (quants, sides) in blocks {
            let mut lanes = [Lanes {
                record: &[],
                first: lane,
            }; R];
            for (records, lanes) in records.iter_mut().zip(lanes.chunks_exact_mut(R / P)) {
                let Some(record) = records.next() else {
                    return sums;
                };
                for (v, lanes) in lanes.iter_mut().enumerate() {
                    lanes.record = record;
                    lanes.first += v * S::LANES;
                }
            }
            let mut headers = [self.format.header(s, lanes[0]); R];
            for v in 1..R {
                headers[v] = self.format.header(s, lanes[v]);
            }
            let block = Block::<F, S, R, P, W> {
                format: self.format,
                lanes: &lanes,
                headers: &headers,
                quants: quants.as_chunks::<W>().0,
                sides: sides.as_chunks::<W>().0,
                offset,
                is_asked_for: self.is_asked_for && offset + lane == 0,
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

/// A block of `R` vectors of rows of `P` panels, and of a tile of `W` tokens.
struct Block<'a, F: Format, S: Simd, const R: usize, const P: usize, const W: usize> {
    format: F,
    lanes: &'a [Lanes<'a>; R],
    headers: &'a [F::Header<S>; R],
    quants: &'a [[[i8; CHUNK]; W]],
    sides: &'a [[Side; W]],
    /// The first token.
    offset: usize,
    /// Whether to ask for what comes next of a single panel.
    is_asked_for: bool,
}

impl<F: Format, S: Simd, const R: usize, const P: usize, const W: usize> Block<'_, F, S, R, P, W> {
    /// Adds the products of chunk `i`.
    #[inline(always)]
    fn add<const T: usize>(&self, s: S, i: usize, sums: &mut [[S::F32; R]; T]) {
        // Pairs, which are read in one go, always are: the compiler leaves out a branch for each chunk.
        if P > 1 || self.is_asked_for {
            self.ask(s, i);
        }
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

    /// Asks for as much as chunk `i` takes. A whole block at once would hold up what is needed now.
    #[inline(always)]
    fn ask(&self, s: S, i: usize) {
        let Shape { bytes, chunks, .. } = self.format.shape();
        let share = PANEL_ROWS / chunks * bytes;
        if S::LANES == PANEL_ROWS {
            // The compiler would ask for the whole block at its start. (With fewer registers it does not, and would load more.)
            compiler_fence(Ordering::SeqCst);
        }
        for lanes in self.lanes.iter().step_by(R / P) {
            let ahead = lanes.record.as_ptr().wrapping_add(AHEAD_BYTES + i * share);
            for line in (0..share).step_by(CACHE_LINE_BYTES) {
                s.prefetch(ahead.wrapping_add(line));
            }
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
