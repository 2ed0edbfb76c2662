use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::{Operation, Simd};
use crate::Isa;

/// Proof that the processor has NEON, and the product instructions that `D` uses.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D>(PhantomData<D>);

impl<D: Dot> Neon<D> {
    pub(crate) fn new() -> Option<Self> {
        D::ISA.is_available().then_some(Self(PhantomData))
    }

    /// Enters code compiled for this instruction set.
    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        // SAFETY: a value of this type exists only where the processor has `D::ISA`.
        unsafe { D::enter(self, operation) }
    }
}

/// Product sums of four bytes; all else is the same on every Arm processor.
///
/// The intrinsics of the dedicated instructions are not stable, so they are in assembly.
pub(crate) trait Dot: Copy {
    const ISA: Isa;

    /// Runs `operation` in code compiled for [`Self::ISA`].
    ///
    /// # Safety
    /// The processor has [`Self::ISA`].
    unsafe fn enter<O: Operation>(token: Neon<Self>, operation: O) -> O::Output;

    /// Adds to each lane the product sum of its four signed bytes of `a` and of `b`, which has no -128.
    ///
    /// # Safety
    /// The processor has [`Self::ISA`].
    unsafe fn signed(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;

    /// [`Simd::dot_add`].
    ///
    /// # Safety
    /// The processor has [`Self::ISA`].
    #[inline(always)]
    unsafe fn mixed(sum: int32x4_t, w: uint8x16_t, y: int8x16_t, wide: bool) -> int32x4_t {
        // SAFETY: the caller's promise; NEON is part of every instruction set here.
        unsafe {
            if !wide {
                return Self::signed(sum, vreinterpretq_s8_u8(w), y);
            }
            // Σ w y = Σ (w - 128) y - Σ -128 y. The last does not depend on the weights, so that it is
            // computed once for all vectors that meet these activations.
            let offset = vdupq_n_s8(i8::MIN);
            let below = veorq_s8(vreinterpretq_s8_u8(w), offset);
            let excess = Self::signed(vdupq_n_s32(0), offset, y);
            vsubq_s32(Self::signed(sum, below, y), excess)
        }
    }
}

/// Every Arm processor of 64 bits: 16-bit products, added in pairs.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Dot for Pairs {
    const ISA: Isa = Isa::Neon;

    #[target_feature(enable = "neon")]
    unsafe fn enter<O: Operation>(token: Neon<Self>, operation: O) -> O::Output {
        operation.run(token)
    }

    #[inline(always)]
    unsafe fn signed(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            // 2 × 128 × 127 fits in 16 bits.
            vpadalq_s16(sum, vpaddq_s16(low, high))
        }
    }
}

/// Processors with `dotprod`, Armv8.2 and later.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod;

impl Dot for Dotprod {
    const ISA: Isa = Isa::NeonDot;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn enter<O: Operation>(token: Neon<Self>, operation: O) -> O::Output {
        operation.run(token)
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn signed(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: this function has the feature, and the instruction only changes its output.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// Processors with `i8mm`, Armv8.6 and later: products of unsigned with signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct I8mm;

impl Dot for I8mm {
    const ISA: Isa = Isa::NeonI8mm;

    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn enter<O: Operation>(token: Neon<Self>, operation: O) -> O::Output {
        operation.run(token)
    }

    #[inline(always)]
    unsafe fn signed(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's promise; `Isa::NeonI8mm` includes `Isa::NeonDot`.
        unsafe { Dotprod::signed(sum, a, b) }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn mixed(mut sum: int32x4_t, w: uint8x16_t, y: int8x16_t, _wide: bool) -> int32x4_t {
        // SAFETY: this function has the feature, and the instruction only changes its output.
        unsafe {
            asm!(
                "usdot {sum:v}.4s, {w:v}.16b, {y:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, y = in(vreg) y,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

impl<D: Dot> Simd for Neon<D> {
    const LANES: usize = 4;
    type F32 = float32x4_t;
    type I32 = uint32x4_t;

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        assert!(from.len() >= 4);
        // SAFETY: `self` proves NEON, and 16 bytes are there.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16]) -> float32x4_t {
        assert!(from.len() >= 4);
        // SAFETY: `self` proves NEON, and 8 bytes are there.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.as_ptr()))) }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8]) -> float32x4_t {
        assert!(from.len() >= 4);
        // SAFETY: `self` proves NEON, and 4 bytes are there; the read needs no alignment.
        unsafe {
            let word = from.as_ptr().cast::<u32>().read_unaligned();
            let halves = vmovl_s8(vcreate_s8(word.into()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves)))
        }
    }

    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8]) -> float32x4_t {
        assert!(from.len() >= 8);
        // SAFETY: `self` proves NEON, and 8 bytes are there.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from.as_ptr()))) }
    }

    #[inline(always)]
    fn load_bf16_bytes(self, from: &[u8]) -> float32x4_t {
        assert!(from.len() >= 8);
        // SAFETY: `self` proves NEON, and 8 bytes are there.
        unsafe {
            let halves = vreinterpret_u16_u8(vld1_u8(from.as_ptr()));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        }
    }

    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8]) -> float32x4_t {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves NEON, and 16 bytes are there.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(from.as_ptr())) }
    }

