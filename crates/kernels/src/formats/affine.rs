//! MLX's affine formats: codes, and a scale and a bias for each group of weights.

use super::{CHUNK, Format, Lanes, Scales, Shape, codes, widen};
use crate::Dtype;
use crate::arch::Simd;

/// Scale and bias in a float format, then the [`codes`] of the group's chunks.
#[derive(Clone, Copy)]
pub(crate) struct Affine<const BITS: usize> {
    pub(crate) chunks: usize,
    pub(crate) floats: Dtype,
}

impl<const BITS: usize> Affine<BITS> {
    /// Returns where chunk `i` is.
    #[inline(always)]
    fn codes(self, i: usize) -> usize {
        2 * self.floats.block_bytes() + i * codes::chunk_bytes(BITS)
    }
}

impl<const BITS: usize> Format for Affine<BITS> {
    const WIDE: bool = BITS == 8;
    const MINS: bool = true;
    type Header<S: Simd> = Scales<S>;

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: self.codes(self.chunks),
            chunks: self.chunks,
            half_floats: if self.floats == Dtype::F32 {
                &[]
            } else {
                &[0, 2]
            },
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        let mut floats = [0.0; 2];
        widen(self.floats, block, &mut floats);
        let [scale, bias] = floats;
        for (i, out) in out.chunks_exact_mut(CHUNK).enumerate() {
            let codes = codes::unpack::<BITS>(&block[self.codes(i)..]);
            for (q, out) in codes.map(u32::to_le_bytes).as_flattened().iter().zip(out) {
                *out = scale * f32::from(*q) + bias;
            }
        }
    }

    #[inline(always)]
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> Scales<S> {
        let bias = self.floats.block_bytes();
        Scales {
            scales: [block.float(s, self.floats, 0); 2],
            min: block.float(s, self.floats, bias),
        }
    }

    #[inline(always)]
    fn scales<S: Simd>(self, _: S, header: &Scales<S>, _: Lanes<'_>, _: usize) -> Scales<S> {
        *header
    }

    #[inline(always)]
    fn chunk<'a>(self, block: Lanes<'a>, i: usize) -> Lanes<'a> {
        block.part(self.codes(i), codes::chunk_bytes(BITS))
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, chunk: Lanes<'_>, _: usize, group: usize) -> S::I32 {
        codes::read::<S, BITS>(s, chunk, 0, group)
    }
}
