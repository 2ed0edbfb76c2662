//! One module a subcommand; what they share is [`model`] and [`cell`].

mod bench;
mod cell;
mod chat;
mod copy;
mod discover;
mod fabric;
mod model;
mod models;
mod node;
mod placement;
mod pull;
mod rank;
mod run;
mod serve;
mod terminal;

use anyhow::{Context, Result};

use crate::cli::{Cli, Command};

/// Runs the chosen subcommand to its end.
pub(crate) fn run(cli: Cli) -> Result<()> {
    let logs = cli.logs;
    match cli.command {
        Command::Up(args) => serve::up(&args, &logs),
        Command::Serve(args) => serve::serve(&args, &logs),
        Command::Run(args) => run::run(&args, &logs),
        Command::Node(args) => node::node(&args, &logs),
        Command::Pull(args) => pull::pull(&args),
        Command::Models(args) => models::models(&args),
        Command::Cp(args) => copy::copy(&args),
        Command::Bench(args) => bench::bench(&args, &logs),
        Command::Fabric(args) => fabric::fabric(&args, &logs),
        Command::Rank(args) => rank::rank(&args),
    }
}

/// The async runtime of the commands that serve or talk to a cell. Ranks do not use it.
fn runtime() -> Result<tokio::runtime::Runtime> {
    // Two threads carry HTTP for any number of streams; more would take cores from ranks on this machine.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")
}
