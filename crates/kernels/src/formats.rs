//! The block layouts of GGUF ([ggml-quants](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c)), and
//! those that MLX's arrays become: what each block means, in plain Rust, and how the kernels read it from a panel
//! ([`crate::panels`]).
//!
//! A block is one or more chunks of 32 weights `scale × (q - zero) + min` with unsigned bytes `q`.

use half::{bf16, f16};

use crate::Dtype;
use crate::arch::Simd;

mod affine;
pub(crate) mod codes;
mod fp4;
mod k_quants;
mod simple;

pub(crate) use affine::Affine;
pub(crate) use fp4::Fp4;
pub(crate) use k_quants::{Q4K, Q5K, Q6K};
pub(crate) use simple::{Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// Weights in a chunk.
pub(crate) const CHUNK: usize = 32;

/// A quantised block layout. Its value is what is known only when weights are loaded.
pub(crate) trait Format: Copy + Sync {
    /// Offset of a word with one bit for each weight of a chunk; panels keep its bits [`spread`].
    const BITS: Option<usize> = None;
    /// Whether the two halves of a chunk have scales of their own.
    const HALVES: bool = false;
    /// Whether `q` reaches beyond 127.
    const WIDE: bool = false;
    /// What is taken from each `q`.
    const ZERO: u8 = 0;
    /// Whether chunks have a `min`.
    const MINS: bool = false;
    /// Whether a block has eight chunks whose bits share words, so that each is best read by code of its own.
    const UNROLLED: bool = false;
    /// What the chunks of a block share, decoded once.
    type Header<S: Simd>: Copy;

    /// Returns what a block takes.
    fn shape(self) -> Shape;

    /// Returns where in a block the unit is that panels keep at `at`: in the order in which kernels first read them, as
    /// processors fetch ahead in one direction only.
    #[inline(always)]
    fn source(self, at: usize) -> usize {
        at
    }

    /// Writes a block as floats: the definition.
    fn dequantize(self, block: &[u8], out: &mut [f32]);

    /// Decodes what the chunks share.
    fn header<S: Simd>(self, s: S, block: Lanes<'_>) -> Self::Header<S>;

    /// Decodes the scales of chunk `i`.
    fn scales<S: Simd>(
        self,
        s: S,
        header: &Self::Header<S>,
        block: Lanes<'_>,
        i: usize,
    ) -> Scales<S>;

    /// Returns what [`quants`](Self::quants) of chunk `i` reads. A part of constant length spares the checks of its loads where
    /// the length of a block is not constant.
    #[inline(always)]
    fn chunk<'a>(self, block: Lanes<'a>, _i: usize) -> Lanes<'a> {
        block
    }

    /// Decodes weights `4 * group..4 * group + 4` of chunk `i`, each lane's in its four bytes.
    fn quants<S: Simd>(self, s: S, chunk: Lanes<'_>, i: usize, group: usize) -> S::I32;
}

/// What a block takes.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) bytes: usize,
    pub(crate) chunks: usize,
    /// Offsets, in a panel, of the floats of two bytes; all else is read in words of four bytes.
    pub(crate) half_floats: &'static [usize],
}

/// Scales of a chunk, each lane's own.
pub(crate) struct Scales<S: Simd> {
    /// Of the two halves; the second counts only with [`Format::HALVES`].
    pub(crate) scales: [S::F32; 2],
    /// Counts only with [`Format::MINS`].
    pub(crate) min: S::F32,
}

impl<S: Simd> Clone for Scales<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd> Copy for Scales<S> {}

/// The same block of some neighbouring rows of a panel, from row `first` on, as many as a vector has lanes.
///
/// In a panel, what is at [`Format::source`]`(offset)` in the block of a row is at `PANEL_ROWS * offset`, one unit for each row.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<'a> {
    pub(crate) record: &'a [u8],
    pub(crate) first: usize,
}

impl<'a> Lanes<'a> {
    /// Returns `bytes` bytes of each row from `offset` on.
    #[inline(always)]
    pub(crate) fn part(self, offset: usize, bytes: usize) -> Self {
        let record: &'a [u8] = &self.record[PANEL_ROWS * offset..][..PANEL_ROWS * bytes];
        Self { record, ..self }
    }

    #[inline(always)]
    pub(crate) fn half_float<S: Simd>(self, s: S, offset: usize) -> S::F32 {
        s.load_f16_bytes(&self.record[PANEL_ROWS * offset + 2 * self.first..])
    }

    /// Reads what is stored in a float dtype.
    #[inline(always)]
    pub(crate) fn float<S: Simd>(self, s: S, dtype: Dtype, offset: usize) -> S::F32 {
        let unit = if dtype == Dtype::F32 { 4 } else { 2 };
        let from = &self.record[PANEL_ROWS * offset + unit * self.first..];
        match dtype {
            Dtype::F32 => s.load_f32_bytes(from),
            Dtype::F16 => s.load_f16_bytes(from),
            _ => s.load_bf16_bytes(from),
        }
    }

    #[inline(always)]
    pub(crate) fn word<S: Simd>(self, s: S, offset: usize) -> S::I32 {
        s.load_bytes(&self.record[PANEL_ROWS * offset + 4 * self.first..])
    }
}

/// Rows of a panel; every vector's lanes divide it.
pub(crate) const PANEL_ROWS: usize = 16;

