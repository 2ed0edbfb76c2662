//! The vector traits that every kernel is written over, and one thin shell for each instruction set.
//!
//! A shell's value (`Avx2`, `Avx512`, `Neon`) can only be had on a processor that has the instructions, so
//! its methods are safe to call. All of them are `#[inline(always)]`: they only become single
//! instructions inside a function compiled for that instruction set, which is what
//! [`Token::run`] enters.

use crate::Isa;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
// Only x86-64 has tiles so far; elsewhere nothing gets to what is marked like this.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) mod tiles;

pub(crate) use scalar::Scalar;

use tiles::TileUnit;

/// A kernel with its arguments, to be compiled for each instruction set.
///
/// Implementations of `run` must be `#[inline(always)]`, and so must what they call, and should
/// keep closures out of inner loops: a closure does not inherit the instruction set.
pub(crate) trait Operation {
    /// What the kernel returns.
    type Output;
    /// Computes with the vectors of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A kernel that also needs tiles; the same holds for its `run`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) trait TiledOperation {
    /// Computes with the vectors of `simd` and the tiles of `unit`.
    fn run<S: Simd, U: TileUnit>(self, simd: S, unit: U);
}

/// A tiled kernel together with the tiles it uses.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
struct WithTiles<O, U> {
    operation: O,
    unit: U,
}

impl<O: TiledOperation, U: TileUnit> Operation for WithTiles<O, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.operation.run(simd, self.unit);
    }
}

/// Vectors of [`Simd::LANES`] floats, or of as many groups of four bytes.
pub(crate) trait Simd: Copy {
    /// Floats in a vector; divides `kv_cache::ALIGN` and `formats::PANEL_ROWS`.
    const LANES: usize;
    /// Whether kernels compute products in integers where they may; without, they follow the definition.
    const INTEGERS: bool = true;
    /// `LANES` floats.
    type F32: Copy;
    /// `LANES` 32-bit integers, each also seen as four bytes.
    type I32: Copy;

    fn splat(self, x: f32) -> Self::F32;
    /// Loads the first `LANES` of `from`.
    fn load(self, from: &[f32]) -> Self::F32;
    /// Loads the first `LANES` half-precision floats of `from`, given as bits.
    fn load_f16(self, from: &[u16]) -> Self::F32;
    /// Loads `LANES` integers of `from`.
    fn load_i8(self, from: &[i8]) -> Self::F32;
    /// The same as [`load_f16`](Self::load_f16) from little-endian bytes.
    fn load_f16_bytes(self, from: &[u8]) -> Self::F32;
    /// Loads `LANES` bfloat16 from little-endian bytes.
    fn load_bf16_bytes(self, from: &[u8]) -> Self::F32;
    /// Loads `LANES` floats from little-endian bytes.
    fn load_f32_bytes(self, from: &[u8]) -> Self::F32;
    fn store(self, x: Self::F32, to: &mut [f32]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger of each pair; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The nearest integers.
    fn round(self, x: Self::F32) -> Self::F32;
    /// `2^n` for integers in `-127..=127`; `2^-127` counts as 0.
    fn power_of_two(self, n: Self::F32) -> Self::F32;
    /// The sum of the lanes.
    fn sum(self, x: Self::F32) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::F32) -> f32;

    /// Hints that the cache line at `address`, which may be any, will be read a while later: into the second cache, which can
    /// wait for more lines at once than the first.
    fn prefetch(self, address: *const u8);

