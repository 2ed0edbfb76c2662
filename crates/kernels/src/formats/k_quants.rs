//! Formats whose blocks are eight chunks with scales of their own scales.

use super::{CHUNK, Format, Lanes, Scales, Shape, half_float};
use crate::arch::Simd;

/// Scales and minima of the eight chunks of a Q4_K or Q5_K block: f16 scale, f16 min, and 12 bytes of 6-bit factors of
/// both. The first four of each are in the low bits of bytes 0..4 and 4..8; the low nibbles of the other four in bytes
/// 8..12, their upper two bits in the upper bits of bytes 0..8.
pub(crate) struct KHeader<S: Simd> {
    scales: [S::F32; 8],
    mins: [S::F32; 8],
}

impl<S: Simd> Clone for KHeader<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd> Copy for KHeader<S> {}

impl<S: Simd> KHeader<S> {
    #[inline(always)]
    fn read(s: S, block: Lanes<'_>) -> Self {
        let (low, mid, high) = (block.word(s, 4), block.word(s, 8), block.word(s, 12));
        let min = s.sub(s.splat(0.0), block.half_float(s, 2));
        Self {
            scales: Self::products(s, block.half_float(s, 0), low, high),
            mins: Self::products(s, min, mid, s.shift_right(high, 4)),
        }
    }

    /// Returns `unit` times the eight factors that `word` has the lower six bits of four and the upper two of four of, and
    /// `nibbles` the lower four of the others.
    #[inline(always)]
    fn products(s: S, unit: S::F32, word: S::I32, nibbles: S::I32) -> [S::F32; 8] {
        let upper = s.and(s.shift_right(word, 2), 0x3030_3030);
        let last = s.or(s.and(nibbles, 0x0f0f_0f0f), upper);
        let first = s.and(word, 0x3f3f_3f3f);
        let mut products = [unit; 8];
        for i in 0..4 {
            let shift = i as u32 * 8;
            let factor = s.and(s.shift_right(first, shift), 0xff);
            products[i] = s.mul(s.to_f32(factor), unit);
            let factor = s.and(s.shift_right(last, shift), 0xff);
            products[i + 4] = s.mul(s.to_f32(factor), unit);
        }
        products
    }

    #[inline(always)]
    fn chunk(&self, i: usize) -> Scales<S> {
        Scales {
            scales: [self.scales[i]; 2],
            min: self.mins[i],
        }
    }
}

