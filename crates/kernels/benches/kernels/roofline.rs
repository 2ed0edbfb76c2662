//! What the machine can do: bytes read from memory, multiply-adds of 8-bit integers and of floats.
//!
//! Threads share nothing but the memory bus. Memory is read from the kind of buffer that weights lie in, once by plain
//! loads and once with prefetches: which is faster depends on the processor, and the faster one is the bound.

mod peak;
mod read;

use std::hint::black_box;
use std::thread;

use criterion::{Criterion, SamplingMode, Throughput};
use shoal_kernels::{Dtype, Matrix};

use crate::machine::Machine;
use peak::Peak;

pub(crate) fn bench(criterion: &mut Criterion, machine: &Machine) {
    let threads = machine.cpu.threads();
    let mut group = criterion.benchmark_group("roofline");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(machine.large_bytes as u64));
    let mut made = None;
    for way in read::WAYS {
        group.bench_function(way.name, |bencher| {
            let bytes: &mut Vec<u8> = made.get_or_insert_with(|| {
                let mut bytes =
                    Matrix::buffer(Dtype::F32, 1, machine.large_bytes / 4).expect("enough memory");
                bytes.resize(machine.large_bytes, 1);
                bytes
            });
            let parts: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(threads)).collect();
            bencher.iter(|| {
                on_threads(&parts, |part| {
                    black_box((way.read)(part));
                });
            });
        });
    }
    drop(made);

    let isa = machine.cpu.isa();
    let each = vec![(); threads];
    for (name, peak) in [
        ("dot", Peak::of_bytes(isa)),
        ("multiply-add", Peak::of_floats(isa)),
    ] {
        let Some(peak) = peak else {
            println!("roofline/{name}: not known for {isa}");
            continue;
        };
        group.throughput(Throughput::Elements((threads * peak.operations()) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| on_threads(&each, |()| peak.run()));
        });
    }
    group.finish();
}

/// Calls `job` for each part, on a thread of its own. Starting a thread takes some 20 µs, a part some milliseconds.
fn on_threads<T: Sync>(parts: &[T], job: impl Fn(&T) + Sync) {
    let (first, rest) = parts.split_first().expect("there is a thread");
    thread::scope(|scope| {
        for part in rest {
            scope.spawn(|| job(part));
        }
        job(first);
    });
}
