//! Log lines: fields on standard error, as text or JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::LogArgs;

/// Installs the process's logger.
pub(crate) fn start(args: &LogArgs, default: &str) -> Result<()> {
    let filter = args.filter.as_deref().unwrap_or(default);
    let filter: EnvFilter = filter
        .parse()
        .with_context(|| format!("the log filter {filter:?} is not understood; try --log debug"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A rank may outlive the terminal it logs to; a failed write must not end it.
        .log_internal_errors(false);
    if args.json {
        builder.json().init();
    } else {
        builder.init();
    }
    Ok(())
}

/// Returns the flags that make a child process log as this one does.
pub(crate) fn flags(args: &LogArgs, default: &str) -> Vec<String> {
    let mut flags = vec![
        "--log".to_owned(),
        args.filter.clone().unwrap_or_else(|| default.to_owned()),
    ];
    if args.json {
        flags.push("--log-json".to_owned());
    }
    flags
}
