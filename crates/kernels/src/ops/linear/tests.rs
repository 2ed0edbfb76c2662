//! The integer products against two references: the same arithmetic in plain Rust, tightly, and
//! the definition in `f32`, within the stated bound. The products of tiles against the latter.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::formats::CHUNK;
use crate::{Cpu, CpuConfig, Dtype, Isa, MlxArrays, MlxFormat};

/// Offsets of the half-precision fields of a block.
fn f16_fields(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => &[],
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 | Dtype::Iq4Nl => &[0],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
        Dtype::Q6K => &[208],
    }
}

/// Finite half-precision scales, the extreme ones included.
fn scale() -> impl Strategy<Value = f16> {
    prop_oneof![
        4 => (-0.5_f32..0.5).prop_map(f16::from_f32),
        1 => prop::sample::select(vec![f16::ZERO, f16::MAX, f16::MIN, f16::from_bits(1)]),
    ]
}

fn activation() -> impl Strategy<Value = f32> {
    let exponent = prop_oneof![8 => -3..3_i32, 1 => Just(60), 1 => Just(-70), 1 => Just(-140)];
    (-1.0_f32..1.0, exponent).prop_map(|(x, exponent)| x * 2.0_f32.powi(exponent))
}

fn gguf_matrix() -> impl Strategy<Value = Matrix> {
    let quantized = Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized());
    let dtype = prop::sample::select(quantized.collect::<Vec<_>>());
    (dtype, 1..70_usize, 1..4_usize).prop_flat_map(|(dtype, rows, blocks)| {
        let bytes = prop::collection::vec(any::<u8>(), rows * blocks * dtype.block_bytes());
        let scales = prop::collection::vec(scale(), rows * blocks * 2);
        (bytes, scales).prop_map(move |(mut bytes, scales)| {
            let mut scales = scales.into_iter();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for (&at, scale) in f16_fields(dtype).iter().zip(scales.by_ref()) {
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            Matrix::new(dtype, rows, blocks * dtype.block_len(), bytes).unwrap()
        })
    })
}

/// Of floats of 16 bits, which tiles take.
#[cfg(target_arch = "x86_64")]
fn float_matrix() -> impl Strategy<Value = Matrix> {
    let dtype = prop::sample::select(vec![Dtype::F16, Dtype::Bf16]);
    (dtype, 1..70_usize, 1..9_usize).prop_flat_map(|(dtype, rows, steps)| {
        let cols = steps * STEP_COLS;
        let weights = prop::collection::vec(scale().prop_map(f16::to_f32), rows * cols);
        weights.prop_map(move |weights| floats(dtype, rows, cols, &weights))
    })
}

fn floats(dtype: Dtype, rows: usize, cols: usize, weights: &[f32]) -> Matrix {
    let bytes = weights.iter().flat_map(|&w| match dtype {
        Dtype::F32 => w.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(w).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(w).to_le_bytes().to_vec(),
    });
    Matrix::new(dtype, rows, cols, bytes.collect()).unwrap()
}

fn mlx_matrix() -> impl Strategy<Value = Matrix> {
    let shape = (crate::mlx::tests::format(), 1..70_usize, 1..4_usize);
    shape.prop_flat_map(|(format, rows, groups)| {
        let cols = groups * crate::mlx::tests::whole(format);
        crate::mlx::tests::arrays(format, rows, cols)
            .prop_map(move |arrays| arrays.matrix(format, rows, cols))
    })
}

#[derive(Debug)]
struct Case {
    matrix: Matrix,
    x: Vec<f32>,
}

fn case(tokens: Range<usize>) -> impl Strategy<Value = Case> {
    case_of(prop_oneof![gguf_matrix(), mlx_matrix()], tokens)
}

fn case_of(
    matrix: impl Strategy<Value = Matrix>,
    tokens: Range<usize>,
) -> impl Strategy<Value = Case> {
    (matrix, tokens).prop_flat_map(|(matrix, tokens)| {
        let x = prop::collection::vec(activation(), tokens * matrix.cols());
        x.prop_map(move |x| Case {
            matrix: matrix.clone(),
            x,
        })
    })
}

