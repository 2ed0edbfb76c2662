//! AVX-512 with the tiles of AMX: bfloat16 products of 16 rows with 16 tokens in one instruction.
//!
//! Rust has no stable intrinsics for AMX, so these are a few instructions in assembly. The state of the tiles is 8 KiB
//! that the kernel keeps for each thread; it wants to be asked first, and it and the processor pay nothing for a thread
//! whose tiles are released.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, _mm512_load_si512, _mm512_loadu_si512, _mm512_permutex2var_epi32,
    _mm512_setzero_si512, _mm512_store_si512,
};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::avx512::Avx512;
use super::tiles::{Square, Start, Sums, TILE_ROWS, Tile, TileUnit, Tiles, ZERO, define};
use super::{Operation, TiledOperation, WithTiles};
use crate::isa::AmxRefusal;

/// Proof that the processor has AVX-512 and AMX with bfloat16 products, and that this process may use them.
#[derive(Clone, Copy)]
pub(crate) struct Amx {
    simd: Avx512,
    unit: Unit,
}

impl Amx {
    pub(crate) fn new() -> Option<Self> {
        let simd = Avx512::new()?;
        let unit = check().as_ref().ok().copied()?;
        Some(Self { simd, unit })
    }

    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        self.simd.run(operation)
    }

    pub(crate) fn run_tiled<O: TiledOperation>(self, operation: O) {
        self.simd.run(WithTiles {
            operation,
            unit: self.unit,
        });
    }
}

/// Says what keeps this process from using AMX.
pub(crate) fn refusal() -> Option<AmxRefusal> {
    check().as_ref().err().copied()
}

/// Asks the processor, then the kernel, then compares products with their definition: once for this process.
fn check() -> &'static Result<Unit, AmxRefusal> {
    static CHECKED: OnceLock<Result<Unit, AmxRefusal>> = OnceLock::new();
    CHECKED.get_or_init(|| {
        if !has_instructions() {
            return Err(AmxRefusal::Processor);
        }
        let checked = permit().and_then(|unit| {
            if agrees_with_definition(unit) {
                Ok(unit)
            } else {
                Err(AmxRefusal::WrongProducts)
            }
        });
        match checked {
            Ok(_) => tracing::debug!("amx permitted and checked"),
            Err(error) => tracing::warn!(%error, "amx not used"),
        }
        checked
    })
}

fn has_instructions() -> bool {
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    crate::Isa::Avx512.is_available()
        && __cpuid_count(0, 0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
}

/// Asks the kernel for the tiles, for all threads of this process.
#[cfg(target_os = "linux")]
fn permit() -> Result<Unit, AmxRefusal> {
    // https://docs.kernel.org/arch/x86/xstate.html
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes two numbers and no addresses.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    if answer == 0 {
        Ok(Unit(()))
    } else {
        Err(AmxRefusal::Kernel)
    }
}

#[cfg(not(target_os = "linux"))]
fn permit() -> Result<Unit, AmxRefusal> {
    Err(AmxRefusal::Kernel)
}

/// Multiplies numbers of about 1 with such, and with the smallest ones, whose products count as zero; some 130,000 multiplications.
fn agrees_with_definition(unit: Unit) -> bool {
    const ABOUT_1: u16 = 0x3e00;
    const SMALLEST: u16 = 0;
    let mut state = 1_u32;
    let mut tile = |exponent: u16| {
        let mut tile = Tile::ZERO;
        tile.0.as_flattened_mut().fill_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Any sign and mantissa, and one of four exponents.
            (state >> 16) as u16 & 0x81ff | exponent
        });
        tile
    };
    let mut operands = |exponent| [0; 2].map(|_| [tile(exponent), tile(exponent)]);
    let mut tiles = unit.tiles();
    [ABOUT_1, SMALLEST].into_iter().all(|exponent| {
        let (activations, weights) = (operands(exponent), operands(ABOUT_1));
        let [mut sums, mut expected] = [[[Sums([[f32::NAN; TILE_ROWS]; TILE_ROWS]); 2]; 2]; 2];
        for start in [Start::Zero, Start::Sums] {
            tiles.multiply(&activations, &weights, start, &mut sums);
            define(&activations, &weights, start, &mut expected);
        }
        let bits = |square: &Square| {
            square.map(|row| row.map(|sums| sums.0.map(|row| row.map(f32::to_bits))))
        };
        bits(&sums) == bits(&expected)
    })
}

/// Proof that there are AVX-512 and tiles that this process may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit(());

impl TileUnit for Unit {
    type Tiles = AmxTiles;

