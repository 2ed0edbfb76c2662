//! Development tasks, run as `cargo xtask TASK`.
//!
//! [`ci`] holds the list of checks and runs them one after another; continuous integration calls exactly that list
//! through `.ci/run`, so what passes here passes there. [`e2e`] prepares and runs the end-to-end tests, [`arm`] the Arm
//! checks, [`rdma`] those over RDMA, [`mpi`] those over MPI, [`sanitize`] those of unsafe code. [`mod@bench`] and [`peers`]
//! measure: no check, because times are only worth something on a quiet machine.
#![forbid(unsafe_code)]

mod arm;
mod bench;
mod ci;
mod debian;
mod e2e;
mod instructions;
mod mpi;
mod peers;
mod perplexity;
mod programs;
mod python;
mod rdma;
mod sanitize;
mod shell;
mod spread;
mod table;

use anyhow::{Result, bail};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["ci"] => ci::run_all(),
        ["ci", "--only", names @ ..] if !names.is_empty() => ci::run_only(names),
        ["arm"] => ci::run_only(&["arm"]),
        ["mpi"] => ci::run_only(&["mpi"]),
        ["sanitize"] => sanitize::run(),
        ["e2e", tests @ ..] => e2e::run(tests),
        [
            task @ ("bench" | "instructions" | "peers" | "rdma"),
            "--help" | "-h",
        ] => {
            let help = match *task {
                "bench" => bench::HELP,
                "instructions" => instructions::HELP,
                "rdma" => rdma::HELP,
                _ => peers::HELP,
            };
            eprint!("{help}");
            Ok(())
        }
        ["bench", options @ ..] => bench::run(options),
        ["instructions", options @ ..] => instructions::run(options),
        ["peers", options @ ..] => peers::run(options),
        ["rdma", options @ ..] => rdma::run(options),
        [] | ["help" | "--help" | "-h"] => {
            eprint!("{HELP}\nSteps of `ci`, in order:\n{}", ci::describe());
            Ok(())
        }
        _ => bail!(
            "unknown task `{}`; `cargo xtask help` lists the tasks",
            words.join(" ")
        ),
    }
}

const HELP: &str = "\
cargo xtask ci                    every check, in order; exactly what continuous integration runs
cargo xtask ci --only STEP...     only these steps
cargo xtask e2e [MODULE...]       release build, then the end-to-end tests (all, or `test_chat test_failures ...`)
cargo xtask arm                   kernel tests on emulated Arm processors, then a type-check of everything for macOS
cargo xtask rdma [CHECK...]       the fabric and whole cells over Soft-RoCE in an emulated machine (--help says more)
cargo xtask mpi                   the fabric's suites over MPI, each rank a process of mpirun
cargo xtask sanitize              the unsafe code's tests under AddressSanitizer and Miri
cargo xtask bench [FILTER]        the kernels' speed beside the machine's roofline (--help says more)
cargo xtask instructions          what a call of the hottest kernels executes, against what is recorded (--help says more)
cargo xtask peers                 Shoal's speed beside llama.cpp's, written to docs/PERFORMANCE.md (--help says more)
cargo xtask peers fabric          sums over processes beside OpenMPI's and MLX's, written to docs/FABRIC.md
cargo xtask peers cp              copying a file beside plain streams and rsync, written to docs/FABRIC.md
cargo xtask help                  this text
";
