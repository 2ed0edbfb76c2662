//! Weights of four bits in floating point (E2M1): 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives.
//!
//! Twice as large they are integers.

use half::bf16;

use super::{CHUNK, Format, Lanes, Scales, Shape, codes, half_float};
use crate::Dtype;
use crate::arch::Simd;

/// Twice the values, with the zero point added.
const TABLE: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// A scale in bf16 (it is a power of two), or with `HALVES` one in f16 for each half, then the [`codes`] of a chunk.
#[derive(Clone, Copy)]
pub(crate) struct Fp4<const HALVES: bool> {
    /// What scales count in: half of what they would mean to the values themselves.
    pub(crate) unit: f32,
}

impl<const HALVES: bool> Fp4<HALVES> {
    const CODES: usize = if HALVES { 4 } else { 2 };

    fn scale_of(self, block: &[u8], half: usize) -> f32 {
        let scale = if HALVES {
            half_float(block, 2 * half)
        } else {
            bf16::from_le_bytes([block[0], block[1]]).to_f32()
        };
        scale * self.unit
    }
}

impl<const HALVES: bool> Format for Fp4<HALVES> {
    const HALVES: bool = HALVES;
    const ZERO: u8 = 12;
    type Header<S: Simd> = ();

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: Self::CODES + codes::chunk_bytes(4),
            chunks: 1,
            half_floats: if HALVES { &[0, 2] } else { &[0] },
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        let codes = codes::unpack::<4>(&block[Self::CODES..]);
        let codes = codes.map(u32::to_le_bytes);
        for (i, (&code, out)) in codes.as_flattened().iter().zip(out).enumerate() {
            let doubled = i16::from(TABLE[usize::from(code)]) - 12;
            *out = self.scale_of(block, i / (CHUNK / 2)) * f32::from(doubled);
        }
    }

    #[inline(always)]
    fn header<S: Simd>(self, _: S, _: Lanes<'_>) {}

    #[inline(always)]
    fn scales<S: Simd>(self, s: S, (): &(), block: Lanes<'_>, _: usize) -> Scales<S> {
        let unit = s.splat(self.unit);
        let dtype = if HALVES { Dtype::F16 } else { Dtype::Bf16 };
        let first = s.mul(block.float(s, dtype, 0), unit);
        let second = if HALVES {
            s.mul(block.float(s, dtype, 2), unit)
        } else {
            first
        };
        Scales {
            scales: [first, second],
            min: first,
        }
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, _: usize, group: usize) -> S::I32 {
        let codes = codes::read::<S, 4>(s, block, Self::CODES, group);
        s.look_up(&TABLE, codes)
    }
}
