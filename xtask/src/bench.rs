//! The kernel benchmarks of `crates/kernels/benches`, each figure beside the roofline measured in the same run.

mod case;
mod roofline;

use crate::{
    shell::{check, command, target},
    table::{Table, percent},
};
use anyhow::{Context, Result, bail};
use case::Case;
pub(crate) use roofline::Roofline;
use std::{fs, io::ErrorKind, path::PathBuf, process::Stdio};

/// What the task does and takes.
pub(crate) const HELP: &str = "\
cargo xtask bench [--threads N] [FILTER]

Measures the kernels and the machine they run on (memory read, 8-bit products, float multiply-adds), and prints each
kernel's bytes and operations per second as a part of that roofline. Nothing else should run meanwhile.

  --threads N   threads to compute with, for kernels and roofline alike [default: 1]
  FILTER        only kernels whose name matches this regular expression, such as `linear/Q4_0`

SHOAL_ISA=NAME forces an instruction set.
";

/// Runs the benchmarks and prints the table.
///
/// # Errors
/// When an argument is wrong, or the benchmarks cannot be built or run.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let options = Options::parse(words)?;
    // The roofline is what everything is read against.
    let filter = options.filter.map(|filter| format!("^roofline/|{filter}"));
    let cases = measure(options.threads, filter.as_deref(), Stdio::inherit())?;
    let roofline = Roofline::of(&cases);
    eprintln!(
        "\n{} thread(s); {roofline}\n{}",
        options.threads,
        table(&cases, &roofline)
    );
    Ok(())
}

/// Measures the memory bandwidth of this many threads.
///
/// # Errors
/// When the benchmark cannot be built or run.
pub(crate) fn read_bytes_per_second(threads: u32) -> Result<f64> {
    let cases = measure(threads, Some("^roofline/read"), Stdio::null())?;
    let read = Roofline::of(&cases).read_bytes_per_second;
    read.context("the benchmark left no figure for reading memory")
}

#[derive(Debug, PartialEq)]
struct Options<'a> {
    threads: u32,
    filter: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(words: &[&'a str]) -> Result<Self> {
        let mut options = Self {
            threads: 1,
            filter: None,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--threads" => {
                    let count = words.next().and_then(|count| count.parse().ok());
                    let count = count.filter(|&count| count > 0);
                    options.threads = count.context("--threads wants a number from 1 on")?;
                }
                flag if flag.starts_with('-') => bail!("unknown flag `{flag}`\n{HELP}"),
                filter if options.filter.is_none() => options.filter = Some(filter),
                more => bail!("`{more}`: one filter at most (alternatives: 'a|b')"),
            }
        }
        Ok(options)
    }
}

fn measure(threads: u32, filter: Option<&str>, report: Stdio) -> Result<Vec<Case>> {
    let figures = figures()?;
    let mut cargo = command("cargo");
    cargo.args(["bench", "--quiet", "--package", "shoal-kernels"]);
    cargo.args(["--bench", "kernels", "--", "--quiet"]);
    cargo.args(filter).stdout(report);
    cargo.env("CRITERION_HOME", &figures);
    cargo.env("SHOAL_BENCH_THREADS", threads.to_string());
    check(&mut cargo)?;
    Case::read_all(&figures)
}

/// Returns the folder for criterion's files, with those of earlier runs removed.
fn figures() -> Result<PathBuf> {
    let folder = target()?.join("bench");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("emptying {}", folder.display()))
        }
        _ => Ok(folder),
    }
}

fn table(cases: &[Case], roofline: &Roofline) -> Table {
    let mut table = Table::new(&[
        "kernel",
        "time",
        "GB/s",
        "of read",
        "Gop/s",
        "of peak",
        "tokens/s × first",
    ]);
    let kernels = cases.iter().filter(|case| !roofline::is_part(case));
    for case in kernels {
        let first = cases.iter().find(|first| first.kernel() == case.kernel());
        let gain = first.and_then(|first| Some(case.operations_rate()? / first.operations_rate()?));
        let giga = |rate: Option<f64>| {
            rate.map_or_else(|| "—".to_owned(), |rate| format!("{:.1}", rate / 1e9))
        };
        table.push(vec![
            case.id.clone(),
            format!("{:.3} ms", case.seconds * 1e3),
            giga(case.bytes_rate()),
            percent(roofline.of_read(case)),
            giga(case.operations_rate()),
            percent(roofline.of_peak(case)),
            // Operations grow with tokens, so their rate is the aggregate rate of tokens.
            gain.filter(|_| case.group() == "linear")
                .map_or_else(|| "—".to_owned(), |gain| format!("{gain:.1}")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let parsed = Options::parse(&["linear/Q4_0", "--threads", "2"]).unwrap();
        assert_eq!(
            parsed,
            Options {
                threads: 2,
                filter: Some("linear/Q4_0")
            }
        );
        for wrong in [
            &["--threads"][..],
            &["--threads", "0"],
            &["--fast"],
            &["a", "b"],
        ] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn kernels_stand_beside_the_roofline() {
        let case = |id: &str, seconds, bytes, operations| Case {
            id: id.to_owned(),
            seconds,
            fastest_seconds: seconds,
            bytes,
            operations,
        };
        let cases = [
            case("roofline/read", 0.1, Some(2_000_000_000), None),
            case("roofline/dot", 0.1, None, Some(40_000_000_000)),
            case(
                "linear/Q4_0/batch 1",
                0.1,
                Some(1_000_000_000),
                Some(2_000_000_000),
            ),
            case(
                "linear/Q4_0/batch 2",
                0.1,
                Some(1_000_000_000),
                Some(4_000_000_000),
            ),
        ];
        let table = table(&cases, &Roofline::of(&cases)).to_string();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines.len(), 2);
        for (line, cells) in lines.iter().zip([
            ["100.000 ms", "10.0", "50 %", "20.0", "5 %", "1.0"],
            ["100.000 ms", "10.0", "50 %", "40.0", "10 %", "2.0"],
        ]) {
            let found: Vec<&str> = line.split('|').map(str::trim).collect();
            assert_eq!(found[2..8], cells, "{line}");
        }
    }
}
