//! Products with many tokens, where arithmetic is the cost: a panel of rows is decoded once into
//! scratch memory, interleaved so that lanes are rows, and used for all tokens.
//!
//! For each group of four columns the panel has the four bytes of every row side by side, so one
//! instruction multiplies four weights of `LANES` rows with four activations, and nothing is summed
//! across lanes. Weights and activations are loaded once for `TILE` tokens and `R` vectors of rows.

use crate::arch::{Chunk, Simd};
use crate::formats::{CHUNK, Format};

use super::activations::{Activations, Side, TILE};
use super::{Columns, Rows};

/// Scratch memory of one thread.
#[derive(Default)]
pub(crate) struct Panel {
    /// chunks × 8 groups × rows × 4 bytes.
    quants: Vec<u8>,
    /// chunks × (1 or 2 halves) × rows.
    scales: Vec<f32>,
    mins: Vec<f32>,
}

/// Computes `rows` for all tokens; `R` is `S::ROW_VECTORS`.
#[inline(always)]
pub(crate) fn multiply<S: Simd, F: Format, const R: usize>(
    s: S,
    rows: &Rows<'_>,
    activations: &Activations,
    panel: &mut Panel,
    out: &Columns<'_>,
) {
    let height = R * S::LANES;
    let mut first = rows.range.start;
    while first < rows.range.end {
        let count = height.min(rows.range.end - first);
        panel.fill::<S, F>(s, rows, first, count, height);
        for tile in 0..activations.tiles() {
            let sums = panel.multiply_tile::<S, F, R>(s, activations.tile(tile));
            let tokens = TILE.min(out.tokens() - tile * TILE);
            for (t, sums) in sums.iter().enumerate().take(tokens) {
                let mut lanes = [0.0; 64];
                for (v, &sum) in sums.iter().enumerate() {
                    s.store(sum, &mut lanes[v * S::LANES..]);
                }
                out.write(tile * TILE + t, first, &lanes[..count]);
            }
        }
        first += count;
    }
}

impl Panel {
    /// Decodes rows `first..first + count`; the rest of the panel's `height` is zero.
    #[inline(always)]
    fn fill<S: Simd, F: Format>(
        &mut self,
        s: S,
        rows: &Rows<'_>,
        first: usize,
        count: usize,
        height: usize,
    ) {
        let c = s.chunk();
        let halves = if F::HALVES { 2 } else { 1 };
        let chunks = rows.matrix.cols() / CHUNK;
        if count < height {
            self.quants.clear();
            self.scales.clear();
            self.mins.clear();
        }
        self.quants.resize(chunks * CHUNK * height, 0);
        self.scales.resize(chunks * halves * height, 0.0);
        self.mins.resize(chunks * halves * height, 0.0);
        for r in 0..count {
            let mut at = 0;
            for block in F::blocks(rows.matrix.row(first + r)) {
                let header = F::header(c, block);
                for i in 0..F::CHUNKS {
                    let chunk = F::unpack(c, block, header, i);
                    let bytes = c.store(chunk.quants);
                    let (scales, mins) = (c.first(chunk.scales), c.first(chunk.mins));
                    let groups = &mut self.quants[at * CHUNK * height..][..CHUNK * height];
                    let groups = groups.as_chunks_mut::<4>().0;
                    for (k, &four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                        groups[k * height + r] = four;
                    }
                    for half in 0..halves {
                        self.scales[(at * halves + half) * height + r] = scales[half];
                        self.mins[(at * halves + half) * height + r] = mins[half];
                    }
                    at += 1;
                }
            }
        }
    }

    /// Returns the products of all rows with one tile of activations.
    #[inline(always)]
    fn multiply_tile<S: Simd, F: Format, const R: usize>(
        &self,
        s: S,
        (quants, sides): (&[[i8; CHUNK]], &[Side]),
    ) -> [[S::F32; R]; TILE] {
        let height = R * S::LANES;
        let halves = if F::HALVES { 2 } else { 1 };
        let mut sums = [[s.splat(0.0); R]; TILE];
        let panel = self
            .quants
            .chunks_exact(CHUNK * height)
            .zip(self.scales.chunks_exact(halves * height))
            .zip(self.mins.chunks_exact(halves * height));
        let tile = quants
            .as_chunks::<TILE>()
            .0
            .iter()
            .zip(sides.as_chunks::<TILE>().0);
        for (((weights, scales), mins), (quants, sides)) in panel.zip(tile) {
            let fours = quants.as_flattened().as_chunks::<4>().0;
            for half in 0..halves {
                let mut dots = [[s.zero_i32(); R]; TILE];
                for k in half * 4..half * 4 + 8 / halves {
                    let mut w = [s.zero_i32(); R];
                    for v in 0..R {
                        w[v] = s.load_bytes(&weights[(k * R + v) * 4 * S::LANES..]);
                    }
                    for t in 0..TILE {
                        let y = s.splat_bytes(fours[k * TILE + t]);
                        for v in 0..R {
                            dots[t][v] = s.dot_add(dots[t][v], w[v], y, F::WIDE);
                        }
                    }
                }
                for v in 0..R {
                    let at = (half * R + v) * S::LANES;
                    let (scale, min) = (s.load(&scales[at..]), s.load(&mins[at..]));
                    for t in 0..TILE {
                        let side = &sides[t];
                        let sum = if F::HALVES {
                            side.half_sums[half]
                        } else {
                            side.sum
                        };
                        let unit = s.mul(scale, s.splat(side.scale));
                        sums[t][v] = s.mul_add(s.to_f32(dots[t][v]), unit, sums[t][v]);
                        sums[t][v] = s.mul_add(min, s.splat(sum), sums[t][v]);
                    }
                }
            }
        }
        sums
    }
}
