//! The end-to-end tests: `tests/e2e`, in Python, against the release binary and a real model file.
//!
//! What they need is fetched once and kept under the target folder: a Python environment with the `openai` package,
//! and a store with the default model, pulled by the very binary under test.

use crate::shell::{check, command, root, target};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Runs all end-to-end tests, or the named modules (`test_chat`) and cases (`test_chat.Streaming.test_usage_chunk`).
///
/// # Errors
/// When something they need cannot be fetched, or a test fails.
pub(crate) fn run(tests: &[&str]) -> Result<()> {
    let target = target()?;
    let shoal = target.join("release").join("shoal");
    if !shoal.is_file() {
        bail!(
            "{} is missing; `cargo xtask ci --only release e2e` builds it first",
            shoal.display()
        );
    }
    let work = target.join("e2e");
    let home = work.join("home");
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    let python = environment(&work)?;
    check(
        command(&shoal)
            .args(["pull", "smollm2"])
            .env("SHOAL_HOME", &home),
    )
    .context("the end-to-end tests need the model `smollm2`")?;

    let mut unittest = command(python);
    unittest.args(["-u", "-m", "unittest"]);
    // Without names it looks for all of them itself.
    unittest.args(if tests.is_empty() {
        &["discover"]
    } else {
        tests
    });
    unittest
        .arg("--verbose")
        .current_dir(root().join("tests/e2e"));
    unittest.env("SHOAL_BIN", &shoal).env("SHOAL_HOME", &home);
    unittest.env("PYTHONDONTWRITEBYTECODE", "1");
    check(&mut unittest)
}

/// Returns the interpreter of a virtual environment that holds `requirements.txt`, made when it is not there yet.
fn environment(work: &Path) -> Result<PathBuf> {
    let wanted_path = root().join("tests/e2e/requirements.txt");
    let wanted = fs::read_to_string(&wanted_path)
        .with_context(|| format!("reading {}", wanted_path.display()))?;
    let folder = work.join("venv");
    let python = folder.join("bin").join("python");
    // Written last, so an environment whose installation was interrupted is made anew.
    let installed_path = folder.join("installed.txt");
    if fs::read_to_string(&installed_path).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    check(
        command("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )
    .context("making a Python environment (on Debian: apt-get install python3-venv)")?;
    check(
        command(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(&wanted_path),
    )
    .context("installing the end-to-end tests' Python packages")?;
    fs::write(&installed_path, wanted)
        .with_context(|| format!("writing {}", installed_path.display()))?;
    Ok(python)
}
