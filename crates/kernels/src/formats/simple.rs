//! Formats whose blocks are one chunk with one scale.

use super::{CHUNK, Format, Lanes, Scales, Shape, half_float};
use crate::arch::Simd;

/// Declares a format of nibbles: f16 scale, f16 min if `mins`, a word of fifth bits if `bits`, then 16 bytes whose low
/// nibbles are the first 16 weights and whose high nibbles are the others. With a table, a nibble is a place in it.
macro_rules! nibbles {
    (
        $(#[$doc:meta])* $name:ident, $bytes:literal,
        zero: $zero:literal, mins: $mins:literal, bits: $bits:expr, table: $table:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl $name {
            const QUANTS: usize = $bytes - CHUNK / 2;
            const TABLE: Option<&'static [u8; 16]> = $table;
        }

        impl Format for $name {
            const BITS: Option<usize> = $bits;
            const WIDE: bool = Self::TABLE.is_some();
            const ZERO: u8 = $zero;
            const MINS: bool = $mins;
            type Header<S: Simd> = ();

            #[inline(always)]
            fn shape(self) -> Shape {
                Shape {
                    bytes: $bytes,
                    chunks: 1,
                    half_floats: if $mins { &[0, 2] } else { &[0] },
                }
            }

            fn dequantize(self, block: &[u8], out: &mut [f32]) {
                let scale = half_float(block, 0);
                let min = if $mins { half_float(block, 2) } else { 0.0 };
                for (i, out) in out[..CHUNK].iter_mut().enumerate() {
                    let nibble = block[Self::QUANTS + i % 16] >> (i / 16 * 4) & 15;
                    let fifth = Self::BITS.map_or(0, |at| block[at + i / 8] >> (i % 8) & 1);
                    let q = Self::TABLE.map_or(nibble | fifth << 4, |table| table[usize::from(nibble)]);
                    let q = i16::from(q) - $zero;
                    *out = scale * f32::from(q) + min;
                }
            }

            #[inline(always)]
            fn header<S: Simd>(self, _: S, _: Lanes<'_>) {}

            #[inline(always)]
            fn scales<S: Simd>(self, s: S, (): &(), block: Lanes<'_>, _: usize) -> Scales<S> {
                let scale = block.half_float(s, 0);
                Scales {
                    scales: [scale; 2],
                    min: if $mins { block.half_float(s, 2) } else { scale },
                }
            }

            #[inline(always)]
            fn quants<S: Simd>(self, s: S, block: Lanes<'_>, _: usize, group: usize) -> S::I32 {
                let pair = block.word(s, Self::QUANTS + group % 4 * 4);
                let nibbles = s.and(s.shift_right(pair, group as u32 / 4 * 4), 0x0f0f_0f0f);
                if let Some(table) = Self::TABLE {
                    return s.look_up(table, nibbles);
                }
                let Some(at) = Self::BITS else {
                    return nibbles;
                };
                let bits = s.and(s.shift_right(block.word(s, at), group as u32), 0x0101_0101);
                s.or(nibbles, s.shift_left(bits, 4))
            }
        }
    };
}

nibbles!(
    /// 4 bits, zero point 8.
    Q4_0, 18, zero: 8, mins: false, bits: None, table: None
);
nibbles!(
    /// 4 bits and a min.
    Q4_1, 20, zero: 0, mins: true, bits: None, table: None
);
nibbles!(
    /// 5 bits, zero point 16.
    Q5_0, 22, zero: 16, mins: false, bits: Some(2), table: None
);
nibbles!(
    /// 5 bits and a min.
    Q5_1, 24, zero: 0, mins: true, bits: Some(4), table: None
);

nibbles!(
    /// 4 bits for 16 values that lie closer around zero.
    Iq4Nl, 18, zero: 128, mins: false, bits: None, table: Some(&IQ4_NL)
);

/// The values of IQ4_NL, from -127 to 113, with the zero point added.
const IQ4_NL: [u8; 16] = [
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
];

/// f16 scale, 32 signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const WIDE: bool = true;
    const ZERO: u8 = 128;
    type Header<S: Simd> = ();

    #[inline(always)]
    fn shape(self) -> Shape {
        Shape {
            bytes: 34,
            chunks: 1,
            half_floats: &[0],
        }
    }

    fn dequantize(self, block: &[u8], out: &mut [f32]) {
        let scale = half_float(block, 0);
        for (&q, out) in block[2..34].iter().zip(out) {
            *out = scale * f32::from(q as i8);
        }
    }

    #[inline(always)]
    fn header<S: Simd>(self, _: S, _: Lanes<'_>) {}

    #[inline(always)]
    fn scales<S: Simd>(self, s: S, (): &(), block: Lanes<'_>, _: usize) -> Scales<S> {
        let scale = block.half_float(s, 0);
        Scales {
            scales: [scale; 2],
            min: scale,
        }
    }

    #[inline(always)]
    fn quants<S: Simd>(self, s: S, block: Lanes<'_>, _: usize, group: usize) -> S::I32 {
        // Flipping the sign bit adds the zero point.
        s.xor(block.word(s, 2 + 4 * group), 0x8080_8080)
    }
}
