//! How far fast kernels and splits move a whole model: its perplexity on a text with every instruction set of this
//! machine, over two ranks, and with keys and values kept or sums sent as integers, against the scalar path with `f32`
//! activations.
//!
//! `cargo run --release -p shoal --example perplexity -- MODEL.gguf TEXT.txt` prints a table (`--json`: one object) and
//! ends with status 1 if a perplexity is further from the scalar one than `--tolerance-percent`.
//!
//! A text is cut into windows of [`WINDOW_TOKENS`]. Each begins with a prompt of [`PROMPT_TOKENS`] as one span, of which
//! only the last token is asked what comes next; the rest is read in steps of [`STEP_TOKENS`] in turn, so that prefill,
//! decoding and what lies between all take part.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "an example says what it found")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use shoal_fabric::{Exchange, Group, in_process};
use shoal_kernels::{Cpu, CpuConfig, Isa, KvFormat, machine};
use shoal_model::gguf::Gguf;
use shoal_model::{LoadConfig, Model, Shares, Span};
use shoal_text::Special;

use crate::model_file::ModelFile;

#[path = "../src/model_file.rs"]
#[allow(dead_code, reason = "the binary reads more of a file")]
mod model_file;

/// Compares a model's perplexity on a text between instruction sets and splits
#[derive(Parser)]
struct Args {
    /// The model, a GGUF file
    model: PathBuf,
    /// The text
    text: PathBuf,
    /// How far a perplexity may be from the scalar one; twice as far where sums are sent as 8-bit integers
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5)]
    tolerance_percent: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let tokens = tokens(&args.model, &args.text)?;
    let file = Gguf::open(&args.model)?;
    let mut report = Report {
        text_tokens: tokens.len(),
        window_tokens: WINDOW_TOKENS,
        scored_tokens: 0,
        tolerance_percent: args.tolerance_percent,
        rows: Vec::new(),
    };
    let reference = Setup::alone(Isa::Scalar);
    let want = reference.score(&file, &tokens)?;
    report.scored_tokens = want.likeliest.len();
    report.rows.push(Row::new(reference, &want, &want));
    for setup in Setup::compared() {
        let got = setup.score(&file, &tokens)?;
        report.rows.push(Row::new(setup, &got, &want));
    }
    report.print(args.json)?;
    Ok(match report.is_within_tolerance() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Reads and encodes the text. Its words are text whatever they say.
fn tokens(model: &Path, text: &Path) -> Result<Vec<u32>> {
    let name = || format!("reading {}", text.display());
    let words = std::fs::read_to_string(text).with_context(name)?;
    let tokenizer = &ModelFile::open(model)?.text()?.tokenizer;
    let tokens = tokenizer.encode(&words, Special::AsText)?;
    ensure!(
        tokens.len() >= WINDOW_TOKENS,
        "{} has {} tokens; give a text of at least {WINDOW_TOKENS}",
        text.display(),
        tokens.len()
    );
    Ok(tokens)
}

/// What computes: an instruction set, on a number of equal ranks.
#[derive(Clone, Copy)]
struct Setup {
    isa: Isa,
    kv_format: KvFormat,
    ranks: usize,
    exchange: Exchange,
}

impl Setup {
    fn alone(isa: Isa) -> Self {
        Self {
            isa,
            kv_format: KvFormat::F16,
            ranks: 1,
            exchange: Exchange::F32,
        }
    }

    /// Every instruction set but the scalar one, alone, then splits and the other formats with the one a cell would choose.
    fn compared() -> Vec<Self> {
        let fast = Isa::ALL.into_iter().skip(1);
        let fast = fast.filter(|isa| isa.is_available()).map(Self::alone);
        let others = [
            (KvFormat::F16, 2, Exchange::F32),
            (KvFormat::Q8, 1, Exchange::F32),
            (KvFormat::Q8, 2, Exchange::F32),
            (KvFormat::F16, 2, Exchange::Q8),
        ];
        let others = others.map(|(kv_format, ranks, exchange)| Self {
            isa: Isa::detect(),
            kv_format,
            ranks,
            exchange,
        });
        fast.chain(others).collect()
    }

    /// Loads the model and scores the text, on all cores together. Ranks are threads.
    fn score(self, file: &Gguf, tokens: &[u32]) -> Result<Score> {
        let shares = Shares::equal(self.ranks);
        let mut groups = in_process(self.ranks, PEER_TIMEOUT);
        let members = groups.split_off(1);
        let root = groups.remove(0);
        thread::scope(|scope| {
            let members: Vec<_> = members
                .into_iter()
                .map(|mut group| {
                    scope.spawn(move || {
                        let model = Model::load_member(self.cpu()?, &mut group)?;
                        run(model, group, tokens)
                    })
                })
                .collect();
            let root = self.root(file, &shares, root, tokens);
            let lost = members
                .into_iter()
                .try_for_each(|member| member.join().expect("a rank does not panic").map(drop));
            // The ranks that lost rank 0 have less to say of it than it has.
            root.and_then(|score| lost.map(|()| score))
        })
    }

    fn root(self, file: &Gguf, shares: &Shares, mut group: Group, tokens: &[u32]) -> Result<Score> {
        let cpu = self.cpu()?;
        let config = LoadConfig {
            kv_format: self.kv_format,
            exchange: self.exchange,
            ..CONFIG
        };
        let model = Model::load_root(file, shares, config, cpu, &mut group, &mut |_, _| {})?;
        run(model, group, tokens)
    }

    fn cpu(self) -> Result<Cpu> {
        Ok(Cpu::new(CpuConfig {
            isa: self.isa,
            threads: (machine::available_cores() / self.ranks).max(1),
            first_core: None,
        })?)
    }
}

/// How well a model foretold a text.
#[derive(Default)]
struct Score {
    /// `-ln p` of each scored token.
    surprises: Vec<f64>,
    /// What the model thought likeliest in its place.
    likeliest: Vec<usize>,
}

impl Score {
    fn perplexity(&self) -> f64 {
        mean(&self.surprises).exp()
    }

    fn add(&mut self, logits: &[f32], token: u32) {
        let (likeliest, largest) = logits
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .expect("a vocabulary has tokens");
        let sum: f64 = logits
            .iter()
            .map(|logit| f64::from((logit - largest).exp()))
            .sum();
        let surprise = sum.ln() - f64::from(logits[token as usize] - largest);
        self.surprises.push(surprise);
        self.likeliest.push(likeliest);
    }
}

/// One rank's part in scoring the text; every rank reaches the same score.
fn run(mut model: Model, mut group: Group, tokens: &[u32]) -> Result<Score> {
    let mut score = Score::default();
    for window in tokens.chunks(WINDOW_TOKENS) {
        let mut step_tokens = STEP_TOKENS.into_iter().cycle();
        let mut read = 0;
        // The last token is foretold, and foretells none.
        while read + 1 < window.len() {
            let wanted = match read {
                0 => PROMPT_TOKENS,
                _ => step_tokens.next().expect("a cycle does not end"),
            };
            let end = window.len().min(read + wanted + 1) - 1;
            // A span has one row of logits, so beyond the prompt each token is a span, all of one sequence.
            let spans: Vec<Span> = match read {
                0 => vec![span(window, 0..end)],
                _ => (read..end).map(|at| span(window, at..at + 1)).collect(),
            };
            let logits = model.forward(&spans, &mut group, &mut || {})?;
            for (row, span) in spans.iter().enumerate() {
                let next = span.start as usize + span.tokens.len();
                score.add(logits.row(row), window[next]);
            }
            read = end;
        }
    }
    Ok(score)
}

fn span(window: &[u32], part: Range<usize>) -> Span {
    Span {
        start: part.start as u32,
        tokens: window[part].to_vec(),
        pages: (0..CONFIG.kv_pages).collect(),
        wants_logits: true,
    }
}

/// What was found. Its JSON form is for scripts.
#[derive(Serialize)]
struct Report {
    text_tokens: usize,
    window_tokens: usize,
    scored_tokens: usize,
    tolerance_percent: f64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    isa: String,
    kv_format: KvFormat,
    ranks: usize,
    exchange: Exchange,
    perplexity: f64,
    /// From the first row's perplexity.
    difference_percent: f64,
    /// What the difference would scatter by on other texts as long as this.
    standard_error_percent: f64,
    /// Scored tokens for which it holds the same token likeliest as the first row.
    agreement_percent: f64,
}

impl Row {
    fn new(setup: Setup, got: &Score, want: &Score) -> Self {
        let pairs = got.likeliest.iter().zip(&want.likeliest);
        let same = pairs.filter(|(got, want)| got == want).count();
        let pairs = got.surprises.iter().zip(&want.surprises);
        let differences: Vec<f64> = pairs.map(|(got, want)| got - want).collect();
        Self {
            isa: setup.isa.to_string(),
            kv_format: setup.kv_format,
            ranks: setup.ranks,
            exchange: setup.exchange,
            perplexity: got.perplexity(),
            difference_percent: 100.0 * (got.perplexity() / want.perplexity() - 1.0),
            standard_error_percent: 100.0 * standard_error(&differences),
            agreement_percent: 100.0 * same as f64 / want.likeliest.len() as f64,
        }
    }
}

impl Report {
    /// A perplexity that is not a number is beyond any tolerance.
    fn is_within_tolerance(&self) -> bool {
        self.rows.iter().all(|row| {
            let bound = match row.exchange {
                Exchange::F32 => self.tolerance_percent,
                Exchange::Q8 => ROUNDED_SUMS_FACTOR * self.tolerance_percent,
            };
            row.difference_percent.abs() <= bound
        })
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!(
            "{} tokens in windows of {}, {} scored; at most {} % from scalar, {} % with rounded sums",
            self.text_tokens,
            self.window_tokens,
            self.scored_tokens,
            self.tolerance_percent,
            ROUNDED_SUMS_FACTOR * self.tolerance_percent
        );
        println!(
            "{:<8} {:<3} {:>5} {:<4} {:>11} {:>19} {:>16}",
            "ISA", "KV", "RANKS", "SUMS", "PERPLEXITY", "DIFFERENCE", "SAME NEXT TOKEN"
        );
        for row in &self.rows {
            println!(
                "{:<8} {:<3} {:>5} {:<4} {:>11.4} {:>+8.3} ± {:.3} % {:>14.2} %",
                row.isa,
                row.kv_format.to_string(),
                row.ranks,
                row.exchange.to_string(),
                row.perplexity,
                row.difference_percent,
                row.standard_error_percent,
                row.agreement_percent
            );
        }
        Ok(())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of the mean of `values`.
fn standard_error(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    squares.sqrt() / values.len() as f64
}

/// Whoever asks for sums of 8 bits is told that they cost more.
const ROUNDED_SUMS_FACTOR: f64 = 2.0;
const WINDOW_TOKENS: usize = 512;
const PROMPT_TOKENS: usize = 96;
const STEP_TOKENS: [usize; 4] = [1, 4, 16, 64];
const CONFIG: LoadConfig = LoadConfig {
    context: WINDOW_TOKENS as u32,
    kv_pages: 32,
    page_tokens: 16,
    kv_format: KvFormat::F16,
    exchange: Exchange::F32,
    batch_tokens_max: PROMPT_TOKENS,
};
/// A step of the scalar path takes seconds where cores are few and busy.
const PEER_TIMEOUT: Duration = Duration::from_secs(600);
