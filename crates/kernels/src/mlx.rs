//! How MLX stores quantised weights, and how they become the blocks that panels are made of.
//!
//! A matrix is separate arrays, each row-major: codes as one stream of bits a row, the lowest first; a scale for each
//! group of weights in a row; in affine formats a bias for each group as well.

use half::{bf16, f16};

use crate::formats::{CHUNK, Layout, codes};
use crate::{Dtype, MatrixError};

/// A quantised format of MLX, of 32-bit words of codes and what stands beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MlxFormat {
    /// `scale × code + bias`. The kernels keep as many bytes as the arrays have.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: usize,
        /// Weights that share a scale and a bias: 32, 64 or 128.
        group: usize,
        /// What scales and biases are stored in: F32, F16 or BF16.
        floats: Dtype,
    },
    /// Four-bit floats (E2M1); a power of two (E8M0) for each 32.
    ///
    /// The kernels keep scales of two bytes: 4.5 bits a weight instead of 4.25.
    MxFp4,
    /// Four-bit floats (E2M1); a scale in E4M3 for each 16, and perhaps one for the matrix.
    ///
    /// The kernels keep scales of two bytes: 5 bits a weight instead of 4.5.
    NvFp4,
    /// Eight-bit floats (E4M3); a power of two (E8M0) for each 32.
    ///
    /// The kernels keep these as BF16, twice the memory and reading: the values span more than integers of eight bits do.
    /// They are exact in it down to 2^-133.
    MxFp8,
}

/// The arrays of a matrix, little-endian.
#[derive(Debug, Clone, Copy, Default)]
pub struct MlxArrays<'a> {
    /// The array MLX calls `weight`.
    pub codes: &'a [u8],
    /// One for each group.
    pub scales: &'a [u8],
    /// One for each group of an affine format; otherwise empty.
    pub biases: &'a [u8],
    /// With NVFP4 perhaps: 448 × 6 times what the scales of the matrix count in.
    pub global_scale: Option<f32>,
}

impl MlxFormat {
    /// Returns how a matrix of this format is kept.
    fn layout(self, global_scale: Option<f32>) -> Result<Layout, MatrixError> {
        Ok(match self {
            Self::Affine {
                bits,
                group,
                floats,
            } => {
                let known = matches!(bits, 2..=6 | 8) && matches!(group, 32 | 64 | 128);
                if !known || floats.is_quantized() {
                    return Err(MatrixError::Format { format: self });
                }
                Layout::Affine {
                    bits,
                    chunks: group / CHUNK,
                    floats,
                }
            }
            Self::MxFp4 => Layout::MxFp4,
            Self::NvFp4 => {
                // In this order, to round as MLX does.
                let unit = global_scale.map_or(1.0, |scale| scale / (448.0 * 6.0));
                Layout::NvFp4 { unit: unit / 2.0 }
            }
            Self::MxFp8 => Layout::Gguf(Dtype::Bf16),
        })
    }

    fn bits(self) -> usize {
        match self {
            Self::Affine { bits, .. } => bits,
            Self::MxFp4 | Self::NvFp4 => 4,
            Self::MxFp8 => 8,
        }
    }

    fn group(self) -> usize {
        match self {
            Self::Affine { group, .. } => group,
            Self::MxFp4 | Self::MxFp8 => 32,
            Self::NvFp4 => 16,
        }
    }

    fn scale_bytes(self) -> usize {
        match self {
            Self::Affine { floats, .. } => floats.block_bytes(),
            Self::MxFp4 | Self::NvFp4 | Self::MxFp8 => 1,
        }
    }
}

/// Arrays whose lengths were checked.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    format: MlxFormat,
    arrays: MlxArrays<'a>,
    cols: usize,
}

impl<'a> Source<'a> {
    /// Returns them with the layout that their rows are written for.
    pub(crate) fn new(
        format: MlxFormat,
        rows: usize,
        cols: usize,
        arrays: MlxArrays<'a>,
    ) -> Result<(Layout, Self), MatrixError> {
        let layout = format.layout(arrays.global_scale)?;
        // The kernels round activations in chunks, even where a group is half a chunk.
        let whole = format.group().max(CHUNK);
        if cols == 0 || !cols.is_multiple_of(whole) {
            return Err(MatrixError::Groups {
                format,
                cols,
                whole,
            });
        }
        let scales = (cols / format.group()).saturating_mul(format.scale_bytes());
        let affine = matches!(format, MlxFormat::Affine { .. });
        for (array, bytes, row_bytes) in [
            (
                "codes",
                arrays.codes,
                (cols / 8).saturating_mul(format.bits()),
            ),
            ("scales", arrays.scales, scales),
            ("biases", arrays.biases, if affine { scales } else { 0 }),
        ] {
            if row_bytes.checked_mul(rows) != Some(bytes.len()) {
                let bytes = bytes.len();
                return Err(MatrixError::Array {
                    array,
                    format,
                    rows,
                    cols,
                    bytes,
                });
            }
        }
        let source = Self {
            format,
            arrays,
            cols,
        };
        Ok((layout, source))
    }