/// The definition of Q4_K and Q5_K blocks; `fifth` is the fifth bit of a weight.
fn dequantize_k(block: &[u8], quants: &[u8], fifth: impl Fn(usize) -> u8, out: &mut [f32]) {
    let (scale, min) = (half_float(block, 0), half_float(block, 2));
    let packed = &block[4..16];
    for (i, out) in out.chunks_exact_mut(CHUNK).enumerate() {
        let [scale_factor, min_factor] = if i < 4 {
            [packed[i] & 63, packed[i + 4] & 63]
        } else {
            [
                packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
                packed[i + 4] >> 4 | packed[i] >> 6 << 4,
            ]
        };
        let (scale, min) = (scale * f32::from(scale_factor), min * f32::from(min_factor));
        for (j, out) in out.iter_mut().enumerate() {
            let nibble = quants[i / 2 * CHUNK + j] >> (i % 2 * 4) & 15;
            let q = nibble | fifth(i * CHUNK + j) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// Scales as in [`KHeader`], then 128 bytes: chunks `2i` and `2i + 1` are the low and high nibbles of run `i` of 32.
#[derive(Clone, Copy)]
pub(crate) struct Q4K;

impl Format for Q4K {
    const MINS: bool = true;
    type Header<S: Simd> = KHeader<S>;

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: 144,
            chunks: 8,
            half_floats: &[0, 2],
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        dequantize_k(block, &block[16..], |_| 0, out);
    }

    #[inline(always)]
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> KHeader<S> {
        KHeader::read(s, block)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, _: S, header: &KHeader<S>, _: Lanes<'_>, i: usize) -> Scales<S> {
        header.chunk(i)
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, i: usize, group: usize) -> S::I32 {
        let pair = block.word(s, 16 + i / 2 * CHUNK + 4 * group);
        s.and(s.shift_right(pair, i as u32 % 2 * 4), 0x0f0f_0f0f)
    }
}

/// Scales as in [`KHeader`], 32 bytes whose bit `i` is the fifth bit of chunk `i`, then nibbles as in Q4_K.
#[derive(Clone, Copy)]
pub(crate) struct Q5K;

impl Format for Q5K {
    const MINS: bool = true;
    type Header<S: Simd> = KHeader<S>;

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: 176,
            chunks: 8,
            half_floats: &[0, 2],
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        let fifth = |i: usize| block[16 + i % CHUNK] >> (i / CHUNK) & 1;
        dequantize_k(block, &block[48..], fifth, out);
    }

    #[inline(always)]
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> KHeader<S> {
        KHeader::read(s, block)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, _: S, header: &KHeader<S>, _: Lanes<'_>, i: usize) -> Scales<S> {
        header.chunk(i)
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, i: usize, group: usize) -> S::I32 {
        let pair = block.word(s, 48 + i / 2 * CHUNK + 4 * group);
        let nibbles = s.and(s.shift_right(pair, i as u32 % 2 * 4), 0x0f0f_0f0f);
        let bits = s.shift_right(block.word(s, 16 + 4 * group), i as u32);
        s.or(nibbles, s.shift_left(s.and(bits, 0x0101_0101), 4))
    }
}

/// 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales (one for each 16 weights),
/// f16 scale; zero point 32. In each half of four chunks, chunks 0 and 1 are the low and 2 and 3 the
/// high nibbles of the half's two runs, and chunk `k` has bit pair `k` of the half's run of pairs.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Format for Q6K {
    const HALVES: bool = true;
    const ZERO: u8 = 32;
    type Header<S: Simd> = [S::F32; 16];

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: 210,
            chunks: 8,
            half_floats: &[208],
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        let scale = half_float(block, 208);
        for (i, out) in out[..8 * CHUNK].iter_mut().enumerate() {
            let (half, k, j) = (i / 128, i / CHUNK % 4, i % CHUNK);
            let nibble = block[64 * half + k % 2 * CHUNK + j] >> (k / 2 * 4) & 15;
            let pair = block[128 + 32 * half + j] >> (2 * k) & 3;
            let scale = scale * f32::from(block[192 + i / 16] as i8);
            *out = scale * f32::from(i16::from(nibble | pair << 4) - 32);
        }
    }

    #[inline(always)]
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> [S::F32; 16] {
        let unit = block.half_float(s, 208);
        let mut scales = [unit; 16];
        for word in 0..4 {
            let factors = block.word(s, 192 + 4 * word);
            for byte in 0..4 {
                // To the top of the word and down again, for the sign.
                let top = s.shift_left(factors, 24 - 8 * byte);
                let factor = s.to_f32(s.shift_right_signed(top, 24));
                scales[4 * word + byte as usize] = s.mul(factor, unit);
            }
        }
        scales
    }

    #[inline(always)]
    fn scales<S: Simd>(self, _: S, header: &[S::F32; 16], _: Lanes<'_>, i: usize) -> Scales<S> {
        Scales {
            scales: [header[2 * i], header[2 * i + 1]],
            min: header[0],
        }
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, i: usize, group: usize) -> S::I32 {
        let (half, k) = (i / 4, i % 4);
        let nibbles = block.word(s, 64 * half + k % 2 * CHUNK + 4 * group);
        let low = s.and(s.shift_right(nibbles, k as u32 / 2 * 4), 0x0f0f_0f0f);
        let pairs = block.word(s, 128 + 32 * half + 4 * group);
        let high = s.and(s.shift_right(pairs, k as u32 * 2), 0x0303_0303);
        s.or(low, s.shift_left(high, 4))
    }
}
