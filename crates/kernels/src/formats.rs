//! The block layouts of GGUF ([ggml-quants](https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c)),
//! each read as chunks of 32 weights `scale × q + min` with unsigned bytes `q`.
//!
//! The formats with a fixed zero point (8 for Q4_0, 128 for Q8_0) get `min = -zero × scale`. All
//! these products are exact in `f32`, so nothing is lost against subtracting the zero first.

use half::{bf16, f16};

use crate::Dtype;
use crate::arch::{Chunk, Scalar};

/// Weights in a chunk.
pub(crate) const CHUNK: usize = 32;

/// 32 weights: `scales × quants + mins`, with scales and minima for each half.
pub(crate) struct Unpacked<C: Chunk> {
    pub(crate) quants: C::Bytes,
    pub(crate) scales: C::F32,
    pub(crate) mins: C::F32,
}

/// A quantised block layout.
pub(crate) trait Format {
    /// Bytes of a block.
    type Block: 'static + Copy;
    /// Scales of a block, decoded once for all its chunks.
    type Header<C: Chunk>: Copy;
    /// Chunks in a block.
    const CHUNKS: usize;
    /// Whether the two halves of a chunk have scales of their own.
    const HALVES: bool = false;
    /// Whether quants reach beyond 127.
    const WIDE: bool = false;

    /// Views a row as blocks.
    fn blocks(row: &[u8]) -> &[Self::Block];
    /// Decodes the scales.
    fn header<C: Chunk>(c: C, block: &Self::Block) -> Self::Header<C>;
    /// Decodes chunk `i`.
    fn unpack<C: Chunk>(
        c: C,
        block: &Self::Block,
        header: Self::Header<C>,
        i: usize,
    ) -> Unpacked<C>;
}

/// Runs `$body` with `$format` naming the [`Format`] of a dtype, or `$other` for float dtypes.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $body:expr, _ => $other:expr $(,)?) => {{
        use crate::Dtype;
        use crate::formats as f;
        macro_rules! arm {
            ($type:ty) => {{
                type $format = $type;
                $body
            }};
        }
        match $dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => $other,
            Dtype::Q4_0 => arm!(f::Q4_0),
            Dtype::Q4_1 => arm!(f::Q4_1),
            Dtype::Q5_0 => arm!(f::Q5_0),
            Dtype::Q5_1 => arm!(f::Q5_1),
            Dtype::Q8_0 => arm!(f::Q8_0),
            Dtype::Q4K => arm!(f::Q4K),
            Dtype::Q5K => arm!(f::Q5K),
            Dtype::Q6K => arm!(f::Q6K),
        }
    }};
}
pub(crate) use with_format;

/// Writes a row of `dtype` as `f32`: the definition of what the blocks mean.
pub(crate) fn dequantize(dtype: Dtype, row: &[u8], out: &mut [f32]) {
    with_format!(dtype, F => dequantize_blocks::<F>(row, out), _ => dequantize_floats(dtype, row, out));
}

fn dequantize_blocks<F: Format>(row: &[u8], out: &mut [f32]) {
    let chunks = out.as_chunks_mut::<CHUNK>().0;
    for (block, outs) in F::blocks(row)
        .iter()
        .zip(chunks.chunks_exact_mut(F::CHUNKS))
    {
        let header = F::header(Scalar, block);
        for (i, out) in outs.iter_mut().enumerate() {
            let chunk = F::unpack(Scalar, block, header, i);
            for (j, out) in out.iter_mut().enumerate() {
                *out = chunk.scales[j / 16] * f32::from(chunk.quants[j]) + chunk.mins[j / 16];
            }
        }
    }
}

fn dequantize_floats(dtype: Dtype, row: &[u8], out: &mut [f32]) {
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

/// Bytes `AT..AT + N` of a block.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..]
        .first_chunk()
        .expect("block layouts are constants that fit")
}

/// Declares a format whose blocks are one chunk with one scale.
macro_rules! simple_format {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, wide: $wide:literal, |$c:ident, $block:ident, $s:ident| ($scale:expr, $min:expr), $quants:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Format for $name {
            type Block = [u8; $bytes];
            type Header<C: Chunk> = (C::F32, C::F32);
            const CHUNKS: usize = 1;
            const WIDE: bool = $wide;

            #[inline(always)]
            fn blocks(row: &[u8]) -> &[Self::Block] {
                row.as_chunks().0
            }

            #[inline(always)]
            fn header<C: Chunk>($c: C, $block: &Self::Block) -> Self::Header<C> {
                let $s = $scale;
                ($s, $min)
            }

            #[inline(always)]
            fn unpack<C: Chunk>(
                $c: C,
                $block: &Self::Block,
                (scales, mins): Self::Header<C>,
                _i: usize,
            ) -> Unpacked<C> {
                Unpacked { quants: $quants, scales, mins }
            }
        }
    };
}

simple_format!(
    /// f16 scale, 16 × two nibbles; zero point 8.
    Q4_0, 18, wide: false,
    |c, block, scale| (c.f16(*part(block, 0)), c.mul(scale, c.splat(-8.0))),
    c.nibbles(part(block, 2))
);
simple_format!(
    /// f16 scale, f16 min, 16 × two nibbles.
    Q4_1, 20, wide: false,
    |c, block, scale| (c.f16(*part(block, 0)), c.f16(*part(block, 2))),
    c.nibbles(part(block, 4))
);
simple_format!(
    /// f16 scale, 32 fifth bits, 16 × two nibbles; zero point 16.
    Q5_0, 22, wide: false,
    |c, block, scale| (c.f16(*part(block, 0)), c.mul(scale, c.splat(-16.0))),
    c.join(c.nibbles(part(block, 6)), c.bits(*part(block, 2)))
);
simple_format!(
    /// f16 scale, f16 min, 32 fifth bits, 16 × two nibbles.
    Q5_1, 24, wide: false,
    |c, block, scale| (c.f16(*part(block, 0)), c.f16(*part(block, 2))),
    c.join(c.nibbles(part(block, 8)), c.bits(*part(block, 4)))
);
simple_format!(
    /// f16 scale, 32 signed bytes.
    Q8_0, 34, wide: true,
    |c, block, scale| (c.f16(*part(block, 0)), c.mul(scale, c.splat(-128.0))),
    c.flip_sign(c.load(part(block, 2)))
);

