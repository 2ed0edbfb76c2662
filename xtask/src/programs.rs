//! Programs that cargo builds, and that are run elsewhere than by cargo.

use crate::shell::{command, executable, output};
use anyhow::{Context, Result};
use std::{path::PathBuf, process::Stdio};

/// Cargo's option for a kind of target, such as `--test`, and the target's name.
pub(crate) type Target<'a> = (&'static str, &'a str);

/// Builds `targets`, with `words` for cargo besides; returns their programs, in the same order.
///
/// # Errors
/// When cargo fails, or does not tell of all of them.
pub(crate) fn build(targets: &[Target<'_>], words: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = command("cargo");
    // As parts of the whole workspace: with a test or an example among them, what they depend on has the features that it has in
    // all tests, and is not built again.
    cargo.args(["build", "--workspace"]).args(words);
    for (kind, name) in targets {
        cargo.args([kind, *name]);
    }
    cargo.args(["--message-format", "json-render-diagnostics"]);
    // Cargo's progress is to be seen.
    let messages = output(cargo.stderr(Stdio::inherit()))?;
    let program = |(_, name): &Target<'_>| {
        executable(&messages, name)
            .with_context(|| format!("cargo did not say where it put `{name}`"))
    };
    targets.iter().map(program).collect()
}
