use half::{bf16, f16};

use super::Simd;

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
    const INTEGERS: bool = false;
    type F32 = [f32; LANES];
    type I32 = [u32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F32 {
        *from.first_chunk().expect("a whole vector")
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> Self::F32 {
        lanes(|i| f16::from_bits(from[i]).to_f32())
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8]) -> Self::F32 {
        lanes(|i| f32::from(from[i]))
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
    fn prefetch(self, _address: *const u8) {}

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I32 {
        [x as u32; LANES]
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> Self::I32 {
        let words = from.as_chunks::<4>().0;
        lanes(|i| u32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn store_halves(self, x: Self::I32, to: &mut [u16]) {
        to[..2 * LANES].copy_from_slice(x.map(|x| [x as u16, (x >> 16) as u16]).as_flattened());
    }

    #[inline(always)]
    fn splat_bytes(self, bytes: [i8; 4]) -> Self::I32 {
        [u32::from_le_bytes(bytes.map(|b| b as u8)); LANES]
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
            let products = weights[i]
                .to_le_bytes()
                .into_iter()
                .zip(activations[i].to_le_bytes());
            let dot: i32 = products
                .map(|(w, y)| i32::from(w) * i32::from(y as i8))
                .sum();
            sum[i].wrapping_add(dot as u32)
        })
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I32) -> Self::F32 {
        lanes(|i| x[i] as i32 as f32)
    }

    #[inline(always)]
    fn bits(self, x: Self::F32) -> Self::I32 {
        x.map(f32::to_bits)
    }

    #[inline(always)]
    fn with_bits(self, x: Self::I32) -> Self::F32 {
        x.map(f32::from_bits)
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        lanes(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn and(self, x: Self::I32, mask: u32) -> Self::I32 {
        lanes(|i| x[i] & mask)
    }

    #[inline(always)]
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        lanes(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn xor(self, x: Self::I32, mask: u32) -> Self::I32 {
        lanes(|i| x[i] ^ mask)
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: Self::I32) -> Self::I32 {
        let found = |places: u32| places.to_le_bytes().map(|place| table[usize::from(place)]);
        lanes(|i| u32::from_le_bytes(found(places[i])))
    }

    #[inline(always)]
    fn shift_left(self, x: Self::I32, bits: u32) -> Self::I32 {
        lanes(|i| x[i] << bits)
    }

    #[inline(always)]
    fn shift_right(self, x: Self::I32, bits: u32) -> Self::I32 {
        lanes(|i| x[i] >> bits)
    }

    #[inline(always)]
    fn shift_right_signed(self, x: Self::I32, bits: u32) -> Self::I32 {
        lanes(|i| (x[i] as i32 >> bits) as u32)
    }
}
