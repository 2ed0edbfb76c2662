//! The `shoal` command: one subcommand a module under [`commands`], one place for flags ([`cli`]), one for logs.
//!
//! This is the only crate that reads the environment and the only one that ends the process. Errors come out as one
//! line on standard error; standard output carries only what was asked for.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod logs;
mod model_file;
mod progress;
mod settings;
mod signals;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use progress::note;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    raise_file_limit();
    if let Err(error) = logs::start(&cli.logs, cli.command.default_log()) {
        note(&format!("error: {}", one_line(&error)));
        return ExitCode::from(2);
    }
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Asks for as many open files as this user may have: clients that only hold connections must not keep ranks from starting.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // macOS says that there is no limit, and grants OPEN_MAX at most (setrlimit(2), compatibility).
    for current in [limit.maximum, Some(OPEN_MAX)] {
        let is_more = current.unwrap_or(u64::MAX) > limit.current.unwrap_or(u64::MAX);
        if is_more && setrlimit(Resource::Nofile, Rlimit { current, ..limit }).is_ok() {
            return;
        }
    }
}

const OPEN_MAX: u64 = 10_240;

/// Puts an error and its causes on one line, without the causes that a message already quotes.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn quoted_causes_are_not_repeated() {
        let error = anyhow!("no such file")
            .context("cannot read a: no such file")
            .context("b");
        assert_eq!(super::one_line(&error), "b: cannot read a: no such file");
    }
}