/// Scales and minima of the chunks of a Q4_K or Q5_K block.
#[derive(Clone, Copy)]
pub(crate) struct KHeader {
    scales: [f32; 8],
    mins: [f32; 8],
}

impl KHeader {
    /// Reads f16 scale, f16 min and the 6-bit scales and minima of eight chunks, packed in 12 bytes:
    /// the first four of each in the low bits of bytes 0..4 and 4..8; the low nibbles of the other
    /// four in bytes 8..12, their upper two bits in the upper bits of bytes 0..8.
    #[inline(always)]
    fn read<C: Chunk>(c: C, block: &[u8]) -> Self {
        let low = u32::from_le_bytes(*part(block, 4));
        let mid = u32::from_le_bytes(*part(block, 8));
        let high = u32::from_le_bytes(*part(block, 12));
        let (scales, mins) = (
            [
                low & 0x3f3f_3f3f,
                high & 0x0f0f_0f0f | low >> 2 & 0x3030_3030,
            ],
            [
                mid & 0x3f3f_3f3f,
                high >> 4 & 0x0f0f_0f0f | mid >> 2 & 0x3030_3030,
            ],
        );
        let (scale, min) = (c.f16(*part(block, 0)), c.f16(*part(block, 2)));
        Self {
            scales: c.scaled(signed(scales), scale),
            mins: c.scaled(signed(mins), c.mul(min, c.splat(-1.0))),
        }
    }

    #[inline(always)]
    fn chunk<C: Chunk>(&self, c: C, quants: C::Bytes, i: usize) -> Unpacked<C> {
        Unpacked {
            quants,
            scales: c.splat(self.scales[i]),
            mins: c.splat(self.mins[i]),
        }
    }
}

/// The bytes of two words, low ones first.
#[inline(always)]
fn signed([low, high]: [u32; 2]) -> [i8; 8] {
    (u64::from(low) | u64::from(high) << 32)
        .to_le_bytes()
        .map(|x| x as i8)
}

/// Scales as in [`KHeader`], then 128 bytes: chunks `2i` and `2i + 1` are the low and high nibbles of run `i` of 32.
pub(crate) struct Q4K;

impl Format for Q4K {
    type Block = [u8; 144];
    type Header<C: Chunk> = KHeader;
    const CHUNKS: usize = 8;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Block] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn header<C: Chunk>(c: C, block: &Self::Block) -> KHeader {
        KHeader::read(c, block)
    }

    #[inline(always)]
    fn unpack<C: Chunk>(c: C, block: &Self::Block, header: KHeader, i: usize) -> Unpacked<C> {
        let nibbles = c.load(part(block, 16 + i / 2 * 32));
        header.chunk(c, c.field(nibbles, i as u32 % 2 * 4, 4), i)
    }
}

/// Scales as in [`KHeader`], 32 bytes whose bit `i` is the fifth bit of chunk `i`, then nibbles as in Q4_K.
pub(crate) struct Q5K;

impl Format for Q5K {
    type Block = [u8; 176];
    type Header<C: Chunk> = KHeader;
    const CHUNKS: usize = 8;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Block] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn header<C: Chunk>(c: C, block: &Self::Block) -> KHeader {
        KHeader::read(c, block)
    }

    #[inline(always)]
    fn unpack<C: Chunk>(c: C, block: &Self::Block, header: KHeader, i: usize) -> Unpacked<C> {
        let nibbles = c.load(part(block, 48 + i / 2 * 32));
        let fifth = c.field(c.load(part(block, 16)), i as u32, 1);
        header.chunk(c, c.join(c.field(nibbles, i as u32 % 2 * 4, 4), fifth), i)
    }
}

/// 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales (one for each 16 weights),
/// f16 scale; zero point 32. In each half of four chunks, chunks 0 and 1 are the low and 2 and 3 the
/// high nibbles of the half's two runs, and chunk `k` has bit pair `k` of the half's run of pairs.
pub(crate) struct Q6K;

impl Format for Q6K {
    type Block = [u8; 210];
    type Header<C: Chunk> = C::F32;
    const CHUNKS: usize = 8;
    const HALVES: bool = true;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Block] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn header<C: Chunk>(c: C, block: &Self::Block) -> C::F32 {
        c.f16(*part(block, 208))
    }

    #[inline(always)]
    fn unpack<C: Chunk>(c: C, block: &Self::Block, scale: C::F32, i: usize) -> Unpacked<C> {
        let (half, k) = (i / 4, i % 4);
        let nibbles = c.load(part(block, 64 * half + k % 2 * 32));
        let pairs = c.load(part(block, 128 + 32 * half));
        let low = c.field(nibbles, k as u32 / 2 * 4, 4);
        let scales = part::<2>(block, 192 + 2 * i).map(|x| f32::from(x as i8));
        let scales = c.mul(scale, c.halves(scales));
        Unpacked {
            quants: c.join(low, c.field(pairs, k as u32 * 2, 2)),
            scales,
            mins: c.mul(scales, c.splat(-32.0)),
        }
    }
}
