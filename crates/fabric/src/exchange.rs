//! What values travel as when they are summed: as they are, or as blocks of 8-bit integers over links that are slow.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use crate::reduce::{Arithmetic, Element, Reduce, fold};

/// What [`all_reduce_sum`](crate::Group::all_reduce_sum) sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchange {
    /// The values themselves: the sum is that of `f32` in rank order.
    #[default]
    F32,
    /// Blocks of 32 values as 8-bit integers with one scale, in 28 % of the bytes, for links slower than the ranks compute.
    ///
    /// The terms of all ranks are rounded, and so is their sum: of each, a value is off by at most the largest magnitude in
    /// its block ÷ 254. A block whose values are all below 4e-37 becomes zero, one that holds a value that is not finite
    /// becomes not a number as a whole. All ranks get the same bits.
    Q8,
}

impl Exchange {
    /// Every exchange.
    pub const ALL: [Self; 2] = [Self::F32, Self::Q8];

    /// Values of a block.
    pub const BLOCK_LEN: usize = 32;

    /// Returns the exchange of a name, such as `q8`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|exchange| exchange.to_string() == name)
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Q8 => "q8",
        })
    }
}

/// Values that share a scale.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Block {
    scale: f32,
    values: [i8; BLOCK_LEN],
}

/// Rounds `values` to blocks, the last of which may be filled with zeros.
pub(crate) fn pack(values: &[f32], blocks: &mut Vec<Block>) {
    blocks.clear();
    let (whole, rest) = values.as_chunks::<BLOCK_LEN>();
    blocks.extend(whole.iter().map(Block::round));
    if !rest.is_empty() {
        let mut last = [0.0; BLOCK_LEN];
        last[..rest.len()].copy_from_slice(rest);
        blocks.push(Block::round(&last));
    }
}

/// Replaces `values` by those of `blocks`.
pub(crate) fn unpack(blocks: &[Block], values: &mut [f32]) {
    for (block, values) in blocks.iter().zip(values.chunks_mut(BLOCK_LEN)) {
        values.copy_from_slice(&block.wide()[..values.len()]);
    }
}

impl Block {
    fn round(values: &[f32; BLOCK_LEN]) -> Self {
        // As integers, since those of numbers that are not finite are the largest, while `f32::max` passes over some.
        let magnitudes = values.map(|value| value.to_bits() & !SIGN);
        let largest = f32::from_bits(magnitudes.into_iter().fold(0, u32::max));
        let steps = VALUE_MAX / largest;
        let (scale, steps) = match (largest.is_finite(), steps.is_finite()) {
            (false, _) => (f32::NAN, 0.0),
            (true, false) => (0.0, 0.0),
            (true, true) => (largest / VALUE_MAX, steps),
        };
        Self {
            scale,
            // Without a call for each value, which `f32::round_ties_even` is on processors that lack such an instruction.
            values: values.map(|value| (value * steps + TO_INTEGER).to_bits() as i8),
        }
    }

    fn wide(&self) -> [f32; BLOCK_LEN] {
        self.values.map(|value| f32::from(value) * self.scale)
    }
}

impl Element for Block {}

impl Arithmetic for Block {
    const LEN: usize = BLOCK_LEN;

    fn widen(values: &[Self], sum: &mut [f32]) {
        unpack(values, sum);
    }

    fn fold(op: Reduce, sum: &mut [f32], term: &[Self]) {
        for (sum, block) in sum.chunks_exact_mut(BLOCK_LEN).zip(term) {
            fold(op, sum, &block.wide(), |value| value);
        }
    }

    fn round(sum: &[f32], values: &mut [Self]) {
        for (value, sum) in values.iter_mut().zip(sum.as_chunks().0) {
            *value = Self::round(sum);
        }
    }
}

const BLOCK_LEN: usize = Exchange::BLOCK_LEN;
const VALUE_MAX: f32 = 127.0;
const SIGN: u32 = 1 << 31;
/// Added to a small number, leaves its nearest integer, of two the even one, in the lowest bits.
const TO_INTEGER: f32 = 12_582_912.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let (mut blocks, mut back) = (Vec::new(), vec![9.0; values.len()]);
        pack(values, &mut blocks);
        unpack(&blocks, &mut back);
        back
    }

    #[test]
    fn values_are_off_by_half_a_step_at_most() {
        for len in [1, 31, 32, 33, 1000] {
            let values: Vec<f32> = (0..len)
                .map(|index| ((index * 37) as f32 * 0.7).sin() * 10_f32.powi(index / 32 - 3))
                .collect();
            let back = there_and_back(&values);
            for (values, back) in values.chunks(BLOCK_LEN).zip(back.chunks(BLOCK_LEN)) {
                let largest = values.iter().fold(0_f32, |max, value| max.max(value.abs()));
                for (value, back) in values.iter().zip(back) {
                    let bound = largest / 254.0 * 1.0001;
                    assert!((value - back).abs() <= bound, "{value} became {back}");
                }
            }
        }
    }

    #[test]
    fn whole_steps_stay_as_they_are() {
        let mut values = [0.0; BLOCK_LEN];
        for (value, steps) in values.iter_mut().zip([127, -127, 1, -1, 64, 0, 100]) {
            *value = steps as f32 * 0.25;
        }
        assert_eq!(there_and_back(&values), values);
    }

    #[test]
    fn ties_go_to_the_even_step() {
        let values = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5];
        assert_eq!(there_and_back(&values), [127.0, 0.0, 2.0, 2.0, 0.0, -2.0]);
    }

    #[test]
    fn extremes_hide_no_fault() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 2 * BLOCK_LEN];
            values[3] = wrong;
            let back = there_and_back(&values);
            assert!(back[..BLOCK_LEN].iter().all(|value| value.is_nan()));
            assert_eq!(back[BLOCK_LEN..], [1.0; BLOCK_LEN]);
        }
        assert_eq!(there_and_back(&[0.0, 1e-38, -1e-45]), [0.0; 3]);
        assert!(there_and_back(&[4e-37])[0] > 3.9e-37);
    }
}
