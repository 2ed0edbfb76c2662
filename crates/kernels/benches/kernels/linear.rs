use criterion::{BenchmarkId, Criterion, SamplingMode};
use shoal_kernels::{Dtype, Matrix, MlxArrays, MlxFormat};

use crate::machine::{Machine, work};

const COLS: usize = 4096;
/// From decoding one sequence over small batches to a chunk of a prompt.
const TOKENS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

pub(crate) fn bench(criterion: &mut Criterion, machine: &Machine) {
    let mut group = criterion.benchmark_group("linear");
    group.sampling_mode(SamplingMode::Flat);
    for weights in Weights::all() {
        // Made by the first case that the filter lets through.
        let mut made = None;
        for tokens in TOKENS {
            let row_bytes = weights.matrix(16).bytes_len() / 16;
            let rows = (machine.large_bytes / row_bytes).next_multiple_of(16);
            group.throughput(work(2 * rows * COLS * tokens, rows * row_bytes));
            let id = BenchmarkId::new(&weights.name, format!("batch {tokens}"));
            group.bench_function(id, |bencher| {
                let matrix = made.get_or_insert_with(|| weights.matrix(rows));
                let x: Vec<f32> = (0..tokens * COLS).map(|i| (i % 17) as f32 - 8.0).collect();
                let mut out = vec![0.0; tokens * rows];
                bencher.iter(|| machine.cpu.linear(&x, matrix, &mut out));
            });
        }
    }
    group.finish();
}

/// Matrices of a format.
struct Weights {
    name: String,
    format: Format,
}

enum Format {
    Gguf(Dtype),
    /// With the bits of a code, and the weights for each two bytes of scales.
    Mlx(MlxFormat, usize, usize),
}

impl Weights {
    fn all() -> Vec<Self> {
        let gguf = Dtype::ALL.into_iter().map(|dtype| Self {
            name: dtype.name().to_owned(),
            format: Format::Gguf(dtype),
        });
        let affine = [2, 3, 4, 5, 6, 8].map(|bits| {
            let (group, floats) = (64, Dtype::Bf16);
            let format = MlxFormat::Affine {
                bits,
                group,
                floats,
            };
            (format!("affine {bits}"), Format::Mlx(format, bits, group))
        });
        let floats = [
            ("mxfp4".to_owned(), Format::Mlx(MlxFormat::MxFp4, 4, 64)),
            ("nvfp4".to_owned(), Format::Mlx(MlxFormat::NvFp4, 4, 32)),
        ];
        let mlx = affine.into_iter().chain(floats);
        gguf.chain(mlx.map(|(name, format)| Self { name, format }))
            .collect()
    }

    /// These bytes make ordinary weights in every format: smaller ones are subnormal in bfloat16, which slow Intel's
    /// processors to a fifth.
    fn matrix(&self, rows: usize) -> Matrix {
        let ordinary = |len| (0..len).map(|i| (48 + i * 7 % 13) as u8);
        match self.format {
            Format::Gguf(dtype) => {
                // In the kind of buffer that loading uses.
                let mut bytes = Matrix::buffer(dtype, rows, COLS).expect("enough memory");
                bytes.extend(ordinary(
                    rows * dtype.row_bytes(COLS).expect("whole blocks"),
                ));
                Matrix::new(dtype, rows, COLS, bytes)
            }
            Format::Mlx(format, bits, group) => {
                let codes: Vec<u8> = ordinary(rows * COLS / 8 * bits).collect();
                let scales: Vec<u8> = ordinary(rows * COLS / group * 2).collect();
                let affine = matches!(format, MlxFormat::Affine { .. });
                let arrays = MlxArrays {
                    codes: &codes,
                    scales: &scales,
                    biases: if affine { &scales } else { &[] },
                    global_scale: None,
                };
                Matrix::from_mlx(format, rows, COLS, arrays)
            }
        }
        .expect("the lengths fit the shape")
    }
}
