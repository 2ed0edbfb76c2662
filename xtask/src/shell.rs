//! Running other programs from the repository root.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
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
    // What cargo says of this package to this program; build scripts that look at it would run again for every other caller.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_package) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
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
/// When it cannot be started, or ends with a status other than 0; the message shows the command line, and its last words unless they
/// go elsewhere.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    eprintln!("$ {line}");
    let output = command
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.lines().last().unwrap_or("no message here");
        bail!("`{line}` failed ({}): {last}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` did not write text"))
}

/// Whether `command` can be started and succeeds; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Returns where cargo has put the executable of `target`, the only one of that name, in the JSON `messages` by which it told
/// of its work.
pub(crate) fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        target: Target,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut found = messages
        .filter(|message| message.target.name == target)
        .filter_map(|message| message.executable);
    found.next().filter(|_| found.next().is_none())
}

/// Returns the command line, program first.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_what_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"half"},"executable":null}
{"reason":"build-script-executed","package_id":"x"}
{"reason":"compiler-artifact","target":{"name":"links"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"links"},"executable":"/t/links-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            executable(messages, "links"),
            Some(PathBuf::from("/t/links-1"))
        );
        assert_eq!(executable(messages, "half"), None);
        assert_eq!(executable(&[messages; 2].join("\n"), "links"), None);
        assert_eq!(executable("{}", "links"), None);
    }
}
