//! The `shoal` binary, measured by its own `bench` command.

use super::work::Work;
use crate::{
    ci,
    shell::{command, output, target},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The binary, and the folder it keeps its things in.
pub(crate) struct Shoal {
    program: PathBuf,
    home: PathBuf,
}

/// What is asked of a run beside its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) nodes: u32,
    /// Of each node.
    pub(crate) threads: u32,
    /// The instruction set to force.
    pub(crate) isa: Option<&'static str>,
}

/// What `shoal bench --json` reports, as far as it is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) isa: String,
    pub(crate) load_seconds: f64,
    prefill_tokens_per_second: Rate,
    decode_tokens_per_second: Rate,
    ranks: Vec<Rank>,
}

#[derive(Debug, Deserialize)]
struct Rate {
    median: f64,
}

#[derive(Debug, Deserialize)]
struct Rank {
    peak_memory_bytes: u64,
}

impl Shoal {
    /// Builds the release binary; it will keep its things in `folder`.
    pub(crate) fn build(folder: &Path) -> Result<Self> {
        ci::release()?;
        Ok(Self {
            program: target()?.join("release/shoal"),
            home: folder.join("home"),
        })
    }

    /// Returns the command that does this work once, after a warm-up of its own.
    pub(crate) fn command(&self, file: &Path, work: Work, cell: Cell) -> Command {
        let mut bench = command(&self.program);
        bench.arg("bench").arg("--model").arg(file);
        let (prompt, generated) = match work {
            // The least it generates; prefill ends with the first token.
            Work::Prefill { tokens } => (tokens, 2),
            Work::Decode { context, tokens } => (context, tokens),
        };
        for (flag, value) in [
            ("--nodes", cell.nodes),
            ("--threads", cell.threads),
            ("--prompt-tokens", prompt),
            ("--gen-tokens", generated),
            ("--ctx", prompt + generated),
            ("--runs", 1),
        ] {
            bench.arg(flag).arg(value.to_string());
        }
        bench.arg("--json").env("SHOAL_HOME", &self.home);
        match cell.isa {
            Some(isa) => bench.env("SHOAL_ISA", isa),
            None => bench.env_remove("SHOAL_ISA"),
        };
        bench
    }

    /// The same for several requests at once.
    pub(crate) fn together(&self, file: &Path, work: Work, cell: Cell, requests: u32) -> Command {
        let mut bench = self.command(file, work, cell);
        bench.args(["--requests", &requests.to_string()]);
        bench
    }
}

/// Runs a command of [`Shoal::command`].
pub(crate) fn measure(command: &mut Command) -> Result<Report> {
    Report::parse(&output(command)?)
}

impl Report {
    fn parse(report: &str) -> Result<Self> {
        serde_json::from_str(report).context("`shoal bench --json` did not print what it used to")
    }

    pub(crate) fn tokens_per_second(&self, work: Work) -> f64 {
        match work {
            Work::Prefill { .. } => self.prefill_tokens_per_second.median,
            Work::Decode { .. } => self.decode_tokens_per_second.median,
        }
    }

    /// The most memory of all ranks together.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.peak_memory_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shoals_report_is_read() {
        let report = r#"{"model":"m","nodes":2,"threads":1,"isa":"avx2","prompt_tokens":16,"gen_tokens":4,"runs":1,
            "load_seconds":0.25,"prefill_tokens_per_second":{"median":300.0,"min":290.0,"max":310.0},
            "decode_tokens_per_second":{"median":90.0,"min":90.0,"max":90.0},
            "time_to_first_token_ms":{"median":1.0,"min":1.0,"max":1.0},
            "ranks":[{"rank":0,"peak_memory_bytes":100,"weight_bytes":50,"kv_bytes":10,"split":"a"},
                     {"rank":1,"peak_memory_bytes":90,"weight_bytes":50,"kv_bytes":10,"split":"b"}]}"#;
        let report = Report::parse(report).unwrap();
        assert_eq!(
            report.tokens_per_second(Work::Prefill { tokens: 16 }),
            300.0
        );
        let decode = Work::Decode {
            context: 16,
            tokens: 4,
        };
        assert_eq!(report.tokens_per_second(decode), 90.0);
        assert_eq!(report.peak_memory_bytes(), 190);
        assert!(Report::parse("ready").is_err());
    }

    #[test]
    fn the_same_work_is_asked_for() {
        let shoal = Shoal {
            program: PathBuf::from("shoal"),
            home: PathBuf::from("home"),
        };
        let cell = Cell {
            nodes: 2,
            threads: 1,
            isa: Some("avx2"),
        };
        let command = shoal.command(Path::new("m.gguf"), Work::Prefill { tokens: 512 }, cell);
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        assert_eq!(
            words.join(" "),
            "bench --model m.gguf --nodes 2 --threads 1 --prompt-tokens 512 --gen-tokens 2 --ctx 514 --runs 1 --json"
        );
        let isa = command.get_envs().find(|(name, _)| *name == "SHOAL_ISA");
        assert_eq!(isa.and_then(|(_, value)| value), Some("avx2".as_ref()));
    }
}
