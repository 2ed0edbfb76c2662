//! Integer products of many tokens: panels of quantised rows in tiles.
//!
//! A panel's integers are unpacked once, to lines that are a tile's rows as they lie: a group of four of each of the 16
//! weights rows. Then a tile of tokens goes through all chunks, one tile product each, and its sums are scaled and added
//! by the vectors, in the order and with the operations of [`super::panel`], so that no output depends on which of the
//! two computed it. For a chunk and 16 tokens that is one product in place of 128 of vectors; the scaling remains.

use crate::arch::Simd;
use crate::arch::tiles::{self, Line, TILE_ROWS, TOKEN_BYTES, TileUnit, Tiles};
use crate::formats::{CHUNK, Format, Lanes, PANEL_ROWS, Shape};

use super::activations::{Activations, Tile};
use super::panel::{add_scaled, zero_points};
use super::{Columns, Rows};

/// Most tokens of a tile.
pub(crate) const TILE: usize = TILE_ROWS;

/// Fewest tokens of a batch that are worth it: a full tile. With fewer, a tile product takes about as long as the vector
/// products it replaces, and the unpacked weights are written and read in addition.
pub(crate) const TOKENS_MIN: usize = TILE;

/// Groups of four in a chunk.
const GROUPS: usize = CHUNK / 4;

const _: () = assert!(TOKEN_BYTES == CHUNK && TILE_ROWS == PANEL_ROWS);

/// Computes `rows`, which start with a panel, for all tokens.
#[inline(always)]
pub(crate) fn multiply<S: Simd, F: Format, U: TileUnit>(
    s: S,
    unit: U,
    format: F,
    rows: &Rows<'_>,
    activations: &Activations,
    weights: &mut Vec<Line>,
    out: &Columns<'_>,
) {
    let mut tiles = unit.tiles(shape::<F>(TILE));
    let mut first = rows.range.start;
    while first < rows.range.end {
        let records = rows.matrix.panel(first / PANEL_ROWS);
        weights.resize(rows.matrix.cols() / CHUNK * GROUPS, Line::ZERO);
        unpack(s, format, records, weights);
        let panel = Panel {
            format,
            records,
            weights,
            first,
            rows: PANEL_ROWS.min(rows.range.end - first),
        };
        for i in 0..activations.tiles() {
            let tile = activations.tile(i);
            match tile.width {
                1 => panel.multiply::<S, _, 1>(s, &mut tiles, tile, out),
                2 => panel.multiply::<S, _, 2>(s, &mut tiles, tile, out),
                4 => panel.multiply::<S, _, 4>(s, &mut tiles, tile, out),
                8 => panel.multiply::<S, _, 8>(s, &mut tiles, tile, out),
                _ => panel.multiply::<S, _, TILE>(s, &mut tiles, tile, out),
            }
        }
        first += PANEL_ROWS;
    }
}

/// Returns the shape of the products of `tokens` with what has one scale.
fn shape<F: Format>(tokens: usize) -> tiles::Shape {
    let groups = if F::HALVES { GROUPS / 2 } else { GROUPS };
    tiles::Shape { tokens, groups }
}

/// Writes the integers of all chunks, a line for each group.
#[inline(always)]
fn unpack<S: Simd, F: Format>(s: S, format: F, records: &[u8], to: &mut [Line]) {
    let Shape { bytes, chunks, .. } = format.shape();
    let records = records.chunks_exact(PANEL_ROWS * bytes);
    for (record, to) in records.zip(to.chunks_exact_mut(chunks * GROUPS)) {
        for (at, line) in to.iter_mut().enumerate() {
            for first in (0..PANEL_ROWS).step_by(S::LANES) {
                let lanes = Lanes { record, first };
                let chunk = format.chunk(lanes, at / GROUPS);
                let quants = format.quants(s, chunk, at / GROUPS, at % GROUPS);
                s.store_bytes(quants, &mut line.0[4 * first..]);
            }
        }
    }
}

struct Panel<'a, F> {
    format: F,
    records: &'a [u8],
    /// Its integers.
    weights: &'a [Line],
    /// Its first row.
    first: usize,
    rows: usize,
}

impl<F: Format> Panel<'_, F> {
    /// Computes a tile of `W` tokens.
    #[inline(always)]
    fn multiply<S: Simd, T: Tiles, const W: usize>(
        &self,
        s: S,
        tiles: &mut T,
        tile: Tile<'_>,
        out: &Columns<'_>,
    ) {
        tiles.reshape(shape::<F>(W));
        // One round where a vector holds a panel, as it does wherever there are tiles; others are for tests.
        for lane in (0..self.rows).step_by(S::LANES) {
            let sums = self.sums::<S, T, W>(s, tiles, tile, lane);
            for (t, &sum) in sums.iter().enumerate() {
                let token = tile.first + t;
                if token < out.tokens {
                    let mut rows = [0.0; PANEL_ROWS];
                    s.store(sum, &mut rows);
                    let count = S::LANES.min(self.rows - lane);
                    out.write(token, self.first + lane, &rows[..count]);
                }
            }
        }
    }

    /// Returns the products of the rows from `lane` on with the tokens of a tile.
    #[inline(always)]
    fn sums<S: Simd, T: Tiles, const W: usize>(
        &self,
        s: S,
        tiles: &mut T,
        tile: Tile<'_>,
        lane: usize,
    ) -> [S::F32; W] {
        let mut sums = [s.splat(0.0); W];
        let Shape { bytes, chunks, .. } = self.format.shape();
        let records = self.records.chunks_exact(PANEL_ROWS * bytes);
        let weights = self.weights.chunks_exact(chunks * GROUPS);
        let quants = tile.quants.chunks_exact(chunks * W);
        let sides = tile.sides.chunks_exact(chunks * W);
        for (((record, weights), quants), sides) in records.zip(weights).zip(quants).zip(sides) {
            let lanes = Lanes {
                record,
                first: lane,
            };
            let header = self.format.header(s, lanes);
            for i in 0..chunks {
                let scales = self.format.scales(s, &header, lanes, i);
                let weights = &weights[i * GROUPS..][..GROUPS];
                let quants = quants[i * W..][..W].as_flattened();
                let sides = &sides[i * W..][..W];
                for half in 0..if F::HALVES { 2 } else { 1 } {
                    let mut dots = [Line::ZERO; W];
                    let groups = half * GROUPS / 2;
                    tiles.multiply(&quants[4 * groups..], &weights[groups..], &mut dots);
                    for t in 0..W {
                        let mut dots = s.load_bytes(&dots[t].0[4 * lane..]);
                        if F::ZERO != 0 {
                            let zero_points = zero_points::<F>(&sides[t], half);
                            dots = s.add_i32(dots, s.splat_i32(zero_points));
                        }
                        sums[t] = add_scaled::<S, F>(s, dots, &scales, half, &sides[t], sums[t]);
                    }
                }
            }
        }
        sums
    }
}
