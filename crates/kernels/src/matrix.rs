use crate::formats::{self, PANEL_ROWS};
use crate::{Dtype, machine, panels};

/// A weight matrix, `rows × cols`, in a storage format.
///
/// Rows come in as GGUF blocks, row-major. Quantised ones are then kept in panels of 16 rows, floats as they are.
#[derive(Debug, Clone)]
pub struct Matrix {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Matrix {
    /// Returns an empty buffer for the bytes of a matrix, backed by huge pages where the system has them: reading weights
    /// in one stream from small pages measured a sixth to a third slower.
    pub fn buffer(bytes: usize) -> Vec<u8> {
        let buffer = Vec::with_capacity(bytes);
        machine::advise_huge_pages(buffer.as_ptr(), bytes);
        buffer
    }

    /// Takes `rows` rows of `cols` weights each, as blocks of `dtype`, and lays them out for the kernels in place.
    ///
    /// # Errors
    /// If `cols` is not a whole number of blocks or `bytes` has another length than the shape asks for.
    pub fn new(
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
                panels::pack(dtype, row_bytes, &mut bytes);
                Ok(Self {
                    dtype,
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

    /// Returns the number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the storage format.
    pub fn dtype(&self) -> Dtype {
        self.dtype
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
        if self.dtype.is_quantized() {
            let panel = self.panel(row / PANEL_ROWS);
            panels::dequantize_row(self.dtype, panel, row % PANEL_ROWS, out);
        } else {
            formats::widen(self.dtype, self.floats(row), out);
        }
    }

    /// Returns a row of floats.
    pub(crate) fn floats(&self, row: usize) -> &[u8] {
        debug_assert!(!self.dtype.is_quantized());
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Returns a panel of quantised rows.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        debug_assert!(self.dtype.is_quantized());
        let panel_bytes = PANEL_ROWS * self.row_bytes;
        &self.bytes[panel * panel_bytes..][..panel_bytes]
    }
}

/// Why bytes are not a matrix. Whoever wrote the file can fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
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
