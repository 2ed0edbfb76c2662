//! Products with few tokens, where reading the weights is the cost: each block is decoded in
//! registers on its way past.

use crate::arch::Chunk;
use crate::formats::{CHUNK, Format};

use super::activations::{Activations, Side};
use super::{Columns, Rows};

/// How far ahead weights are asked for, at least.
const PREFETCH_BYTES: usize = 1024;

/// Computes `rows` for each token; `activations` are in tiles of 1.
#[inline(always)]
pub(crate) fn multiply<C: Chunk, F: Format>(
    c: C,
    rows: &Rows<'_>,
    activations: &Activations,
    out: &Columns<'_>,
) {
    let mut first = rows.range.start;
    while first < rows.range.end {
        // A last odd row goes with itself.
        let pair = [first, (first + 1).min(rows.range.end - 1)];
        let bytes = pair.map(|r| rows.matrix.row(r));
        for token in 0..activations.tiles() {
            let (quants, sides) = activations.tile(token);
            let dots = dot_rows::<C, F, 2>(c, bytes, quants, sides);
            out.write(token, first, &dots[..2.min(rows.range.end - first)]);
        }
        first += 2;
    }
}

/// Returns the dot products of `R` rows with one token.
///
/// For a chunk with weights `d q + m` and activations `s y` the sum is
/// `d × s × Σ q y + m × (s × Σ y)`; the first factor is in integers, the last is kept in [`Side`].
#[inline(always)]
pub(crate) fn dot_rows<C: Chunk, F: Format, const R: usize>(
    c: C,
    rows: [&[u8]; R],
    quants: &[[i8; CHUNK]],
    sides: &[Side],
) -> [f32; R] {
    // Long rows: the next pair, which the hardware does not ask for in time when rows are read side
    // by side. Short rows: it does, and going further ahead measured up to a third slower.
    let ahead = PREFETCH_BYTES.max(if rows[0].len() < PREFETCH_BYTES {
        0
    } else {
        R * rows[0].len()
    });
    let mut blocks = [F::blocks(rows[0]); R];
    let count = blocks[0].len();
    for r in 0..R {
        blocks[r] = &F::blocks(rows[r])[..count];
    }
    let mut sums = [c.splat(0.0); R];
    let mut offsets = [c.splat(0.0); R];
    let chunks = quants
        .chunks_exact(F::CHUNKS)
        .zip(sides.chunks_exact(F::CHUNKS));
    for (b, (quants, sides)) in chunks.take(count).enumerate() {
        for r in 0..R {
            let block = &blocks[r][b];
            let header = F::header(c, block);
            for i in 0..F::CHUNKS {
                let here = size_of::<F::Block>() / F::CHUNKS * i;
                c.prefetch((&raw const *block).cast::<u8>().wrapping_add(ahead + here));
                let chunk = F::unpack(c, block, header, i);
                let side = &sides[i];
                let scales = c.mul(chunk.scales, c.splat(side.scale));
                sums[r] = c.add_products(sums[r], chunk.quants, &quants[i], scales, F::WIDE);
                let sum = if F::HALVES {
                    c.halves(side.half_sums)
                } else {
                    c.splat(side.sum)
                };
                offsets[r] = c.mul_add(chunk.mins, sum, offsets[r]);
            }
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        // The lanes of a half hold the same offset; without halves, so do all lanes.
        let [first, second] = c.first(offsets[r]);
        out[r] = c.sum(sums[r]) + first + if F::HALVES { second } else { 0.0 };
    }
    out
}