    /// Writes a row as blocks of the format's layout.
    pub(crate) fn write_row(&self, row: usize, out: &mut [u8]) {
        let part = |array: &'a [u8], bytes: usize| &array[row * bytes..][..bytes];
        let scale_bytes = self.cols / self.format.group() * self.format.scale_bytes();
        let bits = part(self.arrays.codes, self.cols / 8 * self.format.bits());
        let scales = part(self.arrays.scales, scale_bytes);
        match self.format {
            MlxFormat::Affine {
                bits: width,
                group,
                floats,
            } => {
                let write = match width {
                    2 => write_codes::<2>,
                    3 => write_codes::<3>,
                    4 => write_codes::<4>,
                    5 => write_codes::<5>,
                    6 => write_codes::<6>,
                    _ => write_codes::<8>,
                };
                let float = floats.block_bytes();
                let biases = part(self.arrays.biases, scale_bytes);
                let groups = scales.chunks_exact(float).zip(biases.chunks_exact(float));
                let groups = groups.zip(bits.chunks_exact(group / 8 * width));
                let block_bytes = 2 * float + group / 8 * width;
                for (((scale, bias), bits), out) in groups.zip(out.chunks_exact_mut(block_bytes)) {
                    out[..float].copy_from_slice(scale);
                    out[float..2 * float].copy_from_slice(bias);
                    write(bits, &mut out[2 * float..]);
                }
            }
            MlxFormat::MxFp4 => {
                let blocks = out.chunks_exact_mut(2 + 16);
                for ((bits, &scale), out) in bits.chunks_exact(16).zip(scales).zip(blocks) {
                    out[..2].copy_from_slice(&power_of_two(scale).to_le_bytes());
                    write_codes::<4>(bits, &mut out[2..]);
                }
            }
            MlxFormat::NvFp4 => {
                let blocks = out.chunks_exact_mut(4 + 16);
                let scales = scales.as_chunks::<2>().0;
                for ((bits, &[first, second]), out) in bits.chunks_exact(16).zip(scales).zip(blocks)
                {
                    out[..2].copy_from_slice(&f16::from_f32(e4m3(first)).to_le_bytes());
                    out[2..4].copy_from_slice(&f16::from_f32(e4m3(second)).to_le_bytes());
                    write_codes::<4>(bits, &mut out[4..]);
                }
            }
            MlxFormat::MxFp8 => {
                let outs = out.as_chunks_mut::<2>().0.chunks_exact_mut(32);
                for ((codes, &scale), outs) in bits.chunks_exact(32).zip(scales).zip(outs) {
                    let scale = power_of_two(scale).to_f32();
                    for (&code, out) in codes.iter().zip(outs) {
                        *out = bf16::from_f32(e4m3(code) * scale).to_le_bytes();
                    }
                }
            }
        }
    }
}

/// Writes whole chunks of codes as panels keep them.
fn write_codes<const BITS: usize>(bits: &[u8], out: &mut [u8]) {
    let chunk = codes::chunk_bytes(BITS);
    for (bits, out) in bits.chunks_exact(chunk).zip(out.chunks_exact_mut(chunk)) {
        let mut groups = [0; 8];
        let pairs = groups.as_chunks_mut::<2>().0;
        for (bits, pair) in bits.as_chunks::<BITS>().0.iter().zip(pairs) {
            let mut word = [0; 8];
            word[..BITS].copy_from_slice(bits);
            let word = u64::from_le_bytes(word);
            for i in 0..8 {
                let code = (word >> (i * BITS)) as u32 & ((1 << BITS) - 1);
                pair[i / 4] |= code << (i % 4 * 8);
            }
        }
        codes::pack::<BITS>(&groups, out);
    }
}

/// E8M0, as MLX reads it: `2^(bits - 127)`.
fn power_of_two(bits: u8) -> bf16 {
    // The lowest power is subnormal.
    bf16::from_bits(if bits == 0 {
        0x40
    } else {
        u16::from(bits) << 7
    })
}

