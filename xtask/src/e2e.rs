//! The end-to-end tests: `tests/e2e`, in Python, against the release binary and a real model file.
//!
//! What they need is fetched once and kept under the target folder: a Python environment with the `openai` package,
//! and a store with the default model, pulled by the very binary under test.

use crate::{
    ci, python,
    shell::{check, command, output, root, target},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{fs, path::PathBuf};

/// Runs all end-to-end tests, or the named modules (`test_chat`) and cases (`test_chat.Streaming.test_usage_chunk`).
///
/// # Errors
/// When something they need cannot be fetched, or a test fails.
pub(crate) fn run(tests: &[&str]) -> Result<()> {
    let subject = Subject::prepare()?;
    let requirements = root().join("tests/e2e/requirements.txt");
    let python = python::environment(&work()?.join("venv"), &requirements)?;

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
    unittest.env("SHOAL_BIN", &subject.shoal);
    unittest.env("SHOAL_HOME", &subject.home);
    unittest.env("PYTHONDONTWRITEBYTECODE", "1");
    check(&mut unittest)
}

/// What is tested: the release binary, and a store with the default model.
pub(crate) struct Subject {
    shoal: PathBuf,
    home: PathBuf,
}

impl Subject {
    /// Builds the release binary, for one that lies there may be of older sources, and has it pull the model.
    ///
    /// # Errors
    /// When the binary cannot be built, or the model cannot be fetched.
    pub(crate) fn prepare() -> Result<Self> {
        ci::release()?;
        let shoal = target()?.join("release").join("shoal");
        let home = work()?.join("home");
        fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let pull = ["pull", MODEL];
        check(command(&shoal).args(pull).env("SHOAL_HOME", &home))
            .with_context(|| format!("the tests need the model `{MODEL}`"))?;
        Ok(Self { shoal, home })
    }

    /// Returns the model's file.
    ///
    /// # Errors
    /// When the binary does not list it.
    pub(crate) fn model(&self) -> Result<PathBuf> {
        let mut models = command(&self.shoal);
        models.args(["models", "--json"]);
        let listed = output(models.env("SHOAL_HOME", &self.home))?;
        let models: Vec<Model> =
            serde_json::from_str(&listed).context("reading the list of models")?;
        let model = models.into_iter().find(|model| model.name == MODEL);
        Ok(model
            .with_context(|| format!("`{MODEL}` is not listed"))?
            .path)
    }
}

#[derive(Deserialize)]
struct Model {
    name: String,
    path: PathBuf,
}

fn work() -> Result<PathBuf> {
    Ok(target()?.join("e2e"))
}

const MODEL: &str = "smollm2";
