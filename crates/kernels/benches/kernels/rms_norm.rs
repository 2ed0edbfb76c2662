use criterion::{BenchmarkId, Criterion, SamplingMode};

use crate::machine::{Machine, work};

const WIDTH: usize = 2048;

pub(crate) fn bench(criterion: &mut Criterion, machine: &Machine) {
    let mut group = criterion.benchmark_group("rms_norm");
    group.sampling_mode(SamplingMode::Flat);
    for tokens in [1, 512] {
        let elements = tokens * WIDTH;
        // Read, read once more from the nearest cache, written; a square, a sum and two products for each element.
        group.throughput(work(4 * elements, 2 * elements * size_of::<f32>()));
        let id = BenchmarkId::new("2048", format!("batch {tokens}"));
        group.bench_function(id, |bencher| {
            let x: Vec<f32> = (0..elements).map(|i| (i % 17) as f32 - 8.0).collect();
            let weight = vec![1.0; WIDTH];
            let mut out = vec![0.0; elements];
            bencher.iter(|| machine.cpu.rms_norm(&x, &weight, 1e-5, &mut out));
        });
    }
    group.finish();
}