/// Moves bit `4 * group + i` to bit `group` of byte `i`, so that a shift and a mask get the bits of a group.
pub(crate) fn spread(bits: u32) -> u32 {
    (0..32).fold(0, |out, at| out | (bits >> at & 1) << (at % 4 * 8 + at / 4))
}

/// Undoes [`spread`].
pub(crate) fn gather(bits: u32) -> u32 {
    (0..32).fold(0, |out, at| out | (bits >> (at % 4 * 8 + at / 4) & 1) << at)
}

/// How the weights of a matrix lie in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Layout {
    /// Floats in rows, or GGUF's blocks in panels.
    Gguf(Dtype),
    /// [`Affine`] blocks in panels.
    Affine {
        bits: usize,
        chunks: usize,
        floats: Dtype,
    },
    /// [`Fp4`] blocks with a scale for a chunk, in panels.
    MxFp4,
    /// [`Fp4`] blocks with scales for half a chunk, in panels; they count in units of `unit`.
    NvFp4 { unit: f32 },
}

impl Layout {
    /// Returns whether weights are in panels.
    pub(crate) fn is_quantized(self) -> bool {
        !matches!(self, Self::Gguf(dtype) if !dtype.is_quantized())
    }

    /// Returns the bytes of a row of `cols` weights, or `None` if that is not a whole number of blocks.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        with_format!(
            self,
            format => {
                let Shape { bytes, chunks, .. } = format.shape();
                let block = chunks * CHUNK;
                cols.is_multiple_of(block).then_some(cols / block)?.checked_mul(bytes)
            },
            dtype => dtype.row_bytes(cols),
        )
    }
}

/// Runs `$body` with `$format` being the [`Format`] of a [`Layout`], or `$other` with `$dtype` being its float dtype.
macro_rules! with_format {
    ($layout:expr, $format:ident => $body:expr, $dtype:pat => $other:expr $(,)?) => {{
        use crate::Dtype;
        use crate::formats as f;
        use crate::formats::Layout;
        macro_rules! arm {
            ($value:expr) => {{
                let $format = $value;
                $body
            }};
        }
        match $layout {
            Layout::Gguf(dtype) => match dtype {
                Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {
                    let $dtype = dtype;
                    $other
                }
                Dtype::Q4_0 => arm!(f::Q4_0),
                Dtype::Q4_1 => arm!(f::Q4_1),
                Dtype::Q5_0 => arm!(f::Q5_0),
                Dtype::Q5_1 => arm!(f::Q5_1),
                Dtype::Q8_0 => arm!(f::Q8_0),
                Dtype::Q4K => arm!(f::Q4K),
                Dtype::Q5K => arm!(f::Q5K),
                Dtype::Q6K => arm!(f::Q6K),
                Dtype::Iq4Nl => arm!(f::Iq4Nl),
            },
            Layout::MxFp4 => arm!(f::Fp4::<false> { unit: 0.5 }),
            Layout::NvFp4 { unit } => arm!(f::Fp4::<true> { unit }),
            Layout::Affine {
                bits,
                chunks,
                floats,
            } => match bits {
                2 => arm!(f::Affine::<2> { chunks, floats }),
                3 => arm!(f::Affine::<3> { chunks, floats }),
                4 => arm!(f::Affine::<4> { chunks, floats }),
                5 => arm!(f::Affine::<5> { chunks, floats }),
                6 => arm!(f::Affine::<6> { chunks, floats }),
                _ => arm!(f::Affine::<8> { chunks, floats }),
            },
        }
    }};
}
pub(crate) use with_format;

/// Writes floats of a float dtype as `f32`.
pub(crate) fn widen(dtype: Dtype, row: &[u8], out: &mut [f32]) {
    if dtype == Dtype::F32 {
        for (out, &bytes) in out.iter_mut().zip(row.as_chunks().0) {
            *out = f32::from_le_bytes(bytes);
        }
        return;
    }
    for (out, &bytes) in out.iter_mut().zip(row.as_chunks().0) {
        *out = match dtype {
            Dtype::F16 => f16::from_le_bytes(bytes).to_f32(),
            _ => bf16::from_le_bytes(bytes).to_f32(),
        };
    }
}

/// Reads the half-precision float at `at`.
fn half_float(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every layout of panels.
    pub(crate) fn quantized() -> impl Strategy<Value = Layout> {
        let affine = |bits| {
            let floats = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]);
            (prop::sample::select(vec![1, 2, 4]), floats).prop_map(move |(chunks, floats)| {
                Layout::Affine {
                    bits,
                    chunks,
                    floats,
                }
            })
        };
        let gguf = Dtype::ALL.into_iter().map(Layout::Gguf);
        prop_oneof![
            4 => prop::sample::select(gguf.filter(|layout| layout.is_quantized()).collect::<Vec<_>>()),
            3 => prop::sample::select(vec![2, 3, 4, 5, 6, 8]).prop_flat_map(affine),
            1 => Just(Layout::MxFp4),
            1 => (0.25_f32..2.0).prop_map(|unit| Layout::NvFp4 { unit }),
        ]
    }

    #[test]
    fn spread_puts_the_bits_of_a_group_in_reach_of_one_mask() {
        for group in 0..8 {
            let bits = 0b1011 << (4 * group);
            assert_eq!(spread(bits) >> group & 0x0101_0101, 0x0100_0101);
        }
        for bits in [0, 1, 0xdead_beef, u32::MAX] {
            assert_eq!(gather(spread(bits)), bits);
        }
    }
}
