//! The layout of quantised weights in memory: panels of [`PANEL_ROWS`] rows, side by side.
//!
//! A panel has one record for each block of a row. It takes as many bytes as the blocks of the rows do and holds just
//! those, unit by unit: the first unit of every row, the second of every row, and so on, where a unit is a half-precision
//! float or four bytes of anything else. So one load brings the same four weights of each of a vector's lanes, each lane
//! sums a row of its own, and weights are read in one stream.

use crate::Dtype;
use crate::formats::{Format, PANEL_ROWS, gather, spread, with_format};

/// Turns rows of blocks, one after the other, into panels in place. Missing rows of the last panel become zero.
pub(crate) fn pack(dtype: Dtype, row_bytes: usize, bytes: &mut Vec<u8>) {
    with_format!(dtype, F => pack_rows::<F>(row_bytes, bytes), _ => ());
}

fn pack_rows<F: Format>(row_bytes: usize, bytes: &mut Vec<u8>) {
    let panel_bytes = PANEL_ROWS * row_bytes;
    if panel_bytes == 0 {
        return;
    }
    bytes.resize(bytes.len().next_multiple_of(panel_bytes), 0);
    let mut rows = vec![0; panel_bytes];
    for panel in bytes.chunks_exact_mut(panel_bytes) {
        rows.copy_from_slice(panel);
        let records = panel.chunks_exact_mut(PANEL_ROWS * F::BYTES);
        for (b, record) in records.enumerate() {
            let mut at = 0;
            while at < F::BYTES {
                let from = b * F::BYTES + at;
                at += if F::HALF_FLOATS.contains(&at) {
                    interleave::<2>(&rows, row_bytes, from, &mut record[PANEL_ROWS * at..])
                } else {
                    interleave::<4>(&rows, row_bytes, from, &mut record[PANEL_ROWS * at..])
                };
            }
            if let Some(at) = F::BITS {
                let words = &mut record[PANEL_ROWS * at..][..4 * PANEL_ROWS];
                words
                    .chunks_exact_mut(4)
                    .for_each(|word| change(word, spread));
            }
        }
    }
}

/// Copies the unit of `N` bytes at `from` in each row; returns `N`.
#[inline(always)]
fn interleave<const N: usize>(rows: &[u8], row_bytes: usize, from: usize, to: &mut [u8]) -> usize {
    let units = to.as_chunks_mut::<N>().0;
    for (row, unit) in rows.chunks_exact(row_bytes).zip(units) {
        unit.copy_from_slice(&row[from..from + N]);
    }
    N
}

/// Writes row `r` of a panel as floats.
pub(crate) fn dequantize_row(dtype: Dtype, panel: &[u8], r: usize, out: &mut [f32]) {
    with_format!(dtype, F => dequantize::<F>(panel, r, out), _ => unreachable!("floats have no panels"));
}

fn dequantize<F: Format>(panel: &[u8], r: usize, out: &mut [f32]) {
    const BLOCK_BYTES_MAX: usize = 210;
    let mut block = [0; BLOCK_BYTES_MAX];
    let records = panel.chunks_exact(PANEL_ROWS * F::BYTES);
    let outs = out.chunks_exact_mut(F::CHUNKS * crate::formats::CHUNK);
    for (record, out) in records.zip(outs) {
        let mut at = 0;
        while at < F::BYTES {
            let unit = if F::HALF_FLOATS.contains(&at) { 2 } else { 4 };
            let from = PANEL_ROWS * at + r * unit;
            block[at..at + unit].copy_from_slice(&record[from..from + unit]);
            if F::BITS == Some(at) {
                change(&mut block[at..at + unit], gather);
            }
            at += unit;
        }
        F::dequantize(&block[..F::BYTES], out);
    }
}

fn change(word: &mut [u8], map: fn(u32) -> u32) {
    let bits = u32::from_le_bytes(word.try_into().expect("bits are in a word"));
    word.copy_from_slice(&map(bits).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition on the blocks as they came.
        #[test]
        fn packed_rows_mean_what_they_meant(
            dtype in prop::sample::select(Dtype::ALL[3..].to_vec()),
            rows in 1..40_usize,
            blocks in 1..3_usize,
            seed in prop::collection::vec(any::<u8>(), 64..128),
        ) {
            let row_bytes = blocks * dtype.block_bytes();
            let bytes: Vec<u8> = seed.iter().cycle().copied().take(rows * row_bytes).collect();
            let mut packed = bytes.clone();
            pack(dtype, row_bytes, &mut packed);
            prop_assert_eq!(packed.len(), rows.next_multiple_of(PANEL_ROWS) * row_bytes);
            let panels = packed.chunks_exact(PANEL_ROWS * row_bytes);
            for (r, row) in bytes.chunks_exact(row_bytes).enumerate() {
                let mut expected = vec![0.0; blocks * dtype.block_len()];
                let outs = expected.chunks_exact_mut(dtype.block_len());
                for (block, out) in row.chunks_exact(dtype.block_bytes()).zip(outs) {
                    with_format!(dtype, F => F::dequantize(block, out), _ => unreachable!());
                }
                let mut out = vec![0.0; expected.len()];
                let panel = panels.clone().nth(r / PANEL_ROWS).unwrap();
                dequantize_row(dtype, panel, r % PANEL_ROWS, &mut out);
                let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                prop_assert_eq!(bits(out), bits(expected));
            }
        }
    }
}
