use std::fs;

use criterion::Throughput;
use shoal_kernels::{Cpu, CpuConfig, Isa};

/// What the kernels run on here.
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    /// More than the last cache holds.
    pub(crate) large_bytes: usize,
}

impl Machine {
    /// Takes the instruction set from `SHOAL_ISA` and the threads from `SHOAL_BENCH_THREADS`: criterion owns the command line.
    pub(crate) fn from_environment() -> Self {
        let isa = variable("SHOAL_ISA").map_or_else(Isa::detect, |name| {
            Isa::parse(&name).unwrap_or_else(|error| panic!("SHOAL_ISA: {error}"))
        });
        let threads = variable("SHOAL_BENCH_THREADS").map_or(1, |count| {
            let parsed = count.parse();
            parsed.unwrap_or_else(|error| panic!("SHOAL_BENCH_THREADS {count:?}: {error}"))
        });
        let config = CpuConfig {
            isa,
            threads,
            first_core: None,
        };
        let cpu = Cpu::new(config).unwrap_or_else(|error| panic!("{error}"));
        println!("isa {isa}, {threads} thread(s)");
        Self {
            cpu,
            large_bytes: (2 * last_cache_bytes()).max(128 << 20),
        }
    }
}

/// The work of one case.
pub(crate) fn work(operations: usize, bytes: usize) -> Throughput {
    Throughput::ElementsAndBytes {
        elements: operations as u64,
        bytes: bytes as u64,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a binary, and its flags are criterion's"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The size of the third-level cache, or 0 where the system does not tell.
fn last_cache_bytes() -> usize {
    let size = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let kib = size.ok().and_then(|text| {
        let digits = text.trim().strip_suffix('K')?;
        digits.parse::<usize>().ok()
    });
    kib.unwrap_or(0) << 10
}
