//! Forming a cell from flags, with progress, and ending it when a signal comes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use shoal_cluster::{Cell, CellConfig, Placement, Program};
use shoal_engine::client::{CellInfo, CellState, Client};
use shoal_kernels::Isa;
use shoal_server::GeneratorConfig;

use super::model::Resolved;
use crate::cli::{CellArgs, LogArgs};
use crate::model_file::ModelFile;
use crate::signals::Signals;
use crate::{logs, progress, settings};

/// Puts the flags of a command into the cluster's words.
pub(crate) fn config(
    model: &Resolved,
    file: &ModelFile,
    placement: Placement,
    args: &CellArgs,
) -> Result<CellConfig> {
    let world = placement.world();
    if !args.share.is_empty() && args.share.len() != usize::from(world) {
        bail!(
            "--share has {} weights for {world} nodes; give one for each node",
            args.share.len()
        );
    }
    let shares = if args.share.is_empty() {
        vec![1; world.into()]
    } else {
        args.share.clone()
    };
    // What a rank would refuse is refused here, where it can be said in one line.
    file.check_split(shares.clone())?;
    args.isa.as_deref().map(Isa::parse).transpose()?;
    Ok(CellConfig {
        // A restarted front may run in another folder.
        model: std::path::absolute(&model.path)?,
        model_name: model.name.clone(),
        placement,
        shares,
        threads: args.threads.map(usize::from),
        isa: args.isa.clone(),
        context: file.context(args.ctx)?,
        kv_format: args.kv,
        exchange: args.exchange,
        running_max: args.batch.into(),
        waiting_max: args.queue.into(),
        batch_tokens_max: BATCH_TOKENS_MAX,
        orphan_timeout_ms: u64::from(args.orphan_timeout) * 1000,
        step_timeout_ms: u64::from(args.step_timeout) * 1000,
        join_timeout_ms: JOIN_TIMEOUT_MS,
    })
}

/// What text needs to know of a cell.
pub(crate) fn generator_config(config: &CellConfig) -> GeneratorConfig {
    GeneratorConfig {
        model_name: config.model_name.clone(),
        context: config.context,
        world: config.placement.world().into(),
    }
}

/// The running binary, which is also what ranks run.
pub(crate) fn program(args: &LogArgs, default_log: &str) -> Result<Program> {
    // Ranks read it themselves; said here, a mistake in it is one line rather than a rank that ends.
    settings::transport()?;
    Ok(Program {
        path: std::env::current_exe().context("finding the path of the running binary")?,
        flags: logs::flags(args, default_log),
    })
}

/// Waits until the cell has formed, showing how the load goes.
pub(crate) async fn ready(cell: &Cell) -> Result<CellInfo> {
    let formed = cell.formed();
    let bar = progress::bytes_bar("loading");
    let outcome = loop {
        tokio::select! {
            outcome = formed.recv() => break outcome,
            () = tokio::time::sleep(PROGRESS_EVERY) => show(&bar, cell.client()),
        }
    };
    bar.finish_and_clear();
    Ok(outcome.context("the cell's supervisor ended early")??)
}

/// Runs `work` over a cell once it is ready, until it ends or a signal comes, and ends the cell whatever happens.
pub(crate) async fn with_cell<T>(
    cell: Cell,
    mut signals: Signals,
    work: impl AsyncFnOnce(CellInfo) -> Result<T>,
) -> Result<T> {
    let outcome = tokio::select! {
        outcome = async { work(ready(&cell).await?).await } => outcome,
        _ = signals.any() => Err(anyhow!("interrupted")),
    };
    stop(cell).await?;
    outcome
}

/// Ends the cell, off the async threads.
pub(crate) async fn stop(cell: Cell) -> Result<()> {
    Ok(tokio::task::spawn_blocking(move || cell.stop()).await?)
}

fn show(bar: &indicatif::ProgressBar, client: &Client) {
    if let CellState::Loading {
        done_bytes,
        total_bytes,
    } = client.status().state
    {
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
    }
}

/// Enough for prefill to be bound by arithmetic, small enough that a decode never waits long behind it.
const BATCH_TOKENS_MAX: usize = 256;
const JOIN_TIMEOUT_MS: u64 = 30_000;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
