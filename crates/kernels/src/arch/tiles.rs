//! Products of tiles of bfloat16, over which the products of many tokens are written ([`crate::ops::linear`]).
//!
//! One operation is all there is but a change of layout, so that a processor's tiles are a few instructions and [`define`] says in plain Rust
//! what they compute. Tests run the products over that definition on every x86-64 machine; a processor's tiles are
//! compared with it before they are used.

use super::Simd;

/// Rows of a tile; also the floats of a row of sums, and the pairs of a row of operands.
pub(crate) const TILE_ROWS: usize = 16;

/// Columns that one step multiplies.
pub(crate) const STEP_COLS: usize = 2 * TILE_ROWS;

/// Operands of a step, as the bits of bfloat16.
///
/// Of activations, row `t` is a token and holds columns `0..32`. Of weights, row `k` holds columns `2k` and `2k + 1` of weight row 0,
/// then of weight row 1, and so on.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [[u16; STEP_COLS]; TILE_ROWS]);

impl Tile {
    pub(crate) const ZERO: Self = Self([[0; STEP_COLS]; TILE_ROWS]);
}

/// Sums of 16 tokens, each with 16 weight rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[f32; TILE_ROWS]; TILE_ROWS]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0.0; TILE_ROWS]; TILE_ROWS]);
}

/// What two tiles of tokens give with two of weight rows: each operand is loaded once for two products, and four sums under way
/// hide the time of one.
pub(crate) type Square = [[Sums; 2]; 2];

/// Rows of a [`Square`] on either side.
pub(crate) const SIDE: usize = 2 * TILE_ROWS;

pub(crate) const ZERO: Square = [[Sums::ZERO; 2]; 2];

/// Rounds to bfloat16, ties away from zero: `even` to the low, `odd` to the high halves.
#[inline(always)]
pub(crate) fn pairs<S: Simd>(s: S, even: S::F32, odd: S::F32) -> S::I32 {
    let tie = s.splat_i32(0x8000);
    let even = s.shift_right(s.add_i32(s.bits(even), tie), 16);
    let odd = s.and(s.add_i32(s.bits(odd), tie), 0xffff_0000);
    s.or(even, odd)
}

/// Something that has tiles, as a value that proves it.
pub(crate) trait TileUnit: Copy {
    /// Its tiles, which a thread holds while it uses them and gives back when they are dropped.
    type Tiles: Tiles;
    /// Takes the tiles of this thread.
    fn tiles(self) -> Self::Tiles;
}

/// The tiles of a thread.
pub(crate) trait Tiles {
    /// Sets `sums[t][w]` to what `start` says, and adds `activations[step][t] × weights[step][w]` to it, step by step, rounded as
    /// [`define`] rounds. What lies behind `sums`, where nothing need be, is asked for meanwhile, for 16 steps a square.
    ///
    /// # Panics
    /// If there are no steps, or not as many of both.
    fn multiply(
        &mut self,
        activations: &[[Tile; 2]],
        weights: &[[Tile; 2]],
        start: Start,
        sums: &mut Square,
    );

    /// Returns weights, of which each row lies in a row of `rows`, as a [`Tile`] of weights has them.
    fn turned(&self, rows: &Tile) -> Tile;
}

/// What the first products are added to.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Nothing: what was there before does not count.
    Zero,
    /// The sums of earlier steps.
    Sums,
}

/// The definition of [`Tiles::multiply`]: that of the instruction `TDPBF16PS` in Intel's manual, step by step.
#[inline(always)]
pub(crate) fn define(
    activations: &[[Tile; 2]],
    weights: &[[Tile; 2]],
    start: Start,
    sums: &mut Square,
) {
    assert!(activations.len() == weights.len() && !weights.is_empty());
    if let Start::Zero = start {
        *sums = ZERO;
    }
    for (t, sums) in sums.iter_mut().enumerate() {
        for (w, sums) in sums.iter_mut().enumerate() {
            for (activations, weights) in activations.iter().zip(weights) {
                for (sums, activations) in sums.0.iter_mut().zip(&activations[t].0) {
                    add_products(activations, &weights[w], sums);
                }
            }
        }
    }
}

/// Even and odd columns are summed apart, then together, then with what was there. Numbers below the smallest normal one are 0.
#[inline(always)]
fn add_products(activations: &[u16; STEP_COLS], weights: &Tile, sums: &mut [f32; TILE_ROWS]) {
    let mut parts = [[0.0_f32; TILE_ROWS]; 2];
    for (activations, weights) in activations.as_chunks::<2>().0.iter().zip(&weights.0) {
        for (r, weights) in weights.as_chunks::<2>().0.iter().enumerate() {
            for i in 0..2 {
                parts[i][r] = normal(widen(activations[i]).mul_add(widen(weights[i]), parts[i][r]));
            }
        }
    }
    for (r, sum) in sums.iter_mut().enumerate() {
        *sum = normal(*sum + normal(parts[0][r] + parts[1][r]));
    }
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    normal(f32::from_bits(u32::from(bits) << 16))
}

#[inline(always)]
fn normal(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0_f32.copysign(x)
    } else {
        x
    }
}

/// The definition as a unit of its own.
#[cfg(all(test, target_arch = "x86_64"))]
#[derive(Clone, Copy)]
pub(crate) struct Model;

#[cfg(all(test, target_arch = "x86_64"))]
impl TileUnit for Model {
    type Tiles = Self;

    fn tiles(self) -> Self {
        self
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
impl Tiles for Model {
    #[inline(always)]
    fn multiply(
        &mut self,
        activations: &[[Tile; 2]],
        weights: &[[Tile; 2]],
        start: Start,
        sums: &mut Square,
    ) {
        define(activations, weights, start, sums);
    }

    #[inline(always)]
    fn turned(&self, rows: &Tile) -> Tile {
        let mut turned = Tile::ZERO;
        for (r, row) in rows.0.iter().enumerate() {
            for (to, &pair) in turned.0.iter_mut().zip(row.as_chunks::<2>().0) {
                to.as_chunks_mut().0[r] = pair;
            }
        }
        turned
    }
}
