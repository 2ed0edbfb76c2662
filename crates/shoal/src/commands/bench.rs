//! `shoal bench`: how fast a cell prefills and decodes, how long it loads, how much memory each rank takes.
//!
//! A run is one request of random tokens, or several at once, generated greedily and without a stop token, so that every
//! run does the same work. Prefill is timed from the request to its first token, decode from the first token to the last;
//! of several requests, from the last one's first token to the first one's last, while all are decoded together.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use shoal_cluster::{Cell, Placement};
use shoal_engine::client::{CellInfo, Client, Event, RankReport, Request, Sampling, TokenStream};
use tokio::task::JoinSet;

use super::{cell, model, runtime};
use crate::cli::{BenchArgs, LogArgs};
use crate::model_file::ModelFile;
use crate::progress::{megabytes, say};
use crate::settings::Home;
use crate::signals::Signals;

pub(crate) fn bench(args: &BenchArgs, logs: &LogArgs) -> Result<()> {
    let home = Home::locate()?;
    let model = model::resolve(&home, &args.model)?;
    let placement = Placement::Local { nodes: args.nodes };
    let file = ModelFile::open(&model.path)?;
    let mut config = cell::config(&model, &file, placement, &args.cell)?;
    config.running_max = config.running_max.max(args.requests.into());
    config.waiting_max = config.waiting_max.max(args.requests.into());
    runtime()?.block_on(async {
        let signals = Signals::catch()?;
        let started = Instant::now();
        let cell = Cell::start(config, cell::program(logs, "warn")?, &home.run_root())?;
        let client = cell.client().clone();
        cell::with_cell(cell, signals, async |info| {
            let load_seconds = started.elapsed().as_secs_f64();
            let outcome = measure(&client, &info, args, model.name, load_seconds).await?;
            outcome.print(args.json)
        })
        .await
    })
}

/// What one bench measured. Its JSON form is a contract.
#[derive(Serialize)]
struct Outcome {
    model: String,
    nodes: u16,
    threads: u32,
    isa: String,
    prompt_tokens: u32,
    gen_tokens: u32,
    requests: u16,
    runs: u32,
    load_seconds: f64,
    prefill_tokens_per_second: Spread,
    decode_tokens_per_second: Spread,
    time_to_first_token_ms: Spread,
    ranks: Vec<RankMemory>,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Serialize)]
struct RankMemory {
    rank: u16,
    peak_memory_bytes: u64,
    weight_bytes: u64,
    kv_bytes: u64,
    split: String,
}

async fn measure(
    client: &Client,
    info: &CellInfo,
    args: &BenchArgs,
    model: String,
    load_seconds: f64,
) -> Result<Outcome> {
    if args.prompt_tokens + args.gen_tokens > info.context {
        bail!(
            "{} prompt and {} generated tokens do not fit the context of {}; raise --ctx or ask for fewer",
            args.prompt_tokens,
            args.gen_tokens,
            info.context
        );
    }
    let mut runs = Vec::new();
    for run in 0..=args.runs {
        let timing = one_run(client, info, args, run).await?;
        // The first run touches every page for the first time.
        if run > 0 {
            runs.push(timing);
        }
    }
    let client = client.clone();
    let ranks = tokio::task::spawn_blocking(move || client.inspect()).await??;
    let first = ranks.first().context("no rank reported")?;
    Ok(Outcome {
        model,
        nodes: args.nodes,
        threads: first.threads as u32,
        isa: first.isa.to_string(),
        prompt_tokens: args.prompt_tokens,
        gen_tokens: args.gen_tokens,
        requests: args.requests,
        runs: args.runs,
        load_seconds,
        prefill_tokens_per_second: Spread::of(runs.iter().map(|run| {
            f64::from(args.prompt_tokens) * f64::from(args.requests) / run.first_token_seconds
        })),
        decode_tokens_per_second: Spread::of(runs.iter().map(|run| run.decode_tokens_per_second)),
        time_to_first_token_ms: Spread::of(runs.iter().map(|run| run.first_token_seconds * 1e3)),
        ranks: ranks.into_iter().map(RankMemory::from).collect(),
    })
}

struct RunTime {
    /// Until every request had its first token.
    first_token_seconds: f64,
    /// From then until one had its last, of all of them together.
    decode_tokens_per_second: f64,
}

async fn one_run(client: &Client, info: &CellInfo, args: &BenchArgs, run: u32) -> Result<RunTime> {
    let started = Instant::now();
    let mut replies = JoinSet::new();
    for request in 0..args.requests {
        let stream = client.submit(Request {
            prompt: prompt(info, args, run, request),
            sampling: Sampling::greedy(),
            max_tokens: args.gen_tokens,
            stop_tokens: Vec::new(),
        })?;
        replies.spawn(arrivals(stream, started));
    }
    let replies = replies.join_all().await;
    RunTime::of(&replies.into_iter().collect::<Result<Vec<_>>>()?)
}