    /// # Panics
    /// If this thread has others: there is one configuration a thread.
    fn tiles(self) -> AmxTiles {
        assert!(!TAKEN.replace(true), "the tiles of this thread are taken");
        let config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        // SAFETY: a `Unit` proves that the instruction is there and permitted; it reads the 64 bytes of `config`, which gives each
        // of the eight tiles what palette 1 has.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags));
        }
        AmxTiles {
            thread: PhantomData,
        }
    }
}

/// The tiles of this thread.
pub(crate) struct AmxTiles {
    /// Tiles belong to the thread that configured them.
    thread: PhantomData<*const ()>,
}

thread_local! {
    /// Somebody holds the [`AmxTiles`] of this thread.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles for AmxTiles {
    #[inline(always)]
    fn multiply(
        &mut self,
        activations: &[[Tile; 2]],
        weights: &[[Tile; 2]],
        start: Start,
        sums: &mut Square,
    ) {
        static NOTHING: Square = ZERO;
        assert!(activations.len() == weights.len() && !weights.is_empty());
        let sums: *mut Square = sums;
        let start = match start {
            Start::Zero => &raw const NOTHING,
            Start::Sums => sums.cast_const(),
        };
        // SAFETY: the tiles of this thread are configured, whole, as whoever holds this value has seen to. Four are loaded from
        // `start`, then two of each operand a step for as many steps as there are, at least one, and the four are stored to
        // `sums`. What is asked for behind `sums` is not read.
        unsafe {
            asm!(
                "tileloadd tmm0, [{start} + {row}]",
                "tileloadd tmm1, [{start} + {row} + 1024]",
                "tileloadd tmm2, [{start} + {row} + 2048]",
                "tileloadd tmm3, [{start} + {row} + 3072]",
                "2:",
                // Activations come from the second cache, and would drive the weights out of the first.
                "tileloaddt1 tmm4, [{activations} + {row}]",
                "tileloadd tmm6, [{weights} + {row}]",
                "prefetcht0 [{next}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights} + {row} + 1024]",
                "prefetcht0 [{next} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{activations} + {row} + 1024]",
                "prefetcht0 [{next} + 128]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht0 [{next} + 192]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {activations}, 2048",
                "add {weights}, 2048",
                "add {next}, 256",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 3072], tmm3",
                activations = inout(reg) activations.as_ptr() => _,
                weights = inout(reg) weights.as_ptr() => _,
                steps = inout(reg) weights.len() => _,
                next = inout(reg) sums.wrapping_add(1) => _,
                start = in(reg) start,
                sums = in(reg) sums,
                row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn turned(&self, rows: &Tile) -> Tile {
        let mut turned = Tile::ZERO;
        // SAFETY: a `Unit`, of which these tiles were made, proves AVX-512. What is loaded and stored has 64 bytes, and in tiles lies
        // at multiples of them.
        unsafe {
            let mut lines = [_mm512_setzero_si512(); TILE_ROWS];
            for (line, row) in lines.iter_mut().zip(&rows.0) {
                *line = _mm512_load_si512(row.as_ptr().cast());
            }
            for (bit, places) in SWAPS.iter().enumerate() {
                let upper = _mm512_loadu_si512(places[0].as_ptr().cast());
                let lower = _mm512_loadu_si512(places[1].as_ptr().cast());
                for i in (0..TILE_ROWS).filter(|i| i & 1 << bit == 0) {
                    let (a, b) = (lines[i], lines[i | 1 << bit]);
                    lines[i] = _mm512_permutex2var_epi32(a, upper, b);
                    lines[i | 1 << bit] = _mm512_permutex2var_epi32(a, lower, b);
                }
            }
            for (to, line) in turned.0.iter_mut().zip(lines) {
                _mm512_store_si512(to.as_mut_ptr().cast(), line);
            }
        }
        turned
    }
}

/// A transposition, one bit of the numbers of rows and columns at a time: for each bit, what the row without it and the row with it
/// take from the two; from `TILE_ROWS` on, from the latter.
static SWAPS: [[[u32; TILE_ROWS]; 2]; 4] = {
    let mut swaps = [[[0; TILE_ROWS]; 2]; 4];
    let mut i = 0;
    while i < 4 * TILE_ROWS {
        let (bit, column) = (i / TILE_ROWS, i % TILE_ROWS);
        let mask = 1 << bit;
        let from = if column & mask == 0 { 0 } else { TILE_ROWS };
        swaps[bit][0][column] = (from + (column & !mask)) as u32;
        swaps[bit][1][column] = (from + (column | mask)) as u32;
        i += 1;
    }
    swaps
};

impl Drop for AmxTiles {
    fn drop(&mut self) {
        TAKEN.set(false);
        // SAFETY: only `Unit` makes these values, so the instruction is there; no value of this thread's tiles is used
        // after this one.
        unsafe {
            asm!("tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags));
        }
    }
}
