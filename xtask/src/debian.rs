//! Debian packages that are unpacked below the target folder instead of being installed.

use crate::shell::{check, command, output};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Downloads packages into `folder` and unpacks them there. Returns the root of what they hold.
///
/// # Errors
/// When one cannot be downloaded or unpacked.
pub(crate) fn unpack(folder: &Path, packages: &[String]) -> Result<PathBuf> {
    let mut download = command("apt-get");
    download.args(["download", "--quiet"]).args(packages);
    check(download.current_dir(folder))?;
    let unpacked = folder.join("root");
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let package = entry?.path();
        if package.extension().is_some_and(|end| end == "deb") {
            check(command("dpkg").arg("-x").arg(package).arg(&unpacked))?;
        }
    }
    Ok(unpacked)
}

/// Returns the package that `package` depends on whose name starts with `prefix`.
///
/// # Errors
/// When there is none.
pub(crate) fn dependency(package: &str, prefix: &str) -> Result<String> {
    let listed = output(command("apt-cache").args(["depends", package]))
        .with_context(|| format!("looking for `{package}`"))?;
    let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
    names
        .map(str::trim)
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("`{package}` depends on no `{prefix}…`"))
}
