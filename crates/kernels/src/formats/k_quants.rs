//! Formats whose blocks are eight chunks with scales of their own scales.

use super::{CHUNK, Format, Lanes, Scales, Shape, half_float};
use crate::arch::Simd;

/// Scales and minima of the eight chunks of a Q4_K or Q5_K block: f16 scale, f16 min, and 12 bytes of 6-bit factors of
/// both. The first four of each are in the low bits of bytes 0..4 and 4..8; the low nibbles of the other four in bytes
/// 8..12, their upper two bits in the upper bits of bytes 0..8.
pub(crate) struct KHeader<S: Simd> {
    scales: Factors<S>,
    mins: Factors<S>,
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
            scales: Factors::new(s, block.half_float(s, 0), low, high),
            mins: Factors::new(s, min, mid, s.shift_right(high, 4)),
        }
    }

    #[inline(always)]
    fn chunk(&self, s: S, i: usize) -> Scales<S> {
        Scales {
            scales: [self.scales.product(s, i); 2],
            min: self.mins.product(s, i),
        }
    }
}

/// Eight numbers in two words, and what they count in. They stay packed: registers hold no eight products.
struct Factors<S: Simd> {
    unit: S::F32,
    first: S::I32,
    last: S::I32,
}

impl<S: Simd> Clone for Factors<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd> Copy for Factors<S> {}

impl<S: Simd> Factors<S> {
    /// Takes the eight that `word` has the lower six bits of four and the upper two of four of, and `nibbles` the lower four
    /// of the others.
    #[inline(always)]
    fn new(s: S, unit: S::F32, word: S::I32, nibbles: S::I32) -> Self {
        let upper = s.and(s.shift_right(word, 2), 0x3030_3030);
        Self {
            unit,
            first: s.and(word, 0x3f3f_3f3f),
            last: s.or(s.and(nibbles, 0x0f0f_0f0f), upper),
        }
    }

    #[inline(always)]
    fn product(&self, s: S, i: usize) -> S::F32 {
        let word = if i < 4 { self.first } else { self.last };
        let factor = s.and(s.shift_right(word, i as u32 % 4 * 8), 0xff);
        s.mul(s.to_f32(factor), self.unit)
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
    const UNROLLED: bool = true;
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
    fn scales<S: Simd>(self, s: S, header: &KHeader<S>, _: Lanes<'_>, i: usize) -> Scales<S> {
        header.chunk(s, i)
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
    const UNROLLED: bool = true;
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

    /// Each word of fifth bits, and the word of the first run that is read with it; then the other runs.
    #[inline(always)]
    fn source(self, at: usize) -> usize {
        match (at, at % 8 / 4) {
            (16..80, 0) => 16 + (at - 16) / 2,
            (16..80, _) => 48 + (at - 20) / 2,
            _ => at,
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
    fn scales<S: Simd>(self, s: S, header: &KHeader<S>, _: Lanes<'_>, i: usize) -> Scales<S> {
        header.chunk(s, i)
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, i: usize, group: usize) -> S::I32 {
        let pair = match i / 2 {
            0 => block.word(s, 20 + 8 * group),
            run => block.word(s, 48 + run * CHUNK + 4 * group),
        };
        let nibbles = s.and(s.shift_right(pair, i as u32 % 2 * 4), 0x0f0f_0f0f);
        let bits = block.word(s, 16 + 8 * group);
        let fifth = if i < 4 {
            s.shift_left(bits, 4 - i as u32)
        } else {
            s.shift_right(bits, i as u32 - 4)
        };
        s.or(nibbles, s.and(fifth, 0x1010_1010))
    }
}

/// 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales (one for each 16 weights),
/// f16 scale; zero point 32. In each half of four chunks, chunks 0 and 1 are the low and 2 and 3 the
/// high nibbles of the half's two runs, and chunk `k` has bit pair `k` of the half's run of pairs.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Format for Q6K {
    const UNROLLED: bool = true;
    const HALVES: bool = true;
    const ZERO: u8 = 32;
    type Header<S: Simd> = S::F32;

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: 210,
            chunks: 8,
            half_floats: &[0],
        }
    }

    /// What chunks share; of each half, the words of the first run and of the pairs in turns, and the second run.
    #[inline(always)]
    fn source(self, at: usize) -> usize {
        if at < 2 {
            return 208 + at;
        } else if at < 18 {
            return 190 + at;
        }
        let (half, at) = ((at - 18) / 96, (at - 18) % 96);
        match (at, at % 8 / 4) {
            (0..64, 0) => 64 * half + at / 2,
            (0..64, _) => 128 + 32 * half + (at - 4) / 2,
            _ => 64 * half + at - 32,
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
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> S::F32 {
        block.half_float(s, 0)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, s: S, unit: &S::F32, block: Lanes<'_>, i: usize) -> Scales<S> {
        let factors = block.word(s, 2 + i / 2 * 4);
        let mut scales = [*unit; 2];
        for half in 0..2 {
            // To the top of the word and down again, for the sign.
            let top = s.shift_left(factors, 24 - 8 * (i as u32 % 2 * 2 + half));
            let factor = s.to_f32(s.shift_right_signed(top, 24));
            scales[half as usize] = s.mul(factor, *unit);
        }
        Scales { scales, min: *unit }
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, i: usize, group: usize) -> S::I32 {
        let (half, k) = (i / 4, i % 4);
        let nibbles = match k % 2 {
            0 => block.word(s, 18 + 96 * half + 8 * group),
            _ => block.word(s, 82 + 96 * half + 4 * group),
        };
        let low = s.and(s.shift_right(nibbles, k as u32 / 2 * 4), 0x0f0f_0f0f);
        let pairs = block.word(s, 22 + 96 * half + 8 * group);
        let high = if k < 2 {
            s.shift_left(pairs, 4 - 2 * k as u32)
        } else {
            s.shift_right(pairs, 2 * k as u32 - 4)
        };
        s.or(low, s.and(high, 0x3030_3030))
    }
}
