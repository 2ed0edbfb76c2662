//! Tiny models over ranks that are threads, and the comparison of their logits.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod reference;

use std::thread;
use std::time::Duration;

use shoal_fabric::{Exchange, in_process};
use shoal_kernels::{Cpu, CpuConfig, Isa, KvFormat};
use shoal_model::gguf::Gguf;
use shoal_model::{LoadConfig, Model, ModelError, Shares, Span};
use shoal_testkit::{TinyConfig, tiny_llama};

/// One row of logits for each span that wants them.
pub(crate) type Rows = Vec<Vec<f32>>;

pub(crate) const CONFIG: LoadConfig = LoadConfig {
    context: 128,
    kv_pages: 32,
    page_tokens: 8,
    kv_format: KvFormat::F16,
    exchange: Exchange::F32,
    batch_tokens_max: 64,
};

pub(crate) fn file(config: &TinyConfig) -> Gguf {
    Gguf::parse(tiny_llama(config)).expect("the testkit writes valid files")
}

pub(crate) fn cpu(isa: Isa) -> Cpu {
    Cpu::new(CpuConfig {
        isa,
        threads: 1,
        first_core: None,
    })
    .expect("an instruction set of this machine")
}

/// Runs the steps on one rank for each share, and returns every rank's rows of all steps.
pub(crate) fn on_ranks(file: &Gguf, shares: &[u32], isa: Isa, steps: &[Vec<Span>]) -> Vec<Rows> {
    on_ranks_with(CONFIG, file, shares, isa, steps)
}

pub(crate) fn on_ranks_with(
    config: LoadConfig,
    file: &Gguf,
    shares: &[u32],
    isa: Isa,
    steps: &[Vec<Span>],
) -> Vec<Rows> {
    let shares = Shares::new(shares.to_vec()).expect("shares");
    let run = |group: &mut shoal_fabric::Group| -> Result<Rows, ModelError> {
        let mut model = match group.rank().0 {
            0 => Model::load_root(file, &shares, config, cpu(isa), group, &mut |_, _| {})?,
            _ => Model::load_member(cpu(isa), group)?,
        };
        let mut rows = Vec::new();
        for spans in steps {
            let logits = model.forward(spans, group, &mut || {})?;
            rows.extend((0..logits.len()).map(|i| logits.row(i).to_vec()));
        }
        Ok(rows)
    };
    thread::scope(|scope| {
        let groups = in_process(shares.weights().len(), Duration::from_secs(60));
        let ranks: Vec<_> = groups
            .into_iter()
            .map(|mut group| scope.spawn(move || run(&mut group).expect("a step")))
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no panic"))
            .collect()
    })
}

/// The rows of a single rank.
pub(crate) fn alone(file: &Gguf, isa: Isa, steps: &[Vec<Span>]) -> Rows {
    on_ranks(file, &[1], isa, steps).remove(0)
}

/// A span over pages of its own, from `first_page` on.
pub(crate) fn span(tokens: &[u32], start: u32, first_page: u32) -> Span {
    Span {
        tokens: tokens.to_vec(),
        start,
        pages: (first_page..first_page + 8).collect(),
        wants_logits: true,
    }
}

/// Returns the largest difference of two rows, relative to the largest value.
pub(crate) fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let scale = largest(&mut want.iter().map(|value| value.abs()));
    assert!(scale > 0.1, "a model that says something");
    largest(&mut got.iter().zip(want).map(|(got, want)| (got - want).abs())) / scale
}

pub(crate) fn assert_close(got: &Rows, want: &Rows, tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: rows");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = difference(got, want);
        assert!(
            difference <= tolerance,
            "{what}, row {i}: {difference} of the largest logit"
        );
    }
}
