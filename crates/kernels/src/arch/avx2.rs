use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{Operation, Simd};
use crate::Isa;

/// Proof that the processor has AVX2, FMA and F16C, and the product instructions that `D` uses.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<D>(PhantomData<D>);

impl<D: Dot> Avx2<D> {
    pub(crate) fn new() -> Option<Self> {
        D::ISA.is_available().then_some(Self(PhantomData))
    }

    /// Enters code compiled for this instruction set.
    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        // SAFETY: a value of this type exists only where the processor has `D::ISA`.
        unsafe { D::enter(self, operation) }
    }
}

/// Product sums of four bytes; all else is the same on every processor with AVX2.
pub(crate) trait Dot: Copy {
    const ISA: Isa;

    /// Runs `operation` in code compiled for [`Self::ISA`].
    ///
    /// # Safety
    /// The processor has [`Self::ISA`].
    unsafe fn enter<O: Operation>(token: Avx2<Self>, operation: O) -> O::Output;

    /// [`Simd::dot_add`].
    ///
    /// # Safety
    /// The processor has [`Self::ISA`].
    unsafe fn add(sum: __m256i, weights: __m256i, activations: __m256i, wide: bool) -> __m256i;
}

/// Every processor with AVX2: 16-bit products, added in pairs.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Dot for Pairs {
    const ISA: Isa = Isa::Avx2;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn enter<O: Operation>(token: Avx2<Self>, operation: O) -> O::Output {
        operation.run(token)
    }

    #[inline(always)]
    unsafe fn add(sum: __m256i, weights: __m256i, activations: __m256i, wide: bool) -> __m256i {
        // maddubs adds pairs of products in saturating 16 bits. 2 × 127 × 127 fits, and so does
        // 2 × 128 × 127, so wide weights go as their lower seven bits and their uppermost.
        // SAFETY: the caller's promise.
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

/// Processors with AVX-VNNI: the dot instruction of AVX-512, in its encoding for AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Dot for Vnni {
    const ISA: Isa = Isa::Avx2Vnni;

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn enter<O: Operation>(token: Avx2<Self>, operation: O) -> O::Output {
        operation.run(token)
    }

    #[inline(always)]
    unsafe fn add(sum: __m256i, weights: __m256i, activations: __m256i, _wide: bool) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, weights, activations) }
    }
}

impl<D: Dot> Simd for Avx2<D> {
    const LANES: usize = 8;
    type F32 = __m256;
    type I32 = __m256i;

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
    fn load_i8(self, from: &[i8]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: `self` proves the features, and 8 bytes are there.
        unsafe {
            let bytes = _mm_loadl_epi64(from.as_ptr().cast());
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
        }
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
    fn look_up(self, table: &[u8; 16], places: __m256i) -> __m256i {
        // SAFETY: `self` proves the features, and 16 bytes are there; the load needs no alignment.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, places)
        }
    }

    #[inline(always)]
    fn store_halves(self, x: __m256i, to: &mut [u16]) {
        assert!(to.len() >= 16);
        // SAFETY: `self` proves the features, and there is room for 32 bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn dot_add(self, sum: __m256i, weights: __m256i, activations: __m256i, wide: bool) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { D::add(sum, weights, activations, wide) }
    }

    super::intrinsics! {
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
        // Prefetches do not fault, whatever the address.
        fn prefetch(self, address: *const u8) { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
        fn splat_i32(self, x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fn splat_bytes(self, bytes: [i8; 4]) -> __m256i {
            _mm256_set1_epi32(i32::from_ne_bytes(bytes.map(|b| b as u8)))
        }
        fn to_f32(self, x: __m256i) -> __m256 { _mm256_cvtepi32_ps(x) }
        fn bits(self, x: __m256) -> __m256i { _mm256_castps_si256(x) }
        fn with_bits(self, x: __m256i) -> __m256 { _mm256_castsi256_ps(x) }
        fn add_i32(self, a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn and(self, x: __m256i, mask: u32) -> __m256i {
            _mm256_and_si256(x, _mm256_set1_epi32(mask as i32))
        }
        fn or(self, a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn xor(self, x: __m256i, mask: u32) -> __m256i {
            _mm256_xor_si256(x, _mm256_set1_epi32(mask as i32))
        }
        fn shift_left(self, x: __m256i, bits: u32) -> __m256i {
            _mm256_sll_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
        fn shift_right(self, x: __m256i, bits: u32) -> __m256i {
            _mm256_srl_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
        fn shift_right_signed(self, x: __m256i, bits: u32) -> __m256i {
            _mm256_sra_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
    }
}