/// A fixed multiplicative sequence: random enough to touch the whole vocabulary, the same on every machine, and different
/// for each request so that no cache of prompts can answer.
fn prompt(info: &CellInfo, args: &BenchArgs, run: u32, request: u16) -> Vec<u32> {
    let first = u64::from(run) * u64::from(args.requests) + u64::from(request);
    let first = first * u64::from(args.prompt_tokens) + 1;
    (first..first + u64::from(args.prompt_tokens))
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32 % info.vocabulary as u32)
        .collect()
}

/// Returns when each token came, in seconds from the start.
async fn arrivals(mut stream: TokenStream, started: Instant) -> Result<Vec<f64>> {
    let mut arrivals = Vec::new();
    loop {
        match stream.next().await.context("the cell closed the stream")? {
            Event::Token(_) => arrivals.push(started.elapsed().as_secs_f64()),
            Event::Finished { .. } => return Ok(arrivals),
            Event::Failed(failure) => bail!("the run failed: {failure}"),
        }
    }
}

impl RunTime {
    fn of(replies: &[Vec<f64>]) -> Result<Self> {
        let ends = replies.iter().map(|reply| reply.first().zip(reply.last()));
        let ends: Option<Vec<_>> = ends.collect();
        let ends = ends.context("a request got no token")?;
        let all_began = ends.iter().map(|ends| *ends.0).fold(0.0, f64::max);
        let one_ended = ends
            .iter()
            .map(|ends| *ends.1)
            .fold(f64::INFINITY, f64::min);
        if one_ended <= all_began {
            bail!("a request was done before the last one had begun; raise --gen-tokens");
        }
        let tokens = replies.iter().flatten();
        let tokens = tokens.filter(|at| **at > all_began && **at <= one_ended);
        Ok(Self {
            first_token_seconds: all_began,
            decode_tokens_per_second: tokens.count() as f64 / (one_ended - all_began),
        })
    }
}

impl Outcome {
    fn print(&self, json: bool) -> Result<()> {
        if json {
            say(&format!("{}\n", serde_json::to_string(self)?))?;
            return Ok(());
        }
        let mut table = format!(
            "{}  nodes {}  threads {} each  {}  requests {}  load {:.2} s\n",
            self.model, self.nodes, self.threads, self.isa, self.requests, self.load_seconds
        );
        let rows = [
            (
                format!("prefill {}", self.prompt_tokens),
                &self.prefill_tokens_per_second,
                "tokens/s",
            ),
            (
                format!("decode {}", self.gen_tokens),
                &self.decode_tokens_per_second,
                "tokens/s",
            ),
            ("first token".to_owned(), &self.time_to_first_token_ms, "ms"),
        ];
        table += &format!("{:<14} {:>10} {:>10} {:>10}\n", "", "median", "min", "max");
        for (name, spread, unit) in rows {
            table += &format!(
                "{name:<14} {:>10.1} {:>10.1} {:>10.1}  {unit}\n",
                spread.median, spread.min, spread.max
            );
        }
        for rank in &self.ranks {
            table += &format!(
                "rank {}  peak {}  weights {}  {}\n",
                rank.rank,
                megabytes(rank.peak_memory_bytes),
                megabytes(rank.weight_bytes),
                rank.split
            );
        }
        say(&table)?;
        Ok(())
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (values[0], values[values.len() - 1]);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }
}

impl From<RankReport> for RankMemory {
    fn from(report: RankReport) -> Self {
        Self {
            rank: report.rank.0,
            peak_memory_bytes: report.peak_memory_bytes,
            weight_bytes: report.weight_bytes,
            kv_bytes: report.kv_bytes,
            split: report.split,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RunTime, Spread};

    #[test]
    fn decoding_is_timed_while_all_requests_take_part() {
        let one = RunTime::of(&[vec![2.0, 3.0, 4.0]]).unwrap();
        assert_eq!(one.first_token_seconds, 2.0);
        assert_eq!(one.decode_tokens_per_second, 1.0);
        // From 2 to 5: three tokens of the first, two of the second.
        let two = RunTime::of(&[vec![1.0, 2.0, 3.0, 4.0, 5.0], vec![2.0, 4.0, 5.0, 6.0]]).unwrap();
        assert_eq!(two.first_token_seconds, 2.0);
        assert_eq!(two.decode_tokens_per_second, 5.0 / 3.0);
        assert!(RunTime::of(&[vec![1.0, 2.0], vec![2.0, 3.0]]).is_err());
        assert!(RunTime::of(&[vec![]]).is_err());
    }

    #[test]
    fn spread_of_odd_and_even_counts() {
        let odd = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((odd.min, odd.median, odd.max), (1.0, 2.0, 3.0));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!(even.median, 2.5);
    }
}