    fn splat_i32(self, x: i32) -> Self::I32;
    /// Loads `4 * LANES` bytes.
    fn load_bytes(self, from: &[u8]) -> Self::I32;
    /// Stores the low, then the high half of each lane: `2 * LANES` numbers.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn store_halves(self, x: Self::I32, to: &mut [u16]);
    /// The same four bytes in every lane.
    fn splat_bytes(self, bytes: [i8; 4]) -> Self::I32;
    /// Adds to each lane the product sum of its four unsigned weights and four signed activations.
    /// Weights are below 128 unless `wide`; activations are not -128.
    fn dot_add(
        self,
        sum: Self::I32,
        weights: Self::I32,
        activations: Self::I32,
        wide: bool,
    ) -> Self::I32;
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// The bits of each float.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn bits(self, x: Self::F32) -> Self::I32;
    /// The floats of these bits.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn with_bits(self, x: Self::I32) -> Self::F32;
    /// Adds integers, wrapping.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Ands each lane with `mask`.
    fn and(self, x: Self::I32, mask: u32) -> Self::I32;
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Flips the bits of `mask` in each lane.
    fn xor(self, x: Self::I32, mask: u32) -> Self::I32;
    /// Takes each byte, which is below 16, as a place in `table`.
    fn look_up(self, table: &[u8; 16], places: Self::I32) -> Self::I32;
    /// Shifts each lane left by `bits`, below 32.
    fn shift_left(self, x: Self::I32, bits: u32) -> Self::I32;
    /// Shifts each lane right by `bits`, below 32, and fills with zeros.
    fn shift_right(self, x: Self::I32, bits: u32) -> Self::I32;
    /// The same, filling with the sign.
    fn shift_right_signed(self, x: Self::I32, bits: u32) -> Self::I32;

    /// `e^x` to a few units in the last place; inputs are clamped to ±88, below which it is 0.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        // x last: min and max then hand a NaN on.
        let x = self.min(self.splat(88.0), self.max(self.splat(-88.0), x));
        // e^x = 2^n e^r with |r| <= ln 2 / 2; ln 2 in two parts keeps r exact (Cody and Waite).
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        // Cephes expf: e^r = 1 + r + r² p(r).
        let mut p = self.splat(1.987_569_1e-4);
        for coefficient in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = self.mul_add(p, r, self.splat(coefficient));
        }
        let p = self.mul_add(self.mul(r, r), p, self.add(r, self.splat(1.0)));
        self.mul(p, self.power_of_two(n))
    }
}

/// Declares a method of intrinsics that the token proves to be available.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! intrinsics {
    ($(fn $name:ident($self:ident $(, $arg:ident: $type:ty)*) $(-> $out:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) $(-> $out)? {
            // SAFETY: `self` proves the instruction set, and these take no addresses.
            unsafe { $body }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use intrinsics;

/// An instruction set this processor was seen to have.
#[derive(Clone, Copy)]
pub(crate) enum Token {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2<avx2::Pairs>),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(avx2::Avx2<avx2::Vnni>),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon<neon::Pairs>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(neon::Neon<neon::Dotprod>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(neon::Neon<neon::I8mm>),
    /// The vectors of another instruction set with [`tiles::Model`].
    #[cfg(all(test, target_arch = "x86_64"))]
    Modelled(Isa),
}

impl Token {
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => avx2::Avx2::new().map(Self::Avx2Vnni),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::Amx::new().map(Self::Amx),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx2Vnni | Isa::Avx512 | Isa::Amx => None,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::Neon::new().map(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => neon::Neon::new().map(Self::NeonDot),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => neon::Neon::new().map(Self::NeonI8mm),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => None,
        }
    }

    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        match self {
            Self::Scalar(token) => operation.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => token.run(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni(token) => token.run(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => token.run(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(token) => token.run(operation),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => token.run(operation),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot(token) => token.run(operation),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(token) => token.run(operation),
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Modelled(isa) => modelled(isa).run(operation),
        }
    }

    /// Says whether [`run_tiled`](Self::run_tiled) may be called.
    pub(crate) fn has_tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => true,
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Modelled(_) => true,
            _ => false,
        }
    }

    /// Runs a kernel that needs tiles.
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn run_tiled<O: TiledOperation>(self, operation: O) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(token) => token.run_tiled(operation),
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Modelled(isa) => modelled(isa).run(WithTiles {
                operation,
                unit: tiles::Model,
            }),
            _ => {
                drop(operation);
                panic!("no tiles in this instruction set")
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
fn modelled(isa: Isa) -> Token {
    Token::new(isa).expect("the test chose one that is there")
}

#[cfg(test)]
impl Token {
    /// Returns tiles that compute by their definition, with vectors of each width, the widest last. Only x86-64 has tiles.
    pub(crate) fn all_modelled() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let widths = [Isa::Avx2, Isa::Avx512].into_iter();
            let available = widths.filter(|isa| isa.is_available());
            available.map(Self::Modelled).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
