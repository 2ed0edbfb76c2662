//! Every shell against the scalar one.

use proptest::prelude::*;

use super::{Operation, Simd, Token};
use crate::Isa;

fn tokens() -> impl Iterator<Item = Token> {
    Isa::ALL.into_iter().filter_map(Token::new)
}

/// Writes `e^x` over `x`, whose length is a multiple of every `LANES`.
struct Exp<'a>(&'a mut [f32]);

impl Operation for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.chunks_exact_mut(S::LANES) {
            s.store(s.exp(s.load(x)), x);
        }
    }
}

#[test]
fn exp_is_within_a_few_units_and_saturates() {
    for token in tokens() {
        let all = (-8704..8704).map(|i| i as f32 * 0.01);
        let inputs: Vec<f32> = all.step_by(if cfg!(miri) { 136 } else { 1 }).collect();
        let mut outputs = inputs.clone();
        token.run(Exp(&mut outputs));
        for (&x, &y) in inputs.iter().zip(&outputs) {
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(y) - exact).abs() <= exact * 3e-7,
                "exp({x}) = {y}"
            );
        }
        let mut ends = [0.0; 16];
        ends[..5].copy_from_slice(&[f32::NEG_INFINITY, -100.0, f32::NAN, f32::INFINITY, 1e30]);
        token.run(Exp(&mut ends));
        assert_eq!(ends[..2], [0.0; 2]);
        assert!(ends[2].is_nan());
        assert!(ends[3..5].iter().all(|&x| x.is_finite() && x > 1e38));
        assert_eq!(ends[5], 1.0);
    }
}

/// Adds up products; `wide` weights use all eight bits.
struct Products<'a> {
    weights: &'a [u8; 32],
    activations: &'a [i8; 32],
    wide: bool,
}

impl Operation for Products<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut dots = s.splat_i32(0);
        let fours = self.weights.as_chunks::<4>().0;
        for (four, &activations) in fours.iter().zip(self.activations.as_chunks::<4>().0) {
            let weights = s.load_bytes([*four; 16].as_flattened());
            dots = s.dot_add(dots, weights, s.splat_bytes(activations), self.wide);
        }
        s.largest(s.to_f32(dots))
    }
}

/// Each operation on bits.
struct Bits<'a> {
    bits: u32,
    mask: u32,
    by: u32,
    table: &'a [u8; 16],
}

impl Operation for Bits<'_> {
    type Output = [f32; 9];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let Self {
            bits,
            mask,
            by,
            table,
        } = self;
        let x = s.load_bytes([bits.to_le_bytes(); 16].as_flattened());
        let lanes = [
            s.and(x, mask),
            s.or(x, s.splat_i32(mask as i32)),
            s.xor(x, mask),
            s.shift_left(x, by),
            s.shift_right(x, by),
            s.shift_right_signed(x, by),
            s.add_i32(x, s.splat_i32(mask as i32)),
            s.look_up(table, s.and(x, PLACES)),
            s.bits(s.with_bits(x)),
        ];
        let mut out = [0.0; 9];
        for (lanes, out) in lanes.into_iter().zip(&mut out) {
            let mut halves = [0; 32];
            s.store_halves(lanes, &mut halves);
            let lanes = s.load_bytes(halves.map(u16::to_le_bytes).as_flattened());
            *out = s.largest(s.to_f32(lanes));
        }
        out
    }
}

proptest! {
    #[test]
    fn bit_operations_agree(bits: u32, mask: u32, by in 0..32_u32, table: [u8; 16]) {
        let places = (bits & PLACES).to_le_bytes();
        let expected = [
            bits & mask,
            bits | mask,
            bits ^ mask,
            bits << by,
            bits >> by,
            (bits as i32 >> by) as u32,
            bits.wrapping_add(mask),
            u32::from_le_bytes(places.map(|place| table[usize::from(place)])),
            bits,
        ];
        for token in tokens() {
            prop_assert_eq!(token.run(Bits { bits, mask, by, table: &table }), expected.map(|x| x as i32 as f32));
        }
    }

    #[test]
    fn integer_products_are_exact(
        weights in prop::array::uniform32(prop_oneof![Just(255_u8), Just(128), Just(127), any::<u8>()]),
        activations in prop::array::uniform32(prop_oneof![Just(-127_i8), Just(127), -127..=127_i8]),
    ) {
        for wide in [false, true] {
            let weights = weights.map(|w| if wide { w } else { w & 127 });
            let products = weights.iter().zip(activations).map(|(&w, y)| i32::from(w) * i32::from(y));
            let expected = products.sum::<i32>() as f32;
            for token in tokens() {
                let operation = Products { weights: &weights, activations: &activations, wide };
                prop_assert_eq!(token.run(operation), expected);
            }
        }
    }
}

/// Of a byte, what is a place in a table.
const PLACES: u32 = 0x0f0f_0f0f;
