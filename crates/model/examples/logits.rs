//! Prints the likeliest next tokens after some token ids, computed by as many ranks as asked for, in one process:
//! `cargo run --release -p shoal-model --example logits -- MODEL.gguf NODES ISA ID…`
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Duration;

use shoal_fabric::{Group, in_process};
use shoal_kernels::{Cpu, CpuConfig, Isa};
use shoal_model::gguf::Gguf;
use shoal_model::{LoadConfig, Model, Shares, Span};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, nodes, isa, ids @ ..] = args.as_slice() else {
        panic!("usage: logits MODEL.gguf NODES ISA ID…");
    };
    let file = Gguf::open(Path::new(path)).expect("a model");
    let nodes: usize = nodes.parse().expect("a number of nodes");
    let isa = Isa::parse(isa).expect("an instruction set of this machine");
    let tokens: Vec<u32> = ids
        .iter()
        .map(|id| id.parse().expect("a token id"))
        .collect();
    let texts = file
        .metadata("tokenizer.ggml.tokens")
        .and_then(|value| value.as_texts())
        .unwrap_or(&[]);

    std::thread::scope(|scope| {
        let (file, tokens) = (&file, &tokens);
        for group in in_process(nodes, Duration::from_secs(60)) {
            scope.spawn(move || run(file, tokens, nodes, isa, group, texts));
        }
    });
}

fn run(file: &Gguf, tokens: &[u32], nodes: usize, isa: Isa, mut group: Group, texts: &[String]) {
    let cpu = Cpu::new(CpuConfig {
        isa,
        threads: 1,
        first_core: None,
    })
    .expect("a CPU");
    let root = group.rank().0 == 0;
    let config = LoadConfig {
        context: 1024,
        kv_pages: 64,
        page_tokens: 16,
        batch_tokens_max: 1024,
    };
    let mut model = if root {
        Model::load_root(
            file,
            &Shares::equal(nodes),
            config,
            cpu,
            &mut group,
            &mut |_, _| {},
        )
    } else {
        Model::load_member(cpu, &mut group)
    }
    .expect("a model of a supported family");
    let span = Span {
        tokens: tokens.to_vec(),
        start: 0,
        pages: (0..64).collect(),
        wants_logits: true,
    };
    let logits = model.forward(&[span], &mut group).expect("a step");
    if root {
        let row = logits.row(0);
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = row.iter().map(|logit| (logit - largest).exp()).sum();
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for id in &order[..5] {
            let text = texts.get(*id).map_or("", String::as_str);
            println!("{id:>6} {text:<12} {:.4}", row[*id] - largest - sum.ln());
        }
    }
}
