//! Debian packages that are unpacked below the target folder instead of being installed.

use crate::shell::{check, command, output};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the folder `name` in `folder`. The first time it is what `fetch` makes of an empty folder for its parts, and returns.
///
/// # Errors
/// When it could not be made; it is made anew then the next time.
pub(crate) fn fetched_once(
    folder: &Path,
    name: &str,
    fetch: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let kept = folder.join(name);
    if kept.is_dir() {
        return Ok(kept);
    }
    // Renamed from this once whole, so that an interrupted run starts anew.
    let parts = folder.join("parts");
    if parts.exists() {
        fs::remove_dir_all(&parts).with_context(|| format!("removing {}", parts.display()))?;
    }
    fs::create_dir_all(&parts).with_context(|| format!("creating {}", parts.display()))?;
    let fetched = fetch(&parts)?;
    fs::rename(&fetched, &kept).with_context(|| format!("keeping {}", kept.display()))?;
    fs::remove_dir_all(&parts).with_context(|| format!("removing {}", parts.display()))?;
    Ok(kept)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn what_failed_is_fetched_again_and_what_did_not_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let fetch = |parts: &Path| {
            let fetched = parts.join("fetched");
            fs::create_dir(&fetched)?;
            fs::write(fetched.join("file"), "whole")?;
            Ok(fetched)
        };
        let cut_off = fetched_once(folder.path(), "kept", |parts| {
            fetch(parts)?;
            bail!("cut off")
        });
        assert_eq!(cut_off.unwrap_err().to_string(), "cut off");
        assert!(!folder.path().join("kept").exists());
        let kept = fetched_once(folder.path(), "kept", fetch).unwrap();
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "whole");
        assert!(!folder.path().join("parts").exists());
        let again = fetched_once(folder.path(), "kept", |_| bail!("fetched twice"));
        assert_eq!(again.unwrap(), kept);
    }
}
