//! What is reduced, and how: values of three kinds, taken together in rank order.
//!
//! The loops are over slices of equal length without a branch in them, so that the compiler makes vector code of them.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How the values of all ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// The largest of them. Not a number if any of them is not; of zeros of both signs, that of the highest rank.
    Max,
    /// The smallest of them, with the same rules.
    Min,
}

/// A value that groups reduce: [`f32`], [`half::f16`] and [`half::bf16`].
///
/// Whatever the kind, the arithmetic is that of `f32`; the shorter kinds are rounded once, when all ranks are in, to the
/// nearest value and of two to the even one.
pub trait Element: Arithmetic {}

impl Element for f32 {}
impl Element for f16 {}
impl Element for bf16 {}

/// What [`Element`] can do. Out of reach, so that the kinds are those of this crate.
pub trait Arithmetic: Pod + Send + Sync {
    /// How many `f32` one of these is.
    const LEN: usize = 1;

    /// Begins a reduction: `sum` becomes `values`.
    fn widen(values: &[Self], sum: &mut [f32]);

    /// Continues it: `sum` becomes what `op` makes of it and `term`, in this order.
    fn fold(op: Reduce, sum: &mut [f32], term: &[Self]);

    /// Ends it: `values` become `sum`, rounded.
    fn round(sum: &[f32], values: &mut [Self]);
}

/// Replaces `mine` by the reduction of it and of what the other ranks have, `terms`, in the order of all ranks with `own`
/// in its place.
///
/// Float addition is not associative: only one order on all ranks gives all of them the same bits.
pub(crate) fn in_rank_order<E: Element>(op: Reduce, mine: &mut [E], own: usize, terms: &[E]) {
    let len = mine.len();
    let mut sum = [0.0; BLOCK_LEN];
    for (number, mine) in mine.chunks_mut(BLOCK_LEN / E::LEN).enumerate() {
        let sum = &mut sum[..mine.len() * E::LEN];
        let start = number * (BLOCK_LEN / E::LEN);
        let end = start + mine.len();
        let blocks = terms.chunks_exact(len).map(|term| &term[start..end]);
        if own == 0 {
            E::widen(mine, sum);
        }
        for (index, block) in blocks.enumerate() {
            match index {
                0 if own > 0 => E::widen(block, sum),
                _ => E::fold(op, sum, block),
            }
            if index + 1 == own {
                E::fold(op, sum, mine);
            }
        }
        E::round(sum, mine);
    }
}

impl Arithmetic for f32 {
    fn widen(values: &[Self], sum: &mut [f32]) {
        sum.copy_from_slice(values);
    }

    fn fold(op: Reduce, sum: &mut [f32], term: &[Self]) {
        fold(op, sum, term, |value| value);
    }

    fn round(sum: &[f32], values: &mut [Self]) {
        values.copy_from_slice(sum);
    }
}

impl Arithmetic for bf16 {
    fn widen(values: &[Self], sum: &mut [f32]) {
        let pairs = sum.iter_mut().zip(values);
        pairs.for_each(|(sum, value)| *sum = f32_of(*value));
    }

    fn fold(op: Reduce, sum: &mut [f32], term: &[Self]) {
        fold(op, sum, term, f32_of);
    }

    fn round(sum: &[f32], values: &mut [Self]) {
        let pairs = values.iter_mut().zip(sum);
        pairs.for_each(|(value, sum)| *value = bf16_of(*sum));
    }
}

impl Arithmetic for f16 {
    fn widen(values: &[Self], sum: &mut [f32]) {
        values.convert_to_f32_slice(sum);
    }

    fn fold(op: Reduce, sum: &mut [f32], term: &[Self]) {
        let mut wide = [0.0; BLOCK_LEN];
        for (sum, term) in sum.chunks_mut(BLOCK_LEN).zip(term.chunks(BLOCK_LEN)) {
            let wide = &mut wide[..term.len()];
            term.convert_to_f32_slice(wide);
            fold(op, sum, wide, |value| value);
        }
    }