    #[inline(always)]
    fn store(self, x: float32x4_t, to: &mut [f32]) {
        assert!(to.len() >= 4);
        // SAFETY: `self` proves NEON, and there is room for 16 bytes.
        unsafe { vst1q_f32(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> uint32x4_t {
        assert!(from.len() >= 16);
        // SAFETY: `self` proves NEON, and 16 bytes are there.
        unsafe { vreinterpretq_u32_u8(vld1q_u8(from.as_ptr())) }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], places: uint32x4_t) -> uint32x4_t {
        // SAFETY: `self` proves NEON, and 16 bytes are there.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(places)))
        }
    }

    #[inline(always)]
    fn store_halves(self, x: uint32x4_t, to: &mut [u16]) {
        assert!(to.len() >= 8);
        // SAFETY: `self` proves NEON, and there is room for 16 bytes.
        unsafe { vst1q_u16(to.as_mut_ptr(), vreinterpretq_u16_u32(x)) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: prefetches do not fault, whatever the address, and change no contents.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) address.addr(), options(nomem, nostack, preserves_flags));
        }
    }

    super::intrinsics! {
        fn splat(self, x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_f32(c, a, b)
        }
        // Compared and selected, because `fmin` and `fmax` hand on a NaN of either side.
        fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
            vbslq_f32(vcltq_f32(a, b), a, b)
        }
        fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
            vbslq_f32(vcgtq_f32(a, b), a, b)
        }
        fn round(self, x: float32x4_t) -> float32x4_t { vrndnq_f32(x) }
        fn power_of_two(self, n: float32x4_t) -> float32x4_t {
            let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
        fn sum(self, x: float32x4_t) -> f32 { vaddvq_f32(x) }
        fn largest(self, x: float32x4_t) -> f32 { vmaxnmvq_f32(x) }
        fn splat_i32(self, x: i32) -> uint32x4_t { vdupq_n_u32(x as u32) }
        fn splat_bytes(self, bytes: [i8; 4]) -> uint32x4_t {
            vdupq_n_u32(u32::from_ne_bytes(bytes.map(|b| b as u8)))
        }
        fn dot_add(self, sum: uint32x4_t, weights: uint32x4_t, activations: uint32x4_t, wide: bool) -> uint32x4_t {
            let w = vreinterpretq_u8_u32(weights);
            let y = vreinterpretq_s8_u32(activations);
            vreinterpretq_u32_s32(D::mixed(vreinterpretq_s32_u32(sum), w, y, wide))
        }
        fn to_f32(self, x: uint32x4_t) -> float32x4_t { vcvtq_f32_s32(vreinterpretq_s32_u32(x)) }
        fn bits(self, x: float32x4_t) -> uint32x4_t { vreinterpretq_u32_f32(x) }
        fn with_bits(self, x: uint32x4_t) -> float32x4_t { vreinterpretq_f32_u32(x) }
        fn and(self, x: uint32x4_t, mask: u32) -> uint32x4_t { vandq_u32(x, vdupq_n_u32(mask)) }
        fn add_i32(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vaddq_u32(a, b) }
        fn or(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vorrq_u32(a, b) }
        fn xor(self, x: uint32x4_t, mask: u32) -> uint32x4_t { veorq_u32(x, vdupq_n_u32(mask)) }
        fn shift_left(self, x: uint32x4_t, bits: u32) -> uint32x4_t {
            vshlq_u32(x, vdupq_n_s32(bits as i32))
        }
        // Shifts by variables go to the left; a negative count turns them around.
        fn shift_right(self, x: uint32x4_t, bits: u32) -> uint32x4_t {
            vshlq_u32(x, vdupq_n_s32(-(bits as i32)))
        }
        fn shift_right_signed(self, x: uint32x4_t, bits: u32) -> uint32x4_t {
            let shifted = vshlq_s32(vreinterpretq_s32_u32(x), vdupq_n_s32(-(bits as i32)));
            vreinterpretq_u32_s32(shifted)
        }
    }
}
