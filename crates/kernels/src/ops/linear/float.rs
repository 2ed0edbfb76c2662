//! Products in `f32`: float weights, and on the scalar instruction set every format, row by row
//! through its definition.

use crate::arch::Simd;
use crate::formats;
use crate::{Dtype, Matrix};

use super::{Columns, Rows};

/// Tokens that share the loads of a row.
const TILE: usize = 4;

/// Computes `rows` for all tokens of `x`.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(
    s: S,
    rows: &Rows<'_>,
    x: &[f32],
    scratch: &mut Vec<f32>,
    out: &Columns<'_>,
) {
    let cols = rows.matrix.cols();
    scratch.resize(cols, 0.0);
    for r in rows.range.clone() {
        widen(s, rows.matrix, r, scratch);
        let mut tiles = x.chunks_exact(TILE * cols);
        let mut token = 0;
        for tile in tiles.by_ref() {
            let tile: [&[f32]; TILE] = std::array::from_fn(|t| &tile[t * cols..][..cols]);
            for dot in dots(s, scratch, tile) {
                out.write(token, r, &[dot]);
                token += 1;
            }
        }
        for x in tiles.remainder().chunks_exact(cols) {
            out.write(token, r, &dots(s, scratch, [x]));
            token += 1;
        }
    }
}

/// Writes a row as `f32`.
#[inline(always)]
fn widen<S: Simd>(s: S, matrix: &Matrix, r: usize, out: &mut [f32]) {
    let dtype = matrix.dtype();
    if dtype.is_quantized() {
        return matrix.dequantize_row(r, out);
    }
    let row = matrix.floats(r);
    let whole = out.len() - out.len() % S::LANES;
    let (vectors, tail) = out.split_at_mut(whole);
    macro_rules! widen {
        ($load:ident, $bytes:literal) => {{
            let from = row.chunks_exact($bytes * S::LANES);
            formats::widen(dtype, from.remainder(), tail);
            for (from, to) in from.zip(vectors.chunks_exact_mut(S::LANES)) {
                s.store(s.$load(from), to);
            }
        }};
    }
    match dtype {
        Dtype::F32 => widen!(load_f32_bytes, 4),
        Dtype::F16 => widen!(load_f16_bytes, 2),
        _ => widen!(load_bf16_bytes, 2),
    }
}

/// Returns the dot products of `w` with `T` tokens, all of the same length.
#[inline(always)]
fn dots<S: Simd, const T: usize>(s: S, w: &[f32], xs: [&[f32]; T]) -> [f32; T] {
    let xs = xs.map(|x| &x[..w.len()]);
    let mut sums = [[s.splat(0.0); 2]; T];
    let whole = w.len() - w.len() % (2 * S::LANES);
    let mut at = 0;
    while at < whole {
        let w = [s.load(&w[at..]), s.load(&w[at + S::LANES..])];
        for t in 0..T {
            sums[t][0] = s.mul_add(w[0], s.load(&xs[t][at..]), sums[t][0]);
            sums[t][1] = s.mul_add(w[1], s.load(&xs[t][at + S::LANES..]), sums[t][1]);
        }
        at += 2 * S::LANES;
    }
    let mut out = [0.0; T];
    for t in 0..T {
        out[t] = s.sum(s.add(sums[t][0], sums[t][1]));
        for (w, x) in w[whole..].iter().zip(&xs[t][whole..]) {
            out[t] += w * x;
        }
    }
    out
}
