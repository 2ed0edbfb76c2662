//! Python environments, kept under the target folder.

use crate::shell::{check, command};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the interpreter of a virtual environment in `folder` that holds what the file `requirements` lists. It is made
/// when it is not there yet.
///
/// # Errors
/// When Python or a package cannot be had.
pub(crate) fn environment(folder: &Path, requirements: &Path) -> Result<PathBuf> {
    let wanted = fs::read_to_string(requirements)
        .with_context(|| format!("reading {}", requirements.display()))?;
    let python = folder.join("bin").join("python");
    // Written last, so an environment whose installation was interrupted is made anew.
    let installed_path = folder.join("installed.txt");
    if fs::read_to_string(&installed_path).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    check(
        command("python3")
            .args(["-m", "venv", "--clear"])
            .arg(folder),
    )
    .context("making a Python environment (on Debian: apt-get install python3-venv)")?;
    check(
        command(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements),
    )
    .with_context(|| format!("installing the packages of {}", requirements.display()))?;
    fs::write(&installed_path, wanted)
        .with_context(|| format!("writing {}", installed_path.display()))?;
    Ok(python)
}
