//! Products of whole tiles of bytes, over which the products of many tokens are written ([`crate::ops::linear`]).
//!
//! One operation is all there is, so that a processor's tiles are a few instructions and [`define`] says in plain Rust
//! what they compute. Tests run the products over that definition on every machine; a processor's tiles are compared
//! with it before they are used.

/// Most tokens of a tile, and the weight rows of every tile.
pub(crate) const TILE_ROWS: usize = 16;

/// From one token's activations to the next token's.
pub(crate) const TOKEN_BYTES: usize = 32;

/// A row of a tile in memory: 16 groups of four weights, or 16 sums.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 64]);
}

/// What a tile product multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Tokens, `1..=TILE_ROWS`.
    pub(crate) tokens: usize,
    /// Groups of four activations of each token, `1..=8`.
    pub(crate) groups: usize,
}

/// Something that has tiles, as a value that proves it.
pub(crate) trait TileUnit: Copy {
    /// Its tiles, which a thread holds while it uses them and gives back when they are dropped.
    type Tiles: Tiles;
    /// Takes the tiles of this thread.
    fn tiles(self, shape: Shape) -> Self::Tiles;
}

/// The tiles of a thread.
pub(crate) trait Tiles {
    /// Makes ready for products of another shape.
    fn reshape(&mut self, shape: Shape);
    /// Sets 32-bit sum `r` of `sums[t]` to `Σ activations[t × TOKEN_BYTES + 4g + i] × weights[g][4r + i]`, for unsigned
    /// weights and signed activations.
    ///
    /// # Panics
    /// If there is less of anything than the shape says.
    fn multiply(&mut self, activations: &[i8], weights: &[Line], sums: &mut [Line]);
}

/// The definition of [`Tiles::multiply`].
pub(crate) fn define(shape: Shape, activations: &[i8], weights: &[Line], sums: &mut [Line]) {
    for (t, line) in sums[..shape.tokens].iter_mut().enumerate() {
        let activations = activations[t * TOKEN_BYTES..][..4 * shape.groups]
            .as_chunks::<4>()
            .0;
        for (r, to) in line.0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut sum = 0;
            for (four, line) in activations.iter().zip(&weights[..shape.groups]) {
                for (&y, &w) in four.iter().zip(&line.0[4 * r..]) {
                    sum += i32::from(y) * i32::from(w);
                }
            }
            *to = sum.to_le_bytes();
        }
    }
}

/// The definition as a unit of its own.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) struct Model;

/// Tiles that compute by the definition and refuse a shape that no processor has.
#[cfg(test)]
pub(crate) struct ModelTiles(Shape);

#[cfg(test)]
impl TileUnit for Model {
    type Tiles = ModelTiles;

    fn tiles(self, shape: Shape) -> ModelTiles {
        let mut tiles = ModelTiles(shape);
        tiles.reshape(shape);
        tiles
    }
}

#[cfg(test)]
impl Tiles for ModelTiles {
    fn reshape(&mut self, shape: Shape) {
        assert!((1..=TILE_ROWS).contains(&shape.tokens) && (1..=8).contains(&shape.groups));
        self.0 = shape;
    }

    fn multiply(&mut self, activations: &[i8], weights: &[Line], sums: &mut [Line]) {
        define(self.0, activations, weights, sums);
    }
}
