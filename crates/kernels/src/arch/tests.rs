//! Every shell against the scalar one.

use proptest::prelude::*;

use super::{Chunk, Operation, Scalar, Simd, Token};
use crate::formats::{Format, with_format};
use crate::{Dtype, Isa};

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
        let inputs: Vec<f32> = (-8704..8704).map(|i| i as f32 * 0.01).collect();
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

/// Decodes a block of `dtype`: quants, scales and minima of each chunk.
struct Unpack<'a>(Dtype, &'a [u8]);

impl Operation for Unpack<'_> {
    type Output = Vec<([u8; 32], [u32; 2], [u32; 2])>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        with_format!(self.0, F => unpack::<S::Chunk, F>(s.chunk(), self.1), _ => Vec::new())
    }
}

#[inline(always)]
fn unpack<C: Chunk, F: Format>(c: C, row: &[u8]) -> Vec<([u8; 32], [u32; 2], [u32; 2])> {
    let block = &F::blocks(row)[0];
    let header = F::header(c, block);
    let mut chunks = Vec::new();
    for i in 0..F::CHUNKS {
        let chunk = F::unpack(c, block, header, i);
        let bits = |x| c.first(x).map(f32::to_bits);
        chunks.push((c.store(chunk.quants), bits(chunk.scales), bits(chunk.mins)));
    }
    chunks
}

/// Adds up the products of one chunk with both ways of a shell; `wide` weights use all eight bits.
struct Products<'a> {
    weights: &'a [u8; 32],
    activations: &'a [i8; 32],
    wide: bool,
}

impl Operation for Products<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let c = s.chunk();
        let weights = c.load(self.weights);
        let sums = c.add_products(
            c.splat(0.0),
            weights,
            self.activations,
            c.halves([1.0, 3.0]),
            self.wide,
        );
        let mut dots = s.zero_i32();
        let fours = self.weights.as_chunks::<4>().0;
        for (four, &activations) in fours.iter().zip(self.activations.as_chunks::<4>().0) {
            let weights = s.load_bytes([*four; 16].as_flattened());
            dots = s.dot_add(dots, weights, s.splat_bytes(activations), self.wide);
        }
        (c.sum(sums), s.largest(s.to_f32(dots)))
    }
}

proptest! {
    #[test]
    fn chunks_decode_alike(bytes in prop::collection::vec(any::<u8>(), 210)) {
        for dtype in Dtype::ALL {
            let row = &bytes[..dtype.block_bytes()];
            let expected = Unpack(dtype, row).run(Scalar);
            for token in tokens() {
                let got = token.run(Unpack(dtype, row));
                // A NaN scale keeps its payload on one shell and not on another.
                if expected.iter().flat_map(|c| c.1).all(|bits| f32::from_bits(bits).is_finite())
                    && expected.iter().flat_map(|c| c.2).all(|bits| f32::from_bits(bits).is_finite())
                {
                    prop_assert_eq!(&got, &expected, "{}", dtype);
                }
            }
        }
    }

    #[test]
    fn integer_products_are_exact(
        weights in prop::array::uniform32(prop_oneof![Just(255_u8), Just(128), Just(127), any::<u8>()]),
        activations in prop::array::uniform32(prop_oneof![Just(-127_i8), Just(127), -127..=127_i8]),
    ) {
        for wide in [false, true] {
            let weights = weights.map(|w| if wide { w } else { w & 127 });
            let operation = || Products { weights: &weights, activations: &activations, wide };
            let expected = operation().run(Scalar);
            for token in tokens() {
                prop_assert_eq!(token.run(operation()), expected);
            }
        }
    }
}
