//! Running other programs from the repository root.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Returns the repository root: the folder above this package.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("xtask lies one folder below the root")
        .to_owned()
}

/// Returns the folder for build outputs, wherever cargo was told to put it: this program lies in its `debug` folder.
///
/// # Errors
/// When the system cannot tell where this program lies.
pub(crate) fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    let folder = program.ancestors().nth(2);
    Ok(folder
        .context("this program lies outside a target folder")?
        .to_owned())
}

/// Returns a command that will run in the repository root.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Runs `command` with the terminal's input and outputs.
///
/// # Errors
/// When it cannot be started, or ends with a status other than 0; the message shows the command line.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    eprintln!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to its standard output.
///
/// # Errors
/// When it cannot be started, or ends with a status other than 0; the message shows the command line and its last words.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    eprintln!("$ {line}");
    let output = command
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.lines().last().unwrap_or("no message");
        bail!("`{line}` failed ({}): {last}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` did not write text"))
}

/// Whether `command` can be started and succeeds; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Returns the command line, program first.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