/// Returns the product with rounded activations in plain Rust, and the sum of its terms' magnitudes.
fn reference(matrix: &Matrix, row: usize, x: &[f32]) -> (f64, f64) {
    let mut weights = vec![0.0; matrix.cols()];
    matrix.dequantize_row(row, &mut weights);
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for (weights, x) in weights.chunks_exact(CHUNK).zip(x.chunks_exact(CHUNK)) {
        let largest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let spread = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
        let unit = f64::from(largest / 127.0);
        for (&w, &x) in weights.iter().zip(x) {
            let y = if unit < f64::from(f32::MIN_POSITIVE) {
                0.0
            } else {
                // Rounded as the kernel rounds, so that a tie falls to the same side.
                let y = (x * (1.0 / (largest / 127.0))).round_ties_even();
                f64::from(y.clamp(-127.0, 127.0)) * unit
            };
            sum += f64::from(w) * y;
            // A small weight may be the difference of a large product and a large minimum.
            magnitude += f64::from(spread) * y.abs();
        }
    }
    (sum, magnitude)
}

/// Returns the definition, and how far rounding the activations may move it.
fn definition(matrix: &Matrix, row: usize, x: &[f32]) -> (f64, f64) {
    let mut weights = vec![0.0; matrix.cols()];
    matrix.dequantize_row(row, &mut weights);
    let (mut sum, mut bound) = (0.0, 0.0);
    for (w, x) in weights.chunks_exact(CHUNK).zip(x.chunks_exact(CHUNK)) {
        let unit = x.iter().fold(0.0_f32, |a, x| a.max(x.abs())) / 127.0;
        let tiny = if unit < f32::MIN_POSITIVE { 255.0 } else { 1.0 };
        for (&w, &x) in w.iter().zip(x) {
            sum += f64::from(w) * f64::from(x);
            bound += f64::from(w).abs() * f64::from(unit) * 0.5001 * tiny;
        }
    }
    (sum, bound)
}

/// Returns the definition, and how far tiles may be from it.
#[cfg(target_arch = "x86_64")]
fn tiled_definition(matrix: &Matrix, row: usize, x: &[f32]) -> (f64, f64) {
    let mut weights = vec![0.0; matrix.cols()];
    matrix.dequantize_row(row, &mut weights);
    let (mut sum, mut bound) = (0.0, 1e-36);
    for (weights, x) in weights.chunks_exact(CHUNK).zip(x.chunks_exact(CHUNK)) {
        let spread = weights.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
        for (w, x) in weights.iter().zip(x) {
            let (w, x, spread) = (f64::from(*w), f64::from(*x), f64::from(spread));
            sum += w * x;
            // Both are rounded to 8 bits, sums to 24; a weight may be a difference of larger numbers; and what is subnormal
            // counts as zero.
            bound += (w * x).abs() / 127.0
                + spread * x.abs() * 2e-6
                + 1.2e-38 * (1.0 + w.abs() + x.abs());
        }
    }
    (sum, bound)
}

/// Returns tiles that compute by their definition, with the widest vectors there are. The scalar ones come with no tiles.
#[cfg(target_arch = "x86_64")]
fn modelled() -> Token {
    let widest = Token::all_modelled().pop();
    widest.expect("every processor this is tested on has vectors")
}

fn bits(out: Vec<f32>) -> Vec<u32> {
    out.into_iter().map(f32::to_bits).collect()
}

/// Returns the product on an instruction set, with some threads.
fn product(threads: usize, token: Token, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    product_with(&mut Scratch::new(threads), token, matrix, x)
}

fn product_with(scratch: &mut Scratch, token: Token, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let pool = Pool::new(scratch.threads.len(), false, |_| ()).unwrap();
    let mut out = vec![f32::NAN; x.len() / matrix.cols() * matrix.rows()];
    linear_many(&pool, token, scratch, x, [(matrix, &mut *out)]);
    out
}

fn cpus() -> Vec<Cpu> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let config = |isa, threads| CpuConfig {
        isa,
        threads,
        first_core: None,
    };
    isas.flat_map(|isa| [1, 3].map(|threads| Cpu::new(config(isa, threads)).unwrap()))
        .collect()
}

