//! Tests that are run elsewhere than by cargo.

use crate::shell::{command, executable, output};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Builds those of these names of one package, with `words` for cargo besides; returns their programs, in the same order.
///
/// # Errors
/// When cargo fails, or does not tell of all of them.
pub(crate) fn build(package: &str, suites: &[&str], words: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = command("cargo");
    cargo.args(["test", "--package", package, "--no-run"]);
    for suite in suites {
        cargo.args(["--test", suite]);
    }
    let messages = output(cargo.args(words).args(["--message-format", "json"]))?;
    let program = |name: &&str| {
        executable(&messages, name)
            .with_context(|| format!("cargo did not say where it put `{name}`"))
    };
    suites.iter().map(program).collect()
}
