//! Products in `f32`: float weights that stay out of tiles, and on the scalar instruction set every format, row by row
//! through its definition.

use std::marker::PhantomData;
use std::ops::Range;

use crate::arch::Simd;
use crate::formats::{self, Layout};
use crate::{Dtype, Matrix};

use super::{Columns, Rows};

/// Rows and tokens that share each other's loads.
const TILE: usize = 4;

/// Weights that are multiplied with all tokens before the next ones: they stay in the second cache meanwhile.
const GROUP_BYTES: usize = 256 << 10;

/// Computes `rows` for all tokens of `x`.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(
    s: S,
    rows: &Rows<'_>,
    x: &[f32],
    scratch: &mut Vec<f32>,
    out: &Columns<'_>,
) {
    match rows.matrix.layout() {
        Layout::Gguf(Dtype::F32) => multiply_floats::<S, F32>(s, rows, x, out),
        Layout::Gguf(Dtype::F16) => multiply_floats::<S, F16>(s, rows, x, out),
        Layout::Gguf(Dtype::Bf16) => multiply_floats::<S, Bf16>(s, rows, x, out),
        _ => multiply_quantized(s, rows, x, scratch, out),
    }
}

/// A float format in memory, little-endian.
pub(super) trait Float: Copy {
    const DTYPE: Dtype;
    const BYTES: usize;
    /// Loads `LANES` floats.
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F32;
}

macro_rules! float {
    ($name:ident, $dtype:expr, $bytes:literal, $load:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Float for $name {
            const DTYPE: Dtype = $dtype;
            const BYTES: usize = $bytes;

            #[inline(always)]
            fn load<S: Simd>(s: S, from: &[u8]) -> S::F32 {
                s.$load(from)
            }
        }
    };
}

float!(F32, Dtype::F32, 4, load_f32_bytes);
float!(F16, Dtype::F16, 2, load_f16_bytes);
float!(Bf16, Dtype::Bf16, 2, load_bf16_bytes);

#[inline(always)]
fn multiply_floats<S: Simd, F: Float>(s: S, rows: &Rows<'_>, x: &[f32], out: &Columns<'_>) {
    let group_rows = (GROUP_BYTES / (rows.matrix.cols() * F::BYTES))
        .next_multiple_of(TILE)
        .max(TILE);
    for group in rows.range.clone().step_by(group_rows) {
        let group = group..rows.range.end.min(group + group_rows);
        for (token, tokens) in tiles(0..out.tokens) {
            for (first, size) in tiles(group.clone()) {
                let weights = Weights::<F>::new(rows.matrix, first);
                match (size, tokens) {
                    (TILE, TILE) => weights.multiply::<S, TILE, TILE>(s, x, token, out),
                    (TILE, _) => weights.multiply::<S, TILE, 1>(s, x, token, out),
                    (_, TILE) => weights.multiply::<S, 1, TILE>(s, x, token, out),
                    _ => weights.multiply::<S, 1, 1>(s, x, token, out),
                }
            }
        }
    }
}

/// Cuts a range into tiles and the rest into ones: where each begins, and how many it has.
#[inline(always)]
fn tiles(range: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let whole = range.len() / TILE * TILE + range.start;
    let tiles = (range.start..whole).step_by(TILE);
    tiles
        .map(|first| (first, TILE))
        .chain((whole..range.end).map(|first| (first, 1)))
}

/// The rows of a matrix from `first` on.
struct Weights<'a, F> {
    matrix: &'a Matrix,
    first: usize,
    format: PhantomData<F>,
}

impl<'a, F: Float> Weights<'a, F> {
    fn new(matrix: &'a Matrix, first: usize) -> Self {
        Self {
            matrix,
            first,
            format: PhantomData,
        }
    }

    /// Computes `R` rows for `T` tokens from `token` on.
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const T: usize>(
        &self,
        s: S,
        x: &[f32],
        token: usize,
        out: &Columns<'_>,
    ) {
        let dots = self.dots::<S, R, T>(s, &x[token * self.matrix.cols()..]);
        for (t, dots) in dots.iter().enumerate() {
            out.write(token + t, self.first, dots);
        }
    }

    /// Returns the products of `R` rows with the first `T` tokens of `x`.
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const T: usize>(&self, s: S, x: &[f32]) -> [[f32; R]; T] {
        let cols = self.matrix.cols();
        let whole = cols - cols % S::LANES;
        let mut weights = [self.matrix.floats(self.first); R];
        for (r, weights) in weights.iter_mut().enumerate() {
            *weights = self.matrix.floats(self.first + r);
        }
        let mut xs = [&x[..cols]; T];
        for (t, xs) in xs.iter_mut().enumerate() {
            *xs = &x[t * cols..][..cols];
        }
        let mut sums = [[s.splat(0.0); R]; T];
        for at in (0..whole).step_by(S::LANES) {
            let mut w = [s.splat(0.0); R];
            for (w, weights) in w.iter_mut().zip(&weights) {
                let weights = &weights[at * F::BYTES..];
                *w = F::load(s, weights);
                if T == 1 {
                    // The next rows begin where no processor expects them.
                    s.prefetch(weights.as_ptr().wrapping_add(R * cols * F::BYTES));
                }
            }
            for (sums, xs) in sums.iter_mut().zip(&xs) {
                let x = s.load(&xs[at..]);
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = s.mul_add(w, x, *sum);
                }
            }
        }
        let mut out = [[0.0; R]; T];
        for (out, sums) in out.iter_mut().zip(&sums) {
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = s.sum(sum);
            }
        }
        for at in whole..cols {
            for (r, weights) in weights.iter().enumerate() {
                let mut w = [0.0];
                formats::widen(F::DTYPE, &weights[at * F::BYTES..][..F::BYTES], &mut w);
                for (out, xs) in out.iter_mut().zip(&xs) {
                    out[r] += w[0] * xs[at];
                }
            }
        }
        out
    }
}

/// The definition: each row as floats, then plain sums.
#[inline(always)]
fn multiply_quantized<S: Simd>(
    s: S,
    rows: &Rows<'_>,
    x: &[f32],
    scratch: &mut Vec<f32>,
    out: &Columns<'_>,
) {
    let cols = rows.matrix.cols();
    scratch.resize(cols, 0.0);
    for r in rows.range.clone() {
        rows.matrix.dequantize_row(r, scratch);
        let mut tiles = x.chunks_exact(TILE * cols);
        let mut token = 0;
        for x in tiles.by_ref() {
            for dot in dots::<S, TILE>(s, scratch, x) {
                out.write(token, r, &[dot]);
                token += 1;
            }
        }
        for x in tiles.remainder().chunks_exact(cols) {
            out.write(token, r, &dots::<S, 1>(s, scratch, x));
            token += 1;
        }
    }
}

/// Returns the products of a row, whole vectors long, with the `T` tokens of `x`. Each token's sum is its own, so `T`
/// only says how many additions do not wait for one another.
#[inline(always)]
fn dots<S: Simd, const T: usize>(s: S, w: &[f32], x: &[f32]) -> [f32; T] {
    let mut xs = [w; T];
    for (xs, x) in xs.iter_mut().zip(x.chunks_exact(w.len())) {
        *xs = x;
    }
    let mut sums = [s.splat(0.0); T];
    for at in (0..w.len()).step_by(S::LANES) {
        let w = s.load(&w[at..]);
        for (sum, x) in sums.iter_mut().zip(&xs) {
            *sum = s.mul_add(w, s.load(&x[at..]), *sum);
        }
    }
    sums.map(|sum| s.sum(sum))
}