proptest! {
    // The default heeds PROPTEST_CASES, which asks for fewer where the processor is emulated.
    #![proptest_config(ProptestConfig::with_cases(160.min(ProptestConfig::default().cases)))]

    #[test]
    fn quantized_products_agree(case in prop_oneof![case(1..5), case(1..tiled::TOKENS_MIN)]) {
        let Case { matrix, x } = case;
        let (layout, rows, cols) = (matrix.layout(), matrix.rows(), matrix.cols());
        let tokens = x.len() / cols;
        for cpu in cpus() {
            let mut out = vec![f32::NAN; tokens * rows];
            cpu.linear(&x, &matrix, &mut out);
            for (i, &out) in out.iter().enumerate() {
                let (token, row) = (i / rows, i % rows);
                let x = &x[token * cols..][..cols];
                let (integer, magnitude) = reference(&matrix, row, x);
                let (exact, bound) = definition(&matrix, row, x);
                // 2^-24 for each of a few hundred roundings at most, and one subnormal each.
                let slack = magnitude * 2e-6 + 1e-36;
                let error = (f64::from(out) - exact).abs();
                if cpu.isa() == Isa::Scalar || !layout.is_quantized() {
                    prop_assert!(error <= slack + exact.abs() * 1e-5 + bound * 1e-3, "{out} for {exact}");
                } else {
                    let off = (f64::from(out) - integer).abs();
                    prop_assert!(off <= slack, "{} {layout:?}: {out} for {integer}, {off} > {slack}", cpu.isa());
                    prop_assert!(error <= bound + slack, "{} {layout:?}: {out} for {exact}", cpu.isa());
                }
            }
        }
    }

    /// The same of all instruction sets with fused products.
    #[test]
    fn quantized_products_do_not_depend_on_the_instruction_set(case in case(1..tiled::TOKENS_MIN)) {
        let Case { matrix, x } = case;
        let layout = matrix.layout();
        prop_assume!(layout.is_quantized());
        let vectors = Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar);
        let outs = vectors.filter_map(|isa| Some((isa, bits(product(2, Token::new(isa)?, &matrix, &x)))));
        let outs: Vec<_> = outs.collect();
        for (isa, out) in &outs {
            prop_assert!(*out == outs[0].1, "{isa} {layout:?} differs from {}", outs[0].0);
        }
    }

    #[test]
    fn float_products_agree(
        (dtype, rows, cols, words, x) in
        (prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]), 1..40_usize, 1..80_usize, 1..10_usize)
            .prop_flat_map(|(dtype, rows, cols, tokens)| (
                Just(dtype), Just(rows), Just(cols),
                prop::collection::vec(-2.0_f32..2.0, rows * cols),
                prop::collection::vec(-2.0_f32..2.0, tokens * cols),
            ))
    ) {
        let matrix = floats(dtype, rows, cols, &words);
        for cpu in cpus() {
            let mut out = vec![f32::NAN; x.len() / cols * rows];
            cpu.linear(&x, &matrix, &mut out);
            let mut weights = vec![0.0; cols];
            for (i, &out) in out.iter().enumerate() {
                matrix.dequantize_row(i % rows, &mut weights);
                let x = &x[i / rows * cols..][..cols];
                let exact: f64 = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                prop_assert!((f64::from(out) - exact).abs() < 1e-4, "{} {dtype}: {out} for {exact}", cpu.isa());
            }
        }
    }
}

/// More rows than go through the tokens at a time, and a last tile of each that is not whole.
#[test]
fn long_rows_of_floats_agree() {
    let (rows, cols, tokens) = (2 * 8 + 4 + 3, 8192 + 5, 4 + 2);
    let weights: Vec<f32> = (0..rows * cols).map(|i| (i % 7) as f32 - 3.0).collect();
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 5) as f32 - 2.0).collect();
    let matrix = floats(Dtype::F32, rows, cols, &weights);
    for cpu in cpus() {
        let mut out = vec![f32::NAN; tokens * rows];
        cpu.linear(&x, &matrix, &mut out);
        for (i, &out) in out.iter().enumerate() {
            let (w, x) = (&weights[i % rows * cols..], &x[i / rows * cols..]);
            // Small integers, so that sums are exact in any order.
            let exact: f32 = w[..cols].iter().zip(&x[..cols]).map(|(w, x)| w * x).sum();
            assert_eq!(out, exact, "{}, output {i}", cpu.isa());
        }
    }
}

