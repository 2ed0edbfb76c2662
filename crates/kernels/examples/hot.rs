//! Calls one of the hottest kernels: `hot KERNEL ISA CALLS`. `cargo xtask instructions` counts what a call executes.

use shoal_kernels::{
    AttentionSpan, Cpu, CpuConfig, Dtype, HeadMap, Isa, KvCache, KvFormat, KvShape, Matrix,
};

const ROWS: usize = 256;
const COLS: usize = 2048;
const HEADS: HeadMap = HeadMap {
    heads: 8,
    group: 4,
    phase: 0,
};
const HEAD_DIM: usize = 64;
const CONTEXT: usize = 512;
const PAGE_TOKENS: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, isa, calls] = arguments.as_slice() else {
        return Err("usage: hot decode|decode-q4_k|prefill|attention ISA CALLS".into());
    };
    let cpu = Cpu::new(CpuConfig {
        isa: Isa::parse(isa)?,
        threads: 1,
        first_core: None,
    })?;
    let calls = calls.parse()?;
    match kernel.as_str() {
        "decode" => products(&cpu, Dtype::Q4_0, 1, calls)?,
        "decode-q4_k" => products(&cpu, Dtype::Q4K, 1, calls)?,
        "prefill" => products(&cpu, Dtype::Q4_0, 64, calls)?,
        "attention" => attention(&cpu, calls)?,
        unknown => return Err(format!("no kernel is called {unknown}").into()),
    }
    Ok(())
}

fn products(
    cpu: &Cpu,
    dtype: Dtype,
    tokens: usize,
    calls: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let bytes = dtype.row_bytes(COLS).ok_or("whole blocks")? * ROWS;
    let weights = (0..bytes).map(|i| (i % 61) as u8).collect();
    let matrix = Matrix::new(dtype, ROWS, COLS, weights)?;
    let x = values(tokens * COLS);
    let mut out = vec![0.0; tokens * ROWS];
    for _ in 0..calls {
        cpu.linear(&x, &matrix, &mut out);
    }
    Ok(())
}

fn attention(cpu: &Cpu, calls: u32) -> Result<(), Box<dyn std::error::Error>> {
    let pages: Vec<u32> = (0..(CONTEXT / PAGE_TOKENS) as u32).collect();
    let kv_heads = HEADS.heads / HEADS.group;
    let mut cache = KvCache::new(KvShape {
        layers: 1,
        pages: pages.len(),
        page_tokens: PAGE_TOKENS,
        kv_heads,
        head_dim: HEAD_DIM,
        format: KvFormat::F16,
    })?;
    let past = values(CONTEXT * kv_heads * HEAD_DIM);
    cache.write(0, &pages, 0, &past, &past);
    let span = AttentionSpan {
        pages: &pages,
        start: CONTEXT as u32 - 1,
        tokens: 1,
    };
    let q = values(HEADS.heads * HEAD_DIM);
    let mut out = vec![0.0; q.len()];
    for _ in 0..calls {
        cpu.attention(&q, &cache, 0, &[span], &HEADS, 0.125, &mut out);
    }
    Ok(())
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect()
}