/// E4M3: bias 7, subnormals, no infinities.
fn e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (0, _) => fraction * 2.0_f32.powi(-9),
        (15, 7) => f32::NAN,
        _ => (8.0 + fraction) * 2.0_f32.powi(exponent - 10),
    };
    if bits < 128 { magnitude } else { -magnitude }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Matrix;

    pub(crate) fn format() -> impl Strategy<Value = MlxFormat> {
        let bits = prop::sample::select(vec![2, 3, 4, 5, 6, 8]);
        let group = prop::sample::select(vec![32, 64, 128]);
        let floats = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::Bf16]);
        prop_oneof![
            6 => (bits, group, floats).prop_map(|(bits, group, floats)| MlxFormat::Affine { bits, group, floats }),
            1 => Just(MlxFormat::MxFp4),
            1 => Just(MlxFormat::NvFp4),
            1 => Just(MlxFormat::MxFp8),
        ]
    }

    /// What columns must be a multiple of.
    pub(crate) fn whole(format: MlxFormat) -> usize {
        format.group().max(CHUNK)
    }

    #[derive(Debug, Clone)]
    pub(crate) struct Arrays {
        codes: Vec<u8>,
        scales: Vec<u8>,
        biases: Vec<u8>,
        global_scale: Option<f32>,
    }

    impl Arrays {
        pub(crate) fn matrix(&self, format: MlxFormat, rows: usize, cols: usize) -> Matrix {
            Matrix::from_mlx(format, rows, cols, self.rows(0..rows, rows)).unwrap()
        }

        /// Some of `count` rows.
        fn rows<'a>(&'a self, rows: std::ops::Range<usize>, count: usize) -> MlxArrays<'a> {
            let part = |array: &'a Vec<u8>| -> &'a [u8] {
                let row = array.len() / count;
                &array[row * rows.start..row * rows.end]
            };
            MlxArrays {
                codes: part(&self.codes),
                scales: part(&self.scales),
                biases: part(&self.biases),
                global_scale: self.global_scale,
            }
        }
    }

    /// Random arrays with finite weights.
    pub(crate) fn arrays(
        format: MlxFormat,
        rows: usize,
        cols: usize,
    ) -> impl Strategy<Value = Arrays> {
        let scales = rows * cols / format.group();
        let biases = if format.scale_bytes() > 1 { scales } else { 0 };
        let any_code = prop::collection::vec(any::<u8>(), rows * cols / 8 * format.bits());
        let scale =
            prop_oneof![8 => -0.5..0.5_f32, 1 => prop::sample::select(vec![0.0, 6e4, -6e4, 1e-7])];
        (
            any_code,
            prop::collection::vec((scale.clone(), 90..150_u8), scales),
            prop::collection::vec(scale, biases),
            prop::option::of(0.1..9.0_f32),
        )
            .prop_map(move |(mut codes, scales, biases, global_scale)| {
                if format == MlxFormat::MxFp8 {
                    // No NaN.
                    codes.iter_mut().for_each(|code| *code &= 0xfe);
                }
                let bytes = |(scale, byte): (f32, u8)| match format {
                    MlxFormat::Affine { floats, .. } => match floats {
                        Dtype::F32 => scale.to_le_bytes().to_vec(),
                        Dtype::F16 => f16::from_f32(scale).to_le_bytes().to_vec(),
                        _ => bf16::from_f32(scale).to_le_bytes().to_vec(),
                    },
                    MlxFormat::NvFp4 => vec![byte - 60],
                    MlxFormat::MxFp4 | MlxFormat::MxFp8 => vec![byte],
                };
                Arrays {
                    codes,
                    scales: scales.into_iter().flat_map(bytes).collect(),
                    biases: biases
                        .into_iter()
                        .flat_map(|bias| bytes((bias, 0)))
                        .collect(),
                    global_scale,
                }
            })
    }

    proptest! {
        #[test]
        fn rows_mean_what_they_mean_alone(
            (format, rows, cols, arrays) in (format(), 1..40_usize, 1..4_usize)
                .prop_flat_map(|(format, rows, groups)| {
                    let cols = groups * whole(format);
                    (Just(format), Just(rows), Just(cols), arrays(format, rows, cols))
                })
        ) {
            let together = arrays.matrix(format, rows, cols);
            for row in 0..rows {
                let alone = Matrix::from_mlx(format, 1, cols, arrays.rows(row..row + 1, rows)).unwrap();
                let mut outs = [vec![0.0; cols], vec![0.0; cols]];
                together.dequantize_row(row, &mut outs[0]);
                alone.dequantize_row(0, &mut outs[1]);
                prop_assert_eq!(&outs[0], &outs[1]);
            }
        }
    }

    #[test]
    fn arrays_that_do_not_fit_are_refused() {
        let format = MlxFormat::Affine {
            bits: 4,
            group: 64,
            floats: Dtype::Bf16,
        };
        let arrays = MlxArrays {
            codes: &[0; 128],
            scales: &[0; 8],
            biases: &[0; 8],
            global_scale: None,
        };
        let error = |format, cols, arrays| {
            let error = Matrix::from_mlx(format, 2, cols, arrays).unwrap_err();
            error.to_string()
        };
        assert!(Matrix::from_mlx(format, 2, 128, arrays).is_ok());
        assert!(
            error(format, 96, arrays).starts_with("96 columns are not a whole number of 64, which")
        );
        assert!(
            error(format, 192, arrays)
                .starts_with("128 bytes of codes do not belong to a 2 × 192 matrix of")
        );
        let no_biases = MlxArrays {
            biases: &[],
            ..arrays
        };
        assert!(error(format, 128, no_biases).starts_with("0 bytes of biases"));
        assert!(error(MlxFormat::NvFp4, 128, arrays).starts_with("8 bytes of scales"));
        assert!(error(MlxFormat::NvFp4, 16, arrays).starts_with("16 columns are not"));
        let one_bit = MlxFormat::Affine {
            bits: 1,
            group: 64,
            floats: Dtype::Bf16,
        };
        assert!(
            error(one_bit, 128, arrays).contains("is no format of MLX; affine codes have 2, 3,")
        );
        let huge = Matrix::from_mlx(format, usize::MAX, 64, arrays);
        assert!(huge.is_err());
    }
}