proptest! {
    // A modelled product takes a hundred times as long as one of a processor's.
    #![proptest_config(ProptestConfig::with_cases(40.min(ProptestConfig::default().cases)))]

    /// With tiles that compute by their definition, and with those of the processor where it has them.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tiled_products_agree(
        case in case_of(prop_oneof![gguf_matrix(), mlx_matrix(), float_matrix()], tiled::TOKENS_MIN..80)
    ) {
        let Case { matrix, x } = case;
        let (layout, rows, cols) = (matrix.layout(), matrix.rows(), matrix.cols());
        let out = product(2, modelled(), &matrix, &x);
        for (i, &out) in out.iter().enumerate() {
            let (exact, bound) = tiled_definition(&matrix, i % rows, &x[i / rows * cols..][..cols]);
            prop_assert!((f64::from(out) - exact).abs() <= bound, "{layout:?}: {out} for {exact}, {bound} at most");
        }
        let out = bits(out);
        let last = &x[x.len() - tiled::TOKENS_MIN * cols..];
        let last = bits(product(1, modelled(), &matrix, last));
        prop_assert_eq!(&last, &out[out.len() - last.len()..], "{:?}, another batch", layout);
        if let Some(amx) = Token::new(Isa::Amx) {
            prop_assert_eq!(bits(product(3, amx, &matrix, &x)), out, "{:?}, on the processor", layout);
        }
    }
}

/// In tasks that start anywhere, of even and odd numbers of panels, with a last one that is not whole.
#[test]
fn panels_read_in_pairs_give_the_same_bits() {
    let bytes = |count: usize| -> Vec<u8> { (0..count).map(|i| (48 + i * 7 % 13) as u8).collect() };
    let quantized = Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized());
    let gguf = quantized.map(|dtype| {
        let (rows, cols) = (3 * 32 + 24, 4 * 256);
        let bytes = bytes(rows * dtype.row_bytes(cols).unwrap());
        Matrix::new(dtype, rows, cols, bytes).unwrap()
    });
    let affine = [2, 3, 4, 5, 6, 8].map(|bits| MlxFormat::Affine {
        bits,
        group: 64,
        floats: Dtype::F16,
    });
    let floats = [MlxFormat::MxFp4, MlxFormat::NvFp4];
    let mlx = affine.into_iter().chain(floats).map(|format| {
        let (rows, cols) = (5 * 32 + 16 + 7, 8 * 64);
        let (bits, scales, biases) = match format {
            MlxFormat::Affine { bits, .. } => (bits, cols / 64 * 2, cols / 64 * 2),
            MlxFormat::MxFp4 => (4, cols / 32, 0),
            _ => (4, cols / 16, 0),
        };
        let arrays = MlxArrays {
            codes: &bytes(rows * cols * bits / 8),
            scales: &bytes(rows * scales),
            biases: &bytes(rows * biases),
            global_scale: None,
        };
        Matrix::from_mlx(format, rows, cols, arrays).unwrap()
    });
    let vectors = || Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar);
    for matrix in gguf.chain(mlx) {
        let x: Vec<f32> = (0..9 * matrix.cols())
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        for tokens in [1, 2, 3, 4, 5, 9] {
            let x = &x[..tokens * matrix.cols()];
            for token in vectors().filter_map(Token::new) {
                for threads in [1, 3] {
                    let [alone, in_pairs] = [false, true].map(|in_pairs| {
                        let mut scratch = Scratch::new(threads);
                        scratch.in_pairs = in_pairs;
                        bits(product_with(&mut scratch, token, &matrix, x))
                    });
                    assert_eq!(alone, in_pairs, "{:?}, {tokens} tokens", matrix.layout());
                }
            }
        }
    }
}

