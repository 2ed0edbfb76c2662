use std::ops::Range;

use crate::arch::tiles::{SIDE, STEP_COLS, TILE_ROWS, Tile};
use crate::arch::{Operation, Simd};
use crate::pool::Pool;

/// Activations rounded to bfloat16, ties to even, in tiles.
///
/// For each block of columns, each 32 tokens and each step there are two tiles; what there are no tokens for is zero.
#[derive(Default)]
pub(crate) struct Activations {
    steps: usize,
    /// Of a block of columns, whole blocks of every format.
    block_steps: usize,
    squares: usize,
    tiles: Vec<[Tile; 2]>,
}

impl Activations {
    /// Rounds `x`, rows of `cols`. Memory is kept for the next call.
    pub(crate) fn round(&mut self, pool: &Pool, isa: crate::arch::Token, x: &[f32], cols: usize) {
        self.steps = cols / STEP_COLS;
        self.squares = (x.len() / cols).div_ceil(SIDE);
        let squares = self.squares;
        // As many as stay in the first cache; half as many where the next ones have to come from memory sooner.
        self.block_steps = if squares > FEW_SQUARES { 16 } else { 8 };
        let steps = self.block_steps;
        self.tiles.resize(self.steps * squares, [Tile::ZERO; 2]);
        pool.for_each_chunk(&mut self.tiles, steps * squares, |_, block, tiles| {
            let first = block * steps * STEP_COLS;
            isa.run(RoundBlock {
                x,
                cols,
                range: first..first + tiles.len() / squares * STEP_COLS,
                tiles,
            });
        });
    }

    /// Returns the most steps of a block of columns.
    pub(super) fn block_steps(&self) -> usize {
        self.block_steps
    }

    /// Returns the number of blocks of columns.
    pub(super) fn blocks(&self) -> usize {
        self.steps.div_ceil(self.block_steps)
    }

    /// Returns the steps of a block: fewer in the last.
    pub(super) fn steps(&self, block: usize) -> Range<usize> {
        let first = block * self.block_steps;
        first..self.steps.min(first + self.block_steps)
    }

    /// Returns the steps of a block for tokens `32 × square..`.
    pub(super) fn square(&self, block: usize, square: usize) -> &[[Tile; 2]] {
        let steps = self.steps(block);
        &self.tiles[steps.start * self.squares + square * steps.len()..][..steps.len()]
    }
}

/// Most squares of tokens that are done before the next weights have come from memory.
const FEW_SQUARES: usize = 4;

/// Rounds a range of columns of all tokens.
struct RoundBlock<'a> {
    x: &'a [f32],
    cols: usize,
    range: Range<usize>,
    tiles: &'a mut [[Tile; 2]],
}

impl Operation for RoundBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let steps = self.range.len() / STEP_COLS;
        let mut rows = self.x.chunks_exact(self.cols);
        for tiles in self.tiles.chunks_exact_mut(steps) {
            for i in 0..SIDE {
                let (tile, row) = (i / TILE_ROWS, i % TILE_ROWS);
                let Some(x) = rows.next() else {
                    tiles.iter_mut().for_each(|step| step[tile].0[row].fill(0));
                    continue;
                };
                let x = x[self.range.clone()].as_chunks::<STEP_COLS>().0;
                for (step, x) in tiles.iter_mut().zip(x) {
                    for (to, &x) in step[tile].0[row].iter_mut().zip(x) {
                        *to = nearest(x);
                    }
                }
            }
        }
    }
}

/// Returns the bits of the nearest bfloat16, ties to even.
#[inline(always)]
pub(super) fn nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    let odd = bits >> 16 & 1;
    let rounded = (bits.wrapping_add(0x7fff + odd) >> 16) as u16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nearest_is_that_of_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            let expected = half::bf16::from_f32(x);
            prop_assert!(nearest(x) == expected.to_bits() || x.is_nan() && expected.is_nan());
        }
    }
}
