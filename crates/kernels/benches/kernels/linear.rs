use criterion::{BenchmarkId, Criterion, SamplingMode};
use shoal_kernels::{Dtype, Matrix};

use crate::machine::{Machine, work};

const COLS: usize = 4096;
/// From decoding one sequence over small batches to a chunk of a prompt.
const TOKENS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

pub(crate) fn bench(criterion: &mut Criterion, machine: &Machine) {
    let mut group = criterion.benchmark_group("linear");
    group.sampling_mode(SamplingMode::Flat);
    for dtype in Dtype::ALL {
        // Made by the first case that the filter lets through.
        let mut made = None;
        for tokens in TOKENS {
            let row_bytes = dtype.row_bytes(COLS).expect("whole blocks");
            let rows = (machine.large_bytes / row_bytes).next_multiple_of(16);
            group.throughput(work(2 * rows * COLS * tokens, rows * row_bytes));
            let id = BenchmarkId::new(dtype.name(), format!("batch {tokens}"));
            group.bench_function(id, |bencher| {
                let matrix = made.get_or_insert_with(|| matrix(dtype, rows));
                let x: Vec<f32> = (0..tokens * COLS).map(|i| (i % 17) as f32 - 8.0).collect();
                let mut out = vec![0.0; tokens * rows];
                bencher.iter(|| machine.cpu.linear(&x, matrix, &mut out));
            });
        }
    }
    group.finish();
}

/// A matrix in the kind of buffer that loading uses. Small bytes make finite, ordinary weights in every format.
fn matrix(dtype: Dtype, rows: usize) -> Matrix {
    let bytes_len = rows * dtype.row_bytes(COLS).expect("whole blocks");
    let mut bytes = Matrix::buffer(bytes_len);
    bytes.extend((0..bytes_len).map(|i| (i * 7 % 61) as u8));
    Matrix::new(dtype, rows, COLS, bytes).expect("the length fits the shape")
}