/// More rows and tokens than go through at a time, more columns than a block, and none of them whole.
#[cfg(target_arch = "x86_64")]
#[test]
fn large_tiled_products_agree() {
    let matrix = |dtype: Dtype, rows, cols| {
        let mut bytes = vec![0; dtype.row_bytes(cols).unwrap() * rows];
        for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            for (j, code) in block.iter_mut().enumerate() {
                *code = (i * 31 + j * 7) as u8;
            }
            for &at in f16_fields(dtype) {
                let scale = f16::from_f32((i as f32).sin());
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Matrix::new(dtype, rows, cols, bytes).unwrap()
    };
    let (rows, tokens) = (16 * 32 + 40, 16 * 32 + 5);
    let weights: Vec<f32> = (0..rows * (16 * 32 + 32))
        .map(|i| (i as f32).sin())
        .collect();
    for matrix in [
        matrix(Dtype::Q8_0, rows, 16 * 32 + 64),
        matrix(Dtype::Q4K, rows, 16 * 32 + 256),
        floats(Dtype::F16, rows, 16 * 32 + 32, &weights),
    ] {
        let (layout, cols) = (matrix.layout(), matrix.cols());
        let x: Vec<f32> = (0..tokens * cols)
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        let out = product(1, modelled(), &matrix, &x);
        for row in [0, 1, 31, 511, 512, 530, rows - 1] {
            for token in [0, 31, 511, 512, tokens - 1] {
                let (exact, bound) = tiled_definition(&matrix, row, &x[token * cols..][..cols]);
                let error = (f64::from(out[token * rows + row]) - exact).abs();
                assert!(
                    error <= bound,
                    "{layout:?}, row {row}, token {token}: off by {error}, not {bound}"
                );
            }
        }
        let out = bits(out);
        let last = bits(product(3, modelled(), &matrix, &x[x.len() - 40 * cols..]));
        assert_eq!(last, out[out.len() - last.len()..], "{layout:?}");
        if let Some(amx) = Token::new(Isa::Amx) {
            assert_eq!(bits(product(2, amx, &matrix, &x)), out, "{layout:?}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn weights_far_below_their_scale_are_kept_in_tiles() {
    let (rows, cols, tokens) = (32, 64, tiled::TOKENS_MIN);
    let mut bytes = vec![0; Dtype::Q4_1.row_bytes(cols).unwrap() * rows];
    for block in bytes.chunks_exact_mut(Dtype::Q4_1.block_bytes()) {
        block[..2].copy_from_slice(&f16::from_f32(6e4).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
    }
    let matrix = Matrix::new(Dtype::Q4_1, rows, cols, bytes).unwrap();
    let out = product(1, modelled(), &matrix, &vec![1.0; tokens * cols]);
    assert_eq!(out, vec![16.0; tokens * rows]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_not_finite_spoils_its_own_tiled_outputs_only() {
    let (rows, cols, tokens) = (33, 256, tiled::TOKENS_MIN + 2);
    let mut matrices = Vec::new();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
        for (code, bad) in [(0, 0xffff), (1, 0x7e00), (0, 0x7c00), (1, 0xfc00)] {
            let mut bytes = vec![code; dtype.row_bytes(cols).unwrap() * rows];
            let row = dtype.row_bytes(cols).unwrap();
            for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                for &at in f16_fields(dtype) {
                    let scale = if i * dtype.block_bytes() == 3 * row {
                        bad
                    } else {
                        0x3c00_u16
                    };
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            matrices.push(Matrix::new(dtype, rows, cols, bytes).unwrap());
        }
    }
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut weights = vec![1.0; rows * cols];
            weights[3 * cols + 40] = bad;
            matrices.push(floats(dtype, rows, cols, &weights));
        }
    }
    let mut x = vec![1.0; tokens * cols];
    x[7 * cols + 9] = f32::from_bits(0x7fff_ffff);
    x[20 * cols + 9] = f32::INFINITY;
    for (number, matrix) in matrices.iter().enumerate() {
        let layout = matrix.layout();
        for (i, out) in product(1, modelled(), matrix, &x).into_iter().enumerate() {
            let spoilt = i % rows == 3 || [7, 20].contains(&(i / rows));
            assert_eq!(
                out.is_finite(),
                !spoilt,
                "{layout:?}, matrix {number}: {out} at {i}"
            );
        }
    }
}

/// Those of 32 bits, and those whose rows are no whole steps.
#[cfg(target_arch = "x86_64")]
#[test]
fn other_floats_are_not_rounded() {
    let (rows, tokens) = (33, tiled::TOKENS_MIN);
    for (dtype, cols) in [(Dtype::F32, 64), (Dtype::F16, 63), (Dtype::Bf16, 65)] {
        // What bfloat16 has no bits for; sums of its products are exact.
        let x = 1.0 + 2.0_f32.powi(-8);
        let matrix = floats(dtype, rows, cols, &vec![x; rows * cols]);
        let mut weights = vec![0.0; cols];
        matrix.dequantize_row(0, &mut weights);
        let exact = cols as f32 * weights[0] * x;
        let out = product(1, modelled(), &matrix, &vec![x; tokens * cols]);
        assert_eq!(out, vec![exact; tokens * rows], "{dtype}");
    }
}
