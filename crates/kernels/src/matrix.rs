use crate::formats::{self, Layout, PANEL_ROWS};
use crate::mlx::{MlxArrays, MlxFormat, Source};
use crate::pool::Pool;
use crate::{Dtype, machine, panels};

/// A weight matrix, `rows × cols`, in a storage format.
///
/// Rows come in as GGUF blocks or MLX arrays, row-major. Quantised ones are then kept in panels of 16 rows, floats in rows.
#[derive(Debug, Clone)]
pub struct Matrix {
    layout: Layout,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Matrix {
    /// Returns an empty buffer for the bytes of a matrix, with room for its last panel to be filled up. It is backed by huge
    /// pages where the system has them: reading weights in one stream from small pages measured a sixth to a third slower.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn buffer(dtype: Dtype, rows: usize, cols: usize) -> Result<Vec<u8>, MatrixError> {
        Self::room(
            dtype.is_quantized(),
            rows,
            dtype.row_bytes(cols).unwrap_or(0),
        )
    }

    fn room(panels: bool, rows: usize, row_bytes: usize) -> Result<Vec<u8>, MatrixError> {
        let rows = rows.checked_next_multiple_of(if panels { PANEL_ROWS } else { 1 });
        let bytes = rows.and_then(|rows| rows.checked_mul(row_bytes));
        let bytes = bytes.unwrap_or(usize::MAX);
        let mut buffer = Vec::new();
        buffer
            .try_reserve_exact(bytes)
            .map_err(|_refused| MatrixError::Memory {
                size_mib: bytes >> 20,
            })?;
        machine::advise_huge_pages(buffer.as_ptr(), bytes);
        Ok(buffer)
    }

    /// Takes `rows` rows of `cols` weights each, as blocks of `dtype`, and lays them out for the kernels in place.
    ///
    /// # Errors
    /// If `cols` is not a whole number of blocks or `bytes` has another length than the shape asks for.
    pub fn new(
        dtype: Dtype,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
    ) -> Result<Self, MatrixError> {
        Self::pack_gguf(&Pool::caller(), dtype, rows, cols, bytes)
    }

    /// Lays out `rows` rows of `cols` weights each for the kernels, from the arrays of an MLX matrix.
    ///
    /// # Errors
    /// If MLX has no such format, `cols` is not a whole number of groups and of 32 weights, or an array has another length
    /// than the shape asks for.
    pub fn from_mlx(
        format: MlxFormat,
        rows: usize,
        cols: usize,
        arrays: MlxArrays<'_>,
    ) -> Result<Self, MatrixError> {
        Self::pack_mlx(&Pool::caller(), format, rows, cols, arrays)
    }

    pub(crate) fn pack_gguf(
        pool: &Pool,
        dtype: Dtype,
        rows: usize,
        cols: usize,
        mut bytes: Vec<u8>,
    ) -> Result<Self, MatrixError> {
        if cols == 0 || !cols.is_multiple_of(dtype.block_len()) {
            return Err(MatrixError::Columns { dtype, cols });
        }
        let row_bytes = dtype.row_bytes(cols);
        let expected = row_bytes.and_then(|row| row.checked_mul(rows));
        match (row_bytes, expected) {
            (Some(row_bytes), Some(expected)) if expected == bytes.len() => {
                let layout = Layout::Gguf(dtype);
                if layout.is_quantized() {
                    bytes.resize(rows.next_multiple_of(PANEL_ROWS) * row_bytes, 0);
                    panels::pack(pool, layout, row_bytes, &mut bytes, |_, panel, rows| {
                        rows.copy_from_slice(panel);
                    });
                }
                Ok(Self {
                    layout,
                    rows,
                    cols,
                    row_bytes,
                    bytes,
                })
            }
            _ => Err(MatrixError::Bytes {
                dtype,
                rows,
                cols,
                bytes: bytes.len(),
            }),
        }
    }