    fn round(sum: &[f32], values: &mut [Self]) {
        values.convert_from_f32_slice(sum);
    }
}

pub(crate) fn fold<E: Copy>(op: Reduce, sum: &mut [f32], term: &[E], wide: impl Fn(E) -> f32) {
    let pairs = sum.iter_mut().zip(term);
    match op {
        Reduce::Sum => pairs.for_each(|(sum, term)| *sum += wide(*term)),
        Reduce::Max => pairs.for_each(|(sum, term)| *sum = larger(*sum, wide(*term))),
        Reduce::Min => pairs.for_each(|(sum, term)| *sum = -larger(-*sum, -wide(*term))),
    }
}

/// Unlike [`f32::max`], hides no value that is not a number: it is the trace of a fault.
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// `bf16` is the upper half of `f32`.
fn f32_of(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// As [`bf16::from_f32`], without its branches, which keep the compiler from making vector code.
fn bf16_of(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // What is not a number stays so, whatever the rounding would carry over.
    let bits = if value.is_nan() {
        bits | 0x40_0000
    } else {
        rounded
    };
    bf16::from_bits((bits >> 16) as u16)
}

/// Of one step of a reduction; what it needs stays in the nearest cache.
const BLOCK_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_to_the_nearest_and_of_two_to_the_even_one() {
        // All upper halves, with lower halves around each way to round.
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(upper << 16 | lower);
                let (ours, expected) = (bf16_of(value), bf16::from_f32(value));
                assert_eq!(ours.to_bits(), expected.to_bits(), "{value:e}");
                assert_eq!(f32_of(ours).to_bits(), expected.to_f32().to_bits());
            }
        }
    }

    #[test]
    fn extremes_hide_no_fault() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::INFINITY)] {
            for op in [Reduce::Max, Reduce::Min, Reduce::Sum] {
                let mut mine = [a];
                in_rank_order(op, &mut mine, 0, &[b]);
                assert!(mine[0].is_nan(), "{op:?} of {a} and {b}");
            }
        }
        for (op, expected) in [(Reduce::Max, 3.0), (Reduce::Min, f32::NEG_INFINITY)] {
            let mut mine = [-2.0];
            in_rank_order(op, &mut mine, 1, &[3.0, f32::NEG_INFINITY]);
            assert_eq!(mine, [expected]);
        }
    }

    #[test]
    fn short_kinds_are_rounded_once() {
        // One after the other, each of the halves would be rounded away.
        let ulp = bf16::EPSILON.to_f32();
        let mut mine = [bf16::ONE];
        let half_ulp = bf16::from_f32(ulp / 2.0);
        in_rank_order(Reduce::Sum, &mut mine, 0, &[half_ulp, half_ulp]);
        assert_eq!(mine[0].to_f32(), 1.0 + ulp);
        let ulp = f16::EPSILON.to_f32();
        let half_ulp = f16::from_f32(ulp / 2.0);
        let mut mine = [half_ulp];
        in_rank_order(Reduce::Sum, &mut mine, 2, &[f16::ONE, half_ulp]);
        assert_eq!(mine[0].to_f32(), 1.0 + ulp);
    }

    #[test]
    fn every_rank_takes_the_same_order() {
        let terms = [1e8_f32, 1.0, -1e8, 0.5];
        let len = 2 * BLOCK_LEN + 3;
        for own in 0..terms.len() {
            let mut mine = vec![terms[own]; len];
            let others = terms.iter().enumerate().filter(|(rank, _)| *rank != own);
            let others: Vec<f32> = others.flat_map(|(_, term)| vec![*term; len]).collect();
            in_rank_order(Reduce::Sum, &mut mine, own, &others);
            assert!(mine.iter().all(|sum| *sum == 0.5), "{own}: {}", mine[0]);
        }
    }
}
