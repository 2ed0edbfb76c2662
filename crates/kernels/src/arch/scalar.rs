use half::{bf16, f16};

use super::{Chunk, Simd};

/// Plain Rust. Eight lanes, so that sums are added in the same order as by AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

const LANES: usize = 8;

#[inline(always)]
fn lanes<T>(f: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    const ROW_VECTORS: usize = 1;
    type F32 = [f32; LANES];
    type I32 = [[u8; 4]; LANES];
    type Chunk = Self;

    #[inline(always)]
    fn chunk(self) -> Self {
        self
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F32 {
        lanes(|i| from[i])
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> Self::F32 {
        lanes(|i| f16::from_bits(from[i]).to_f32())
    }

    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8]) -> Self::F32 {
        lanes(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_bf16_bytes(self, from: &[u8]) -> Self::F32 {
        lanes(|i| bf16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8]) -> Self::F32 {
        let words = from.as_chunks::<4>().0;
        lanes(|i| f32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // Not f32::mul_add: without an FMA instruction that is a slow library call.
        lanes(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, x: Self::F32) -> Self::F32 {
        lanes(|i| x[i].round_ties_even())
    }

    #[inline(always)]
    fn power_of_two(self, n: Self::F32) -> Self::F32 {
        lanes(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, x: Self::F32) -> f32 {
        (x[0] + x[4] + (x[2] + x[6])) + (x[1] + x[5] + (x[3] + x[7]))
    }

    #[inline(always)]
    fn largest(self, x: Self::F32) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn zero_i32(self) -> Self::I32 {
        [[0; 4]; LANES]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> Self::I32 {
        let words = from.as_chunks::<4>().0;
        lanes(|i| words[i])
    }

    #[inline(always)]
    fn splat_bytes(self, bytes: [i8; 4]) -> Self::I32 {
        [bytes.map(|b| b as u8); LANES]
    }

    #[inline(always)]
    fn dot_add(
        self,
        sum: Self::I32,
        weights: Self::I32,
        activations: Self::I32,
        _wide: bool,
    ) -> Self::I32 {
        lanes(|i| {
            let products = weights[i].iter().zip(activations[i]);
            let dot: i32 = products
                .map(|(&w, y)| i32::from(w) * i32::from(y as i8))
                .sum();
            (i32::from_ne_bytes(sum[i]) + dot).to_ne_bytes()
        })
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I32) -> Self::F32 {
        lanes(|i| i32::from_ne_bytes(x[i]) as f32)
    }
}

impl Chunk for Scalar {
    type Bytes = [u8; 32];
    type F32 = [f32; 2];

    #[inline(always)]
    fn f16(self, bytes: [u8; 2]) -> [f32; 2] {
        [f16::from_le_bytes(bytes).to_f32(); 2]
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 2] {
        [x; 2]
    }

    #[inline(always)]
    fn halves(self, x: [f32; 2]) -> [f32; 2] {
        x
    }

    #[inline(always)]
    fn first(self, x: [f32; 2]) -> [f32; 2] {
        x
    }

    #[inline(always)]
    fn sum(self, x: [f32; 2]) -> f32 {
        x[0] + x[1]
    }

    #[inline(always)]
    fn mul(self, a: [f32; 2], b: [f32; 2]) -> [f32; 2] {
        [a[0] * b[0], a[1] * b[1]]
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 2], b: [f32; 2], c: [f32; 2]) -> [f32; 2] {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1]]
    }

    #[inline(always)]
    fn scaled(self, integers: [i8; 8], unit: [f32; 2]) -> [f32; 8] {
        integers.map(|x| unit[0] * f32::from(x))
    }

    #[inline(always)]
    fn load(self, from: &[u8; 32]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn store(self, x: Self::Bytes) -> [u8; 32] {
        x
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> Self::Bytes {
        std::array::from_fn(|i| {
            if i < 16 {
                from[i] & 15
            } else {
                from[i - 16] >> 4
            }
        })
    }

    #[inline(always)]
    fn bits(self, from: [u8; 4]) -> Self::Bytes {
        std::array::from_fn(|i| from[i / 8] >> (i % 8) & 1)
    }

    #[inline(always)]
    fn field(self, x: Self::Bytes, shift: u32, width: u32) -> Self::Bytes {
        x.map(|x| x >> shift & ((1 << width) - 1))
    }

    #[inline(always)]
    fn join(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| low[i] | high[i] << 4)
    }

    #[inline(always)]
    fn flip_sign(self, x: Self::Bytes) -> Self::Bytes {
        x.map(|x| x ^ 0x80)
    }

    #[inline(always)]
    fn add_products(
        self,
        sums: [f32; 2],
        weights: Self::Bytes,
        activations: &[i8; 32],
        scales: [f32; 2],
        _wide: bool,
    ) -> [f32; 2] {
        std::array::from_fn(|half| {
            let mut dot = 0;
            for i in 16 * half..16 * half + 16 {
                dot += i32::from(weights[i]) * i32::from(activations[i]);
            }
            sums[half] + scales[half] * dot as f32
        })
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}
