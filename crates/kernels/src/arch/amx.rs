//! AVX-512 with the tiles of AMX: 8-bit products of 16 rows with up to 16 tokens in one instruction.
//!
//! Rust has no stable intrinsics for AMX, so these are five instructions in assembly. The state of the tiles is 8 KiB
//! that the kernel keeps for each thread; it wants to be asked first, and it and the processor pay nothing for a thread
//! whose tiles are released.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::avx512::Avx512;
use super::tiles::{Line, Shape, TILE_ROWS, TOKEN_BYTES, TileUnit, Tiles, define};
use super::{Operation, TiledOperation, WithTiles};
use crate::isa::AmxRefusal;

/// Proof that the processor has AVX-512 and AMX with 8-bit products, and that this process may use them.
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
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    crate::Isa::Avx512.is_available()
        && __cpuid_count(0, 0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
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

/// Multiplies codes of all kinds in every shape the products use; some 50,000 multiplications.
fn agrees_with_definition(unit: Unit) -> bool {
    let mut state = 1_u32;
    let mut code = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut activations = [0_i8; TILE_ROWS * TOKEN_BYTES];
    activations.fill_with(|| code() as i8);
    let mut weights = [Line::ZERO; 8];
    weights.as_mut_slice().fill_with(|| {
        let mut line = Line::ZERO;
        line.0.fill_with(&mut code);
        line
    });
    let mut tiles = unit.tiles(Shape {
        tokens: 1,
        groups: 8,
    });
    for groups in [4, 8] {
        for tokens in [1, 2, 4, 8, 16] {
            let shape = Shape { tokens, groups };
            let [mut sums, mut expected] = [[Line([0xaa; 64]); TILE_ROWS]; 2];
            tiles.reshape(shape);
            tiles.multiply(&activations, &weights, &mut sums);
            define(shape, &activations, &weights, &mut expected);
            if sums.map(|line| line.0) != expected.map(|line| line.0) {
                return false;
            }
        }
    }
    true
}

/// Proof that there are tiles this process may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit(());

impl TileUnit for Unit {
    type Tiles = AmxTiles;

    /// # Panics
    /// If this thread has others: there is one configuration a thread.
    fn tiles(self, shape: Shape) -> AmxTiles {
        assert!(!TAKEN.replace(true), "the tiles of this thread are taken");
        let mut tiles = AmxTiles {
            shape,
            thread: PhantomData,
        };
        tiles.configure();
        tiles
    }
}

/// The tiles of this thread; 0 holds sums, 1 activations and 2 weights.
pub(crate) struct AmxTiles {
    shape: Shape,
    /// Tiles belong to the thread that configured them.
    thread: PhantomData<*const ()>,
}

thread_local! {
    /// Somebody holds the [`AmxTiles`] of this thread.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// What `ldtilecfg` reads.
#[derive(Default)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl AmxTiles {
    fn configure(&mut self) {
        let Shape { tokens, groups } = self.shape;
        assert!((1..=TILE_ROWS).contains(&tokens) && (1..=8).contains(&groups));
        let mut config = Config {
            palette: 1,
            ..Config::default()
        };
        let tiles = [(tokens, 64), (tokens, 4 * groups), (groups, 64)];
        for (tile, (rows, row_bytes)) in tiles.into_iter().enumerate() {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = row_bytes as u16;
        }
        // SAFETY: only `Unit` makes these values, so the instruction is there and permitted; it reads the 64 bytes of
        // `config`, and rows and bytes are within those of palette 1, as just asserted.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags));
        }
    }
}

impl Tiles for AmxTiles {
    fn reshape(&mut self, shape: Shape) {
        if shape != self.shape {
            self.shape = shape;
            self.configure();
        }
    }

    #[inline(always)]
    fn multiply(&mut self, activations: &[i8], weights: &[Line], sums: &mut [Line]) {
        let Shape { tokens, groups } = self.shape;
        assert!(activations.len() >= (tokens - 1) * TOKEN_BYTES + 4 * groups);
        assert!(weights.len() >= groups && sums.len() >= tokens);
        // SAFETY: the tiles of this thread are configured for `shape`, for which there are enough activations, weights
        // and sums, as just asserted. Nothing else uses tiles, so no tile is read before it is written here.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm1, [{activations} + {token_bytes}]",
                "tileloadd tmm2, [{weights} + {line_bytes}]",
                "tdpbsud tmm0, tmm1, tmm2",
                "tilestored [{sums} + {line_bytes}], tmm0",
                activations = in(reg) activations.as_ptr(),
                token_bytes = in(reg) TOKEN_BYTES,
                weights = in(reg) weights.as_ptr(),
                line_bytes = in(reg) size_of::<Line>(),
                sums = in(reg) sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

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