    pub(crate) fn pack_mlx(
        pool: &Pool,
        format: MlxFormat,
        rows: usize,
        cols: usize,
        arrays: MlxArrays<'_>,
    ) -> Result<Self, MatrixError> {
        let (layout, source) = Source::new(format, rows, cols, arrays)?;
        // Whole groups are whole blocks, so what can go wrong is a row longer than any memory.
        let row_bytes = layout.row_bytes(cols).ok_or(MatrixError::Memory {
            size_mib: usize::MAX >> 20,
        })?;
        let panels = layout.is_quantized();
        let mut bytes = Self::room(panels, rows, row_bytes)?;
        let rows_kept = rows.next_multiple_of(if panels { PANEL_ROWS } else { 1 });
        bytes.resize(rows_kept * row_bytes, 0);
        if panels {
            panels::pack(pool, layout, row_bytes, &mut bytes, |first, _, out| {
                out.fill(0);
                for (row, out) in (first..rows).zip(out.chunks_exact_mut(row_bytes)) {
                    source.write_row(row, out);
                }
            });
        } else {
            pool.for_each_chunk(&mut bytes, row_bytes, |_, row, out| {
                source.write_row(row, out);
            });
        }
        Ok(Self {
            layout,
            rows,
            cols,
            row_bytes,
            bytes,
        })
    }

    /// Returns the number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns how weights lie in memory.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the memory it takes.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes one row as `f32`: an embedding look-up.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `cols` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "out holds one row");
        assert!(row < self.rows, "row {row} of {}", self.rows);
        match self.layout {
            Layout::Gguf(dtype) if !dtype.is_quantized() => {
                formats::widen(dtype, self.floats(row), out);
            }
            layout => {
                let panel = self.panel(row / PANEL_ROWS);
                panels::dequantize_row(layout, panel, row % PANEL_ROWS, out);
            }
        }
    }

    /// Returns a row of floats.
    pub(crate) fn floats(&self, row: usize) -> &[u8] {
        debug_assert!(!self.layout.is_quantized());
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Returns a panel of quantised rows.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        debug_assert!(self.layout.is_quantized());
        let panel_bytes = PANEL_ROWS * self.row_bytes;
        &self.bytes[panel * panel_bytes..][..panel_bytes]
    }
}

/// Why there is no matrix. But for the memory, whoever wrote the file can fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// MLX has no such format.
    #[error(
        "{format:?} is no format of MLX; affine codes have 2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128, and scales in F32, F16 or BF16"
    )]
    Format {
        /// The format asked for.
        format: MlxFormat,
    },
    /// A row would end inside a group, or inside a block of activations.
    #[error("{cols} columns are not a whole number of {whole}, which {format:?} needs")]
    Groups {
        /// Format of the arrays.
        format: MlxFormat,
        /// Columns asked for.
        cols: usize,
        /// What they must be a multiple of.
        whole: usize,
    },
    /// An array is shorter or longer than the shape.
    #[error("{bytes} bytes of {array} do not belong to a {rows} × {cols} matrix of {format:?}")]
    Array {
        /// `codes`, `scales` or `biases`.
        array: &'static str,
        /// Format of the arrays.
        format: MlxFormat,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// The system refuses the memory.
    #[error("the system refuses {size_mib} MiB for a matrix")]
    Memory {
        /// What was asked for.
        size_mib: usize,
    },
    /// A row would end inside a block.
    #[error("{cols} columns are not a whole number of {dtype} blocks of {}", dtype.block_len())]
    Columns {
        /// Format of the blocks.
        dtype: Dtype,
        /// Columns asked for.
        cols: usize,
    },
    /// The data is shorter or longer than its shape.
    #[error("{bytes} bytes are not a {rows} × {cols} matrix of {dtype}")]
    Bytes {
        /// Format of the blocks.
        dtype: Dtype,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes given.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        let none = MlxArrays::default();
        let cols = usize::MAX / 32 * 32;
        for error in [
            Matrix::buffer(Dtype::Q8_0, usize::MAX, 32).unwrap_err(),
            Matrix::buffer(Dtype::F32, 1 << 40, 1 << 20).unwrap_err(),
            Matrix::from_mlx(MlxFormat::MxFp8, 0, cols, none).unwrap_err(),
        ] {
            assert!(matches!(error, MatrixError::Memory { .. }), "{error}");
        }
    }

    #[test]
    fn new_checks_the_shape() {
        assert!(Matrix::new(Dtype::Q8_0, 2, 32, vec![0; 68]).is_ok());
        let error = Matrix::new(Dtype::Q8_0, 2, 33, vec![0; 68]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "33 columns are not a whole number of Q8_0 blocks of 32"
        );
        let error = Matrix::new(Dtype::Q8_0, 2, 32, vec![0; 67]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "67 bytes are not a 2 × 32 matrix of Q8_0"
        );
        assert!(Matrix::new(Dtype::F32, usize::MAX, 4, vec![]).is_err());
    }
}
