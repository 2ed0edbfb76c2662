//! Prints the likeliest next tokens after some token ids, and the peak memory of every rank's process:
//! `cargo run --release -p shoal-model --example logits -- MODEL.gguf SHARES ISA ID…`, with shares such as `1` or `3,1`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example says what it found")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use shoal_fabric::{Exchange, Group, Key, Rank, solo, tcp};
use shoal_kernels::{Cpu, CpuConfig, Isa, KvFormat, machine};
use shoal_model::gguf::{Gguf, Value};
use shoal_model::{LoadConfig, Logits, Model, Shares, Span};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["member", address, rank, world, isa, ref ids @ ..] => {
            member(address.parse()?, rank.parse()?, world.parse()?, isa, ids)
        }
        [path, shares, isa, ref ids @ ..] => {
            let weights: Result<_, _> = shares.split(',').map(str::parse).collect();
            root(Path::new(path), &Shares::new(weights?)?, isa, ids)
        }
        _ => Err("usage: logits MODEL.gguf SHARES ISA ID…".into()),
    }
}

/// Starts a process for each other rank, loads, and tells what comes out.
fn root(path: &Path, shares: &Shares, isa: &str, ids: &[&str]) -> Outcome<()> {
    let world = shares.weights().len();
    let rendezvous = tcp::Rendezvous::bind(([127, 0, 0, 1], 0).into(), world, key())?;
    let address = rendezvous.local_addr().to_string();
    let start = |rank: usize| {
        let (rank, world) = (rank.to_string(), world.to_string());
        let fixed = ["member", &address, &rank, &world, isa];
        Command::new(std::env::current_exe()?)
            .args(fixed)
            .args(ids)
            .spawn()
    };
    let members: Vec<_> = (1..world).map(start).collect::<Result<_, _>>()?;
    let mut group = match world {
        1 => solo(),
        _ => rendezvous.accept(deadline())?,
    };
    let file = Gguf::open(path)?;
    let before = Instant::now();
    let mut model = Model::load_root(&file, shares, CONFIG, cpu(isa)?, &mut group, &mut |_, _| {})?;
    println!("loaded in {:.2} s", before.elapsed().as_secs_f64());

    let before = Instant::now();
    let logits = step(&mut model, ids, &mut group)?;
    println!(
        "{} tokens in {:.3} s",
        ids.len(),
        before.elapsed().as_secs_f64()
    );
    let row = logits.row(0);
    let largest = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f32 = row.iter().map(|logit| (logit - largest).exp()).sum();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let texts = file
        .metadata("tokenizer.ggml.tokens")
        .and_then(Value::as_texts);
    for id in &order[..5] {
        let text = texts
            .and_then(|texts| texts.get(*id))
            .map_or("", String::as_str);
        println!("{id:>6} {text:<12} {:.4}", row[*id] - largest - sum.ln());
    }
    report(&model, group.rank());
    for mut member in members {
        member.wait()?;
    }
    Ok(())
}

fn member(address: SocketAddr, rank: u16, world: usize, isa: &str, ids: &[&str]) -> Outcome<()> {
    let mut group = tcp::join(address, Rank(rank), world, key(), deadline())?;
    let mut model = Model::load_member(cpu(isa)?, &mut group)?;
    step(&mut model, ids, &mut group)?;
    report(&model, group.rank());
    Ok(())
}

fn step<'a>(model: &'a mut Model, ids: &[&str], group: &mut Group) -> Outcome<Logits<'a>> {
    let tokens = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let pages = (0..CONFIG.kv_pages).collect();
    let span = Span {
        tokens,
        start: 0,
        pages,
        wants_logits: true,
    };
    Ok(model.forward(&[span], group, &mut || {})?)
}

fn report(model: &Model, rank: Rank) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{rank}: {}; weights {:.1} MiB, peak memory {:.1} MiB",
        model.split().describe(rank),
        mib(model.weight_bytes()),
        mib(machine::peak_memory_bytes())
    );
}

fn cpu(isa: &str) -> Outcome<Cpu> {
    let isa = Isa::parse(isa)?;
    Ok(Cpu::new(CpuConfig {
        isa,
        threads: 1,
        first_core: None,
    })?)
}

fn key() -> Key {
    Key::from_token("an example on one machine")
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

const CONFIG: LoadConfig = LoadConfig {
    context: 1024,
    kv_pages: 64,
    page_tokens: 16,
    kv_format: KvFormat::F16,
    exchange: Exchange::F32,
    batch_tokens_max: 512,
};
