//! Prints the speed of `Cpu::linear` on one thread, for each format, instruction set and shape of
//! two models: weight bytes and operations (a multiplication and an addition count two) per second.
//!
//! `cargo run --release -p shoal-kernels --example linear_speed [FORMAT]`

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use shoal_kernels::{Cpu, CpuConfig, Dtype, Isa, Matrix};

fn main() {
    let only = std::env::args().nth(1);
    println!("isa       format  rows × cols    tokens    GB/s    GOP/s");
    for isa in Isa::ALL
        .into_iter()
        .skip(1)
        .filter(|isa| isa.is_available())
    {
        let config = CpuConfig {
            isa,
            threads: 1,
            first_core: None,
        };
        let cpu = Cpu::new(config).expect("the instruction set is there");
        for dtype in Dtype::ALL {
            if only.as_deref().is_some_and(|only| only != dtype.name()) {
                continue;
            }
            for (rows, cols) in [
                (1536, 512),
                (1536, 576),
                (49152, 576),
                (8192, 2048),
                (2048, 8192),
            ] {
                if cols % dtype.block_len() == 0 {
                    for tokens in [1, 128] {
                        measure(&cpu, dtype, rows, cols, tokens);
                    }
                }
            }
        }
    }
}

fn measure(cpu: &Cpu, dtype: Dtype, rows: usize, cols: usize, tokens: usize) {
    let row_bytes = dtype.row_bytes(cols).expect("cols are whole blocks");
    // More weights than caches hold, as in a model, where each matrix is read once a step.
    let copies = (256 << 20) / (rows * row_bytes) + 1;
    let matrices: Vec<_> = (0..copies)
        .map(|i| {
            let bytes = (0..rows * row_bytes)
                .map(|j| ((i + j * 7) % 61) as u8)
                .collect();
            Matrix::new(dtype, rows, cols, bytes).expect("the length fits the shape")
        })
        .collect();
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut out = vec![0.0; tokens * rows];
    cpu.linear(&x, &matrices[0], &mut out);
    // The fastest of many rounds: what else runs on the machine only ever slows a round down.
    let mut fastest = Duration::MAX;
    let (start, round) = (Instant::now(), 4.min(copies));
    for first in (0..).step_by(round) {
        let began = Instant::now();
        for i in first..first + round {
            cpu.linear(&x, &matrices[i % copies], &mut out);
        }
        fastest = fastest.min(began.elapsed());
        if start.elapsed() > Duration::from_millis(500) {
            break;
        }
    }
    let seconds = fastest.as_secs_f64() / round as f64;
    println!(
        "{:<9} {:<6} {rows:>6} × {cols:<6} {tokens:>6} {:>9.2} {:>8.1}",
        cpu.isa().to_string(),
        dtype.to_string(),
        (rows * row_bytes) as f64 / seconds / 1e9,
        (2 * rows * cols * tokens) as f64 / seconds / 1e9,
    );
}
