//! Products with few tokens, where reading the weights is the cost: each block is decoded in
//! registers on its way past.

use crate::arch::Chunk;
use crate::formats::{CHUNK, Format};

use super::activations::{Activations, Side};
use super::{Columns, Rows};

/// Bytes ahead of the block in work to ask for. The hardware's own prefetchers stop at 4 KiB pages.
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
    let mut blocks = [F::blocks(rows[0]); R];
    let count = blocks[0].len();
    for r in 0..R {
        blocks[r] = &F::blocks(rows[r])[..count];
    }
    let mut sums = [c.zero(); R];
    let mut offsets = [0.0; R];
    let chunks = quants
        .chunks_exact(F::CHUNKS)
        .zip(sides.chunks_exact(F::CHUNKS));
    for (b, (quants, sides)) in chunks.take(count).enumerate() {
        for r in 0..R {
            let block = &blocks[r][b];
            c.prefetch(
                (&raw const *block)
                    .cast::<u8>()
                    .wrapping_add(PREFETCH_BYTES),
            );
            let header = F::header(c, block);
            for i in 0..F::CHUNKS {
                let chunk = F::unpack(c, block, header, i);
                let side = sides[i];
                let scales = [side.scale * chunk.scales[0], side.scale * chunk.scales[1]];
                sums[r] = c.add_products(sums[r], chunk.quants, &quants[i], scales, F::WIDE);
                offsets[r] += if F::HALVES {
                    chunk.mins[0] * side.half_sums[0] + chunk.mins[1] * side.half_sums[1]
                } else {
                    chunk.mins[0] * side.sum
                };
            }
        }
    }
    let mut out = offsets;
    for r in 0..R {
        out[r] += c.total(sums[r]);
    }
    out
}
