use crate::arch::{Operation, Simd};
use crate::formats::CHUNK;
use crate::pool::Pool;

use super::panel::TILE;

/// Activations as 8-bit integers, one `f32` scale for each block of 32: `x ≈ scale × q`.
///
/// `scale = max |x| / 127`, so `|x - scale × q| <= scale / 2`. Blocks so small that the scale is
/// subnormal count as zero. A block with an infinity or a NaN gets a NaN scale, which makes every
/// output of its token NaN.
///
/// Tokens come in tiles; the last is as wide as the next power of two, and its missing tokens are zero.
#[derive(Default)]
pub(crate) struct Activations {
    blocks: usize,
    quants: Vec<[i8; CHUNK]>,
    sides: Vec<Side>,
}

/// What is kept of a block next to its integers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Side {
    /// Units of the integers.
    pub(crate) scale: f32,
    /// `scale ×` the sum of the integers.
    pub(crate) sum: f32,
    /// Sums of the integers of each half.
    pub(crate) sums: [i32; 2],
}

impl Activations {
    /// Quantises `x`, rows of `cols`. Memory is kept for the next call.
    pub(crate) fn quantize(
        &mut self,
        pool: &Pool,
        isa: crate::arch::Token,
        x: &[f32],
        cols: usize,
    ) {
        self.blocks = cols / CHUNK;
        let tokens = x.len() / cols;
        let rest = tokens % TILE;
        let widths = tokens - rest
            + if rest == 0 {
                0
            } else {
                rest.next_power_of_two()
            };
        self.quants.resize(widths * self.blocks, [0; CHUNK]);
        self.sides.resize(widths * self.blocks, Side::default());
        let sides = crate::pool::SharedSlice::new(&mut self.sides);
        let tile_blocks = TILE * self.blocks;
        pool.for_each_chunk(&mut self.quants, tile_blocks, |_, i, quants| {
            let start = i * tile_blocks;
            // SAFETY: the pool runs each tile once, and tiles do not overlap.
            let sides = unsafe { sides.slice(start..start + quants.len()) };
            let x = &x[i * TILE * cols..x.len().min((i + 1) * TILE * cols)];
            isa.run(QuantizeTile {
                x,
                cols,
                quants,
                sides,
            });
        });
    }

    pub(crate) fn tiles(&self) -> usize {
        self.quants.len().div_ceil(TILE * self.blocks)
    }

    pub(crate) fn tile(&self, i: usize) -> Tile<'_> {
        let first = i * TILE;
        let width = TILE.min(self.quants.len() / self.blocks - first);
        let range = first * self.blocks..(first + width) * self.blocks;
        Tile {
            quants: &self.quants[range.clone()],
            sides: &self.sides[range],
            first,
            width,
        }
    }
}

/// Consecutive tokens.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// `blocks × width`; for `k` in `0..8` each token's integers `4k..4k + 4`.
    pub(crate) quants: &'a [[i8; CHUNK]],
    /// What stands beside each of them.
    pub(crate) sides: &'a [Side],
    /// The first token.
    pub(crate) first: usize,
    /// How many tokens it has room for: a power of two.
    pub(crate) width: usize,
}

struct QuantizeTile<'a> {
    x: &'a [f32],
    cols: usize,
    quants: &'a mut [[i8; CHUNK]],
    sides: &'a mut [Side],
}

impl Operation for QuantizeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let tile = self.quants.len() / (self.cols / CHUNK);
        if self.x.len() / self.cols < tile {
            self.quants.fill([0; CHUNK]);
            self.sides.fill(Side::default());
        }
        for (token, row) in self.x.chunks_exact(self.cols).enumerate() {
            for (b, x) in row.as_chunks::<CHUNK>().0.iter().enumerate() {
                let (quants, side) = quantize_block(x);
                self.sides[b * tile + token] = side;
                let block = self.quants[b * tile..][..tile].as_flattened_mut();
                for (k, four) in quants.as_chunks::<4>().0.iter().enumerate() {
                    block[(k * tile + token) * 4..][..4].copy_from_slice(four);
                }
            }
        }
    }
}

/// 1.5 × 2^23: around it, floats are whole numbers.
const INTEGERS: f32 = 12_582_912.0;

#[inline(always)]
fn quantize_block(x: &[f32; CHUNK]) -> ([i8; CHUNK], Side) {
    // Magnitudes compare as integers, with infinity and NaN above all numbers.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    let scale = f32::from_bits(largest) / 127.0;
    let mut quants = [0; CHUNK];
    if !scale.is_finite() {
        let side = Side {
            scale: f32::NAN,
            sum: f32::NAN,
            sums: [0; 2],
        };
        return (quants, side);
    }
    if scale < f32::MIN_POSITIVE {
        return (quants, Side::default());
    }
    let inverse = 1.0 / scale;
    let mut rounded = [0_i32; CHUNK];
    for (q, x) in rounded.iter_mut().zip(x) {
        // Rounded to even by what is added: the sum's last bit is worth 1. Vectors do that, unlike a cast, which saturates.
        // Never -128, which AVX2 cannot take: three roundings move 127 by less than a half.
        *q = (x * inverse + INTEGERS).to_bits() as i32 - INTEGERS.to_bits() as i32;
    }
    for (out, q) in quants.iter_mut().zip(rounded) {
        *out = q as i8;
    }
    let sums = [0, 16].map(|first| rounded[first..first + 16].iter().sum::<i32>());
    let side = Side {
        scale,
        sum: scale * (sums[0] + sums[1]) as f32,
        sums,
    };
    (quants, side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_are_within_half_a_unit(x in prop::array::uniform32(-1e3_f32..1e3), exponent in -60..60_i32) {
            let x = x.map(|x| x * 2.0_f32.powi(exponent));
            let (quants, side) = quantize_block(&x);
            let sums = [0, 16].map(|first| quants[first..first + 16].iter().map(|&q| i32::from(q)).sum::<i32>());
            prop_assert_eq!(side.sums, sums);
            prop_assert_eq!(side.sum, side.scale * (sums[0] + sums[1]) as f32);
            for (x, q) in x.iter().zip(quants) {
                prop_assert!((x - side.scale * f32::from(q)).abs() <= side.scale * 0.5001);
                prop_assert_eq!(f32::from(q), (x * (1.0 / side.scale)).round_ties_even());
            }
        }
    }

    #[test]
    fn extremes() {
        let mut x = [0.0; CHUNK];
        assert_eq!(quantize_block(&x).1.scale, 0.0);
        x[3] = 1e-40;
        assert_eq!(quantize_block(&x).1.scale, 0.0);
        x = std::array::from_fn(|i| i as f32 - 8.5);
        x[3] = 127.0;
        assert_eq!(quantize_block(&x).0[..6], [-8, -8, -6, 127, -4, -4]);
        x[3] = 127.0 * f32::MIN_POSITIVE;
        assert_eq!(quantize_block(&[x[3]; CHUNK]).0, [127; CHUNK]);
        x[3] = -f32::MAX;
        assert_eq!(quantize_block(&x).0[3], -127);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[3] = bad;
            assert!(quantize_block(&x).1.sum.is_nan());
        }
    }
}
