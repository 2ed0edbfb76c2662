use criterion::{BenchmarkId, Criterion, SamplingMode};
use shoal_kernels::{AttentionSpan, HeadMap, KvCache, KvFormat, KvShape};

use crate::machine::{Machine, work};

/// The heads of a model of 1 G parameters, and the engine's pages.
const HEADS: HeadMap = HeadMap {
    heads: 32,
    group: 4,
    phase: 0,
};
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const PAGE_TOKENS: usize = 32;

pub(crate) fn bench(criterion: &mut Criterion, machine: &Machine) {
    let mut group = criterion.benchmark_group("attention");
    group.sampling_mode(SamplingMode::Flat);
    for format in KvFormat::ALL {
        for context in [128, 1024, 8192] {
            let case = Case {
                format,
                context,
                tokens: 1,
            };
            case.bench(&mut group, machine, "decode");
        }
        for context in [512, 8192] {
            let case = Case {
                format,
                context,
                tokens: 512,
            };
            case.bench(&mut group, machine, "prefill");
        }
    }
    group.finish();
}

/// The last `tokens` positions of one sequence attend to all before them.
struct Case {
    format: KvFormat,
    context: usize,
    tokens: usize,
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

impl Case {
    fn bench(&self, group: &mut Group<'_>, machine: &Machine, name: &str) {
        let &Self {
            format,
            context,
            tokens,
        } = self;
        let head_bytes = match format {
            KvFormat::F16 => 2 * HEAD_DIM,
            KvFormat::Q8 => HEAD_DIM + size_of::<f32>(),
        };
        let layer_bytes = 2 * context * KV_HEADS * head_bytes;
        let start = context - tokens;
        let pairs: usize = (start + 1..=context).sum();
        // A score and a weighted value: a multiplication and an addition each.
        let operations = 4 * HEADS.heads * HEAD_DIM * pairs;
        group.throughput(work(operations, layer_bytes));
        let id = BenchmarkId::new(format!("{name} {format}"), format!("at {context}"));
        group.bench_function(id, |bencher| {
            // Every call reads another layer, so that none finds its keys in a cache.
            let layers = machine.large_bytes.div_ceil(layer_bytes);
            let (cache, pages) = filled(format, layers, context);
            let span = AttentionSpan {
                pages: &pages,
                start: start as u32,
                tokens,
            };
            let q = values(tokens * HEADS.heads * HEAD_DIM);
            let mut out = vec![0.0; q.len()];
            let mut layer = 0;
            bencher.iter(|| {
                let cpu = &machine.cpu;
                cpu.attention(&q, &cache, layer, &[span], &HEADS, 0.125, &mut out);
                layer = (layer + 1) % layers;
            });
        });
    }
}

fn filled(format: KvFormat, layers: usize, context: usize) -> (KvCache, Vec<u32>) {
    let pages: Vec<u32> = (0..context.div_ceil(PAGE_TOKENS) as u32).collect();
    let mut cache = KvCache::new(KvShape {
        layers,
        pages: pages.len(),
        page_tokens: PAGE_TOKENS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        format,
    })
    .expect("a few hundred MiB are there");
    let (k, v) = (
        values(context * KV_HEADS * HEAD_DIM),
        values(context * KV_HEADS * HEAD_DIM),
    );
    for layer in 0..layers {
        cache.write(layer, &pages, 0, &k, &v);
    }
    (cache, pages)
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 23) as f32 / 23.0 - 0.5).collect()
}
