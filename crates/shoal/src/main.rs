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
use rustix::process::{Resource, getrlimit, setrlimit};

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
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Some systems tell a limit that they do not grant: then it stays as it is.
    let _stays = setrlimit(Resource::Nofile, limit);
}

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
