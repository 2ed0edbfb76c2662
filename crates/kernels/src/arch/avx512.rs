use std::arch::x86_64::*;

use super::{Operation, Simd};
use crate::Isa;

/// Proof that the processor has AVX-512 F, BW, VL and VNNI, and what AVX2 stands for.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        Isa::Avx512.is_available().then_some(Self(()))
    }

    /// Enters code compiled for this instruction set.
    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn enter<O: Operation>(token: Avx512, operation: O) -> O::Output {
            operation.run(token)
        }
        // SAFETY: a value of this type exists only where the processor has these features.
        unsafe { enter(self, operation) }
    }

    /// Like `_mm512_cvtph_ps`, but that suppresses exceptions, a form that takes no memory operand and costs a shuffle.
    #[inline(always)]
    fn convert_halves(self, bits: __m256i) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(bits) }
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type F32 = __m512;
    type I32 = __m512i;

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves the features, and 64 bytes are there.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe { self.convert_halves(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves the features, and 16 bytes are there.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        }
    }

    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8]) -> __m512 {
        assert!(from.len() >= 32);
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe { self.convert_halves(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16_bytes(self, from: &[u8]) -> __m512 {
        assert!(from.len() >= 32);
        // SAFETY: `self` proves the features, and 32 bytes are there.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8]) -> __m512 {
        assert!(from.len() >= 64);
        // SAFETY: `self` proves the features, and 64 bytes are there; the load needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32]) {
        assert!(to.len() >= 16);
        // SAFETY: `self` proves the features, and there is room for 64 bytes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m512i {
        assert!(from.len() >= 64);
        // SAFETY: `self` proves the features, and 64 bytes are there.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: __m512i) -> __m512i {
        // SAFETY: `self` proves the features, and 16 bytes are there; the load needs no alignment.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, places)
        }
    }

    #[inline(always)]
    fn store_halves(self, x: __m512i, to: &mut [u16]) {
        assert!(to.len() >= 32);
        // SAFETY: `self` proves the features, and there is room for 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }

    super::intrinsics! {
        fn splat(self, x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn add(self, a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(self, a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(self, a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(self, a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn min(self, a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(self, a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn round(self, x: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        fn power_of_two(self, n: __m512) -> __m512 {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
        fn sum(self, x: __m512) -> f32 { _mm512_reduce_add_ps(x) }
        fn largest(self, x: __m512) -> f32 { _mm512_reduce_max_ps(x) }
        // Prefetches do not fault, whatever the address.
        fn prefetch(self, address: *const u8) { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
        fn splat_i32(self, x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn splat_bytes(self, bytes: [i8; 4]) -> __m512i {
            _mm512_set1_epi32(i32::from_ne_bytes(bytes.map(|b| b as u8)))
        }
        fn dot_add(self, sum: __m512i, weights: __m512i, activations: __m512i, _wide: bool) -> __m512i {
            _mm512_dpbusd_epi32(sum, weights, activations)
        }
        fn to_f32(self, x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
        fn bits(self, x: __m512) -> __m512i { _mm512_castps_si512(x) }
        fn with_bits(self, x: __m512i) -> __m512 { _mm512_castsi512_ps(x) }
        fn add_i32(self, a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn and(self, x: __m512i, mask: u32) -> __m512i {
            _mm512_and_si512(x, _mm512_set1_epi32(mask as i32))
        }
        fn or(self, a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn xor(self, x: __m512i, mask: u32) -> __m512i {
            _mm512_xor_si512(x, _mm512_set1_epi32(mask as i32))
        }
        fn shift_left(self, x: __m512i, bits: u32) -> __m512i {
            _mm512_sll_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
        fn shift_right(self, x: __m512i, bits: u32) -> __m512i {
            _mm512_srl_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
        fn shift_right_signed(self, x: __m512i, bits: u32) -> __m512i {
            _mm512_sra_epi32(x, _mm_cvtsi32_si128(bits as i32))
        }
    }
}
