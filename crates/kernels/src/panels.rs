//! The layout of quantised weights in memory: panels of [`PANEL_ROWS`] rows, side by side.
//!
//! A panel has one record for each block of a row. It takes as many bytes as the blocks of the rows do and holds just
//! those, unit by unit: the first unit of every row, the second of every row, and so on, where a unit is a
//! half-precision float or four bytes of anything else, in the order of [`Format::source`]. So one load brings the same
//! four weights of each of a vector's lanes, each lane sums a row of its own, and weights are read in one stream.

use crate::formats::{CHUNK, Format, Layout, PANEL_ROWS, Shape, gather, spread, with_format};
use crate::pool::Pool;

/// Bytes of panels that a task makes at least, to outweigh the handing out of tasks.
const TASK_BYTES: usize = 64 << 10;

/// Makes `bytes` panels. For each, `fill(first, panel, rows)` writes the blocks of the rows from row `first` on; it is
/// shown what the panel's bytes are before that.
pub(crate) fn pack(
    pool: &Pool,
    layout: Layout,
    row_bytes: usize,
    bytes: &mut [u8],
    fill: impl Fn(usize, &[u8], &mut [u8]) + Sync,
) {
    let panel_bytes = PANEL_ROWS * row_bytes;
    if panel_bytes == 0 {
        return;
    }
    let panels = TASK_BYTES.div_ceil(panel_bytes);
    pool.for_each_chunk(bytes, panels * panel_bytes, |_, task, bytes| {
        let mut rows = vec![0; panel_bytes];
        for (i, panel) in bytes.chunks_exact_mut(panel_bytes).enumerate() {
            fill((task * panels + i) * PANEL_ROWS, panel, &mut rows);
            with_format!(
                layout,
                format => pack_panel(format, row_bytes, &rows, panel),
                _ => unreachable!("floats have no panels"),
            );
        }
    });
}

fn pack_panel<F: Format>(format: F, row_bytes: usize, rows: &[u8], panel: &mut [u8]) {
    let Shape {
        bytes, half_floats, ..
    } = format.shape();
    let records = panel.chunks_exact_mut(PANEL_ROWS * bytes);
    for (b, record) in records.enumerate() {
        let mut at = 0;
        while at < bytes {
            let from = b * bytes + format.source(at);
            at += if half_floats.contains(&at) {
                interleave::<2>(rows, row_bytes, from, &mut record[PANEL_ROWS * at..])
            } else {
                interleave::<4>(rows, row_bytes, from, &mut record[PANEL_ROWS * at..])
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
pub(crate) fn dequantize_row(layout: Layout, panel: &[u8], r: usize, out: &mut [f32]) {
    with_format!(layout, format => dequantize(format, panel, r, out), _ => unreachable!("floats have no panels"));
}

fn dequantize<F: Format>(format: F, panel: &[u8], r: usize, out: &mut [f32]) {
    const BLOCK_BYTES_MAX: usize = 210;
    let Shape {
        bytes,
        chunks,
        half_floats,
    } = format.shape();
    let mut block = [0; BLOCK_BYTES_MAX];
    let records = panel.chunks_exact(PANEL_ROWS * bytes);
    for (record, out) in records.zip(out.chunks_exact_mut(chunks * CHUNK)) {
        let mut at = 0;
        while at < bytes {
            let unit = if half_floats.contains(&at) { 2 } else { 4 };
            let from = PANEL_ROWS * at + r * unit;
            let unit_of_block = &mut block[format.source(at)..][..unit];
            unit_of_block.copy_from_slice(&record[from..from + unit]);
            if F::BITS == Some(at) {
                change(unit_of_block, gather);
            }
            at += unit;
        }
        format.dequantize(&block[..bytes], out);
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
            layout in crate::formats::tests::quantized(),
            rows in 1..40_usize,
            blocks in 1..3_usize,
            threads in 1..3_usize,
            seed in prop::collection::vec(any::<u8>(), 64..128),
        ) {
            let (block_bytes, block_len) = with_format!(
                layout,
                format => (format.shape().bytes, format.shape().chunks * CHUNK),
                _ => unreachable!()
            );
            let row_bytes = blocks * block_bytes;
            let bytes: Vec<u8> = seed.iter().cycle().copied().take(rows * row_bytes).collect();
            let mut packed = bytes.clone();
            packed.resize(rows.next_multiple_of(PANEL_ROWS) * row_bytes, 0);
            let pool = Pool::new(threads, false, |_| ()).unwrap();
            pack(&pool, layout, row_bytes, &mut packed, |_, panel, rows| rows.copy_from_slice(panel));
            let panels = packed.chunks_exact(PANEL_ROWS * row_bytes);
            for (r, row) in bytes.chunks_exact(row_bytes).enumerate() {
                let mut expected = vec![0.0; blocks * block_len];
                let outs = expected.chunks_exact_mut(block_len);
                for (block, out) in row.chunks_exact(block_bytes).zip(outs) {
                    with_format!(layout, format => format.dequantize(block, out), _ => unreachable!());
                }
                let mut out = vec![0.0; expected.len()];
                let panel = panels.clone().nth(r / PANEL_ROWS).unwrap();
                dequantize_row(layout, panel, r % PANEL_ROWS, &mut out);
                // All NaNs are alike: the language leaves their bits open, and Miri draws them.
                let bits = |x: f32| (!x.is_nan()).then_some(x.to_bits());
                let bits = |x: Vec<f32>| x.into_iter().map(bits).collect::<Vec<_>>();
                prop_assert_eq!(bits(out), bits(expected));
            }
        }
    }
}
