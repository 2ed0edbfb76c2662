//! The end-to-end tests: `tests/e2e`, in Python, against the release binary and a real model file.
//!
//! What they need is fetched once and kept under the target folder: a Python environment with the `openai` package,
//! and a store with the default model, pulled by the very binary under test.

use crate::{
    python,
    shell::{check, command, root, target},
};
use anyhow::{Context, Result, bail};
use std::fs;

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
    let requirements = root().join("tests/e2e/requirements.txt");
    let python = python::environment(&work.join("venv"), &requirements)?;
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
