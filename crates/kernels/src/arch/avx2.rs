use std::arch::x86_64::*;

use super::{Chunk, Operation, Simd};
use crate::Isa;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        Isa::Avx2.is_available().then_some(Self(()))
    }

    /// Enters code compiled for this instruction set.
    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<O: Operation>(token: Avx2, operation: O) -> O::Output {
            operation.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has these features.
        unsafe { enter(self, operation) }
    }

    /// `Σ of four products`, in each 32-bit lane.
    #[inline(always)]
    fn dot(self, sum: __m256i, weights: __m256i, activations: __m256i, wide: bool) -> __m256i {
        // maddubs adds pairs of products in saturating 16 bits. 2 × 127 × 127 fits, and so does
        // 2 × 128 × 127, so wide weights go as their lower seven bits and their uppermost.
        // SAFETY: `self` proves the features.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            if wide {
                let top = _mm256_set1_epi8(i8::MIN);
                let high = _mm256_and_si256(weights, top);
                let high = _mm256_maddubs_epi16(high, activations);
                let low = _mm256_andnot_si256(top, weights);
                let low = _mm256_maddubs_epi16(low, activations);
                let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high, ones));
                _mm256_add_epi32(sum, _mm256_madd_epi16(low, ones))
            } else {
                let pairs = _mm256_maddubs_epi16(weights, activations);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
            }
        }
    }
}

/// Declares a method of intrinsics that the token proves to be available.
macro_rules! intrinsics {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `self` proves the instruction set, and these take no addresses.
            unsafe { $body }
        }
    )*};
}
pub(super) use intrinsics;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROW_VECTORS: usize = 1;
    type F32 = __m256;
    type I32 = __m256i;
    type Chunk = Ymm<false>;

    #[inline(always)]
    fn chunk(self) -> Self::Chunk {
        Ymm(self)
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: `self` proves the features, and 16 bytes are there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8]) -> __m256 {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves the features, and 16 bytes are there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16_bytes(self, from: &[u8]) -> __m256 {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves the features, and 16 bytes are there.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8]) -> __m256 {
        assert!(from.len() >= 32);
        // SAFETY: `self` proves the features, and 32 bytes are there; the load needs no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32]) {
        assert!(to.len() >= 8);
        // SAFETY: `self` proves the features, and there is room for 32 bytes.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m256i {
        assert!(from.len() >= 32);
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_add(self, sum: __m256i, weights: __m256i, activations: __m256i, wide: bool) -> __m256i {
        self.dot(sum, weights, activations, wide)
    }

    intrinsics! {
        fn splat(self, x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn add(self, a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(self, a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(self, a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(self, a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn min(self, a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn max(self, a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn round(self, x: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        fn power_of_two(self, n: __m256) -> __m256 {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
        fn sum(self, x: __m256) -> f32 {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
        fn largest(self, x: __m256) -> f32 {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
        fn zero_i32(self) -> __m256i { _mm256_setzero_si256() }
        fn splat_bytes(self, bytes: [i8; 4]) -> __m256i {
            _mm256_set1_epi32(i32::from_ne_bytes(bytes.map(|b| b as u8)))
        }
        fn to_f32(self, x: __m256i) -> __m256 { _mm256_cvtepi32_ps(x) }
    }
}

/// A chunk in one 256-bit register, also on AVX-512: a product with few tokens waits for memory, and
/// 32 bytes match the blocks. `VNNI` says whether the processor has its dot product; then it has AVX-512 VL too.
#[derive(Clone, Copy)]
pub(crate) struct Ymm<const VNNI: bool>(Avx2);

impl Ymm<true> {
    #[inline(always)]
    pub(super) fn vnni(_: super::avx512::Avx512) -> Self {
        Self(Avx2(()))
    }
}

impl<const VNNI: bool> Chunk for Ymm<VNNI> {
    type Bytes = __m256i;
    type F32 = __m256;

    #[inline(always)]
    fn load(self, from: &[u8; 32]) -> __m256i {
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, x: __m256i) -> [u8; 32] {
        let mut to = [0; 32];
        // SAFETY: `self` proves the features, and there is room for 32 bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) };
        to
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> __m256i {
        // SAFETY: `self` proves the features, and 16 bytes are there.
        unsafe {
            let low = _mm_loadu_si128(from.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        self.0.sum(x)
    }

    #[inline(always)]
    fn scaled(self, integers: [i8; 8], unit: __m256) -> [f32; 8] {
        let mut to = [0.0; 8];
        // SAFETY: `self` proves the features, and there is room for 32 bytes.
        unsafe {
            let words = _mm256_cvtepi8_epi32(_mm_set1_epi64x(i64::from_ne_bytes(
                integers.map(|x| x as u8),
            )));
            _mm256_storeu_ps(
                to.as_mut_ptr(),
                _mm256_mul_ps(_mm256_cvtepi32_ps(words), unit),
            );
        }
        to
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: prefetches do not fault, and every x86-64 has them.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn add_products(
        self,
        sums: __m256,
        weights: __m256i,
        activations: &[i8; 32],
        scales: __m256,
        wide: bool,
    ) -> __m256 {
        // SAFETY: `self` proves the features (VNNI and VL if `VNNI`), and 32 bytes are there.
        unsafe {
            let activations = _mm256_loadu_si256(activations.as_ptr().cast());
            let zero = _mm256_setzero_si256();
            let dots = if VNNI {
                _mm256_dpbusd_epi32(zero, weights, activations)
            } else {
                self.0.dot(zero, weights, activations, wide)
            };
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scales, sums)
        }
    }

    intrinsics! {
        // A broadcast, because loading one lane into a register makes it wait for what the
        // register held before.
        fn f16(self, bytes: [u8; 2]) -> __m256 {
            _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bytes)))
        }
        fn splat(self, x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn halves(self, x: [f32; 2]) -> __m256 {
            _mm256_set_m128(_mm_set1_ps(x[1]), _mm_set1_ps(x[0]))
        }
        fn first(self, x: __m256) -> [f32; 2] {
            [_mm256_cvtss_f32(x), _mm_cvtss_f32(_mm256_extractf128_ps::<1>(x))]
        }
        fn mul(self, a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn bits(self, from: [u8; 4]) -> __m256i {
            // Each byte to eight places, then each place's own bit.
            let places = _mm256_set_epi64x(
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0,
            );
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(from)), places);
            let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
            _mm256_and_si256(set, _mm256_set1_epi8(1))
        }
        fn field(self, x: __m256i, shift: u32, width: u32) -> __m256i {
            let shifted = _mm256_srl_epi16(x, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(((1 << width) - 1) as i8))
        }
        fn join(self, low: __m256i, high: __m256i) -> __m256i {
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
        fn flip_sign(self, x: __m256i) -> __m256i {
            _mm256_xor_si256(x, _mm256_set1_epi8(i8::MIN))
        }
    }
}
