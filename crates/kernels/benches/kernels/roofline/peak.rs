#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "no other processor's peak is known yet")
)]

use shoal_kernels::Isa;

/// A loop of nothing but multiply-adds on registers: the most a core can do with an instruction set.
pub(crate) struct Peak {
    /// Runs [`ROUNDS`] rounds.
    run: fn(),
    /// Operations in a round.
    round: usize,
}

/// Sums in flight: more than the latency times the units of any core, fewer than there are registers.
const SUMS: usize = 12;

/// About 10 ms of work.
const ROUNDS: usize = 1 << 20;

impl Peak {
    /// The peak of sums of products of 8-bit integers, with the instructions the kernels use; `None` if unknown.
    pub(crate) fn of_bytes(isa: Isa) -> Option<Self> {
        match isa {
            isa if !isa.is_available() => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Some(Self::new(x86_64::dot_avx512, 2 * 64)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => Some(Self::new(x86_64::dot_avx2_vnni, 2 * 32)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(Self::new(x86_64::dot_avx2, 2 * 32)),
            _ => None,
        }
    }

    /// The peak of fused multiply-adds of `f32`; `None` if unknown.
    pub(crate) fn of_floats(isa: Isa) -> Option<Self> {
        match isa {
            isa if !isa.is_available() => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => Some(Self::new(x86_64::multiply_add_avx512, 2 * 16)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Vnni => Some(Self::new(x86_64::multiply_add_avx2, 2 * 8)),
            _ => None,
        }
    }

    /// `instruction` is how many operations one instruction, or one chain of them, does.
    fn new(run: fn(), instruction: usize) -> Self {
        Self {
            run,
            round: SUMS * instruction,
        }
    }

    pub(crate) fn run(&self) {
        (self.run)();
    }

    /// How many operations a run does.
    pub(crate) fn operations(&self) -> usize {
        ROUNDS * self.round
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{ROUNDS, SUMS};

    /// Defines a safe function that runs `$next` over all sums, [`ROUNDS`] times, compiled for `$features`.
    macro_rules! peak {
        ($name:ident, $features:literal, $start:expr, $next:expr) => {
            pub(super) fn $name() {
                #[target_feature(enable = $features)]
                fn rounds() {
                    // Opaque: equal sums would be computed once, and known ones before the program runs.
                    let (w, y) = (black_box($start), black_box($start));
                    let mut sums = black_box([$start; SUMS]);
                    for _ in 0..ROUNDS {
                        for sum in &mut sums {
                            *sum = $next(*sum, w, y);
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: chosen by an instruction set that the processor was seen to have.
                unsafe { rounds() };
            }
        };
    }

    peak!(
        dot_avx512,
        "avx512f,avx512bw,avx512vl,avx512vnni",
        _mm512_set1_epi32(0x0101_0101),
        _mm512_dpbusd_epi32
    );
    peak!(
        dot_avx2_vnni,
        "avx2,avxvnni",
        _mm256_set1_epi32(0x0101_0101),
        _mm256_dpbusd_avx_epi32
    );
    peak!(
        multiply_add_avx512,
        "avx512f",
        _mm512_set1_ps(0.5),
        |sum, w, y| _mm512_fmadd_ps(w, y, sum)
    );
    peak!(
        multiply_add_avx2,
        "avx2,fma",
        _mm256_set1_ps(0.5),
        |sum, w, y| _mm256_fmadd_ps(w, y, sum)
    );
    // Without the dot instruction of VNNI: products in 16 bits, sums of pairs in 32, and the addition. The sum doubles as
    // the weights, so that products are not the same each round and computed once.
    peak!(
        dot_avx2,
        "avx2",
        _mm256_set1_epi32(0x0101_0101),
        |sum, ones, y| {
            let pairs = _mm256_maddubs_epi16(sum, y);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
        }
    );
}
