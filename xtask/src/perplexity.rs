//! What speed costs: the real model's perplexity with each instruction set and split, beside that of the scalar kernels.

use crate::{
    e2e::Subject,
    shell::{check, command},
};
use anyhow::Result;

/// Compares the perplexities on a fixed text.
///
/// # Errors
/// When the model cannot be fetched, or a perplexity is too far from the scalar one.
pub(crate) fn run() -> Result<()> {
    let model = Subject::prepare()?.model()?;
    let mut example = command("cargo");
    example.args(["run", "--release", "--package", "shoal"]);
    example.args(["--example", "perplexity", "--"]);
    check(example.arg(model).arg("tests/data/alice-chapter-1.txt"))
}
