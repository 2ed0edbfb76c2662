//! Instructions of the hottest kernels, counted by callgrind: unlike times, they are the same on a busy machine.

use crate::shell::{check, command, line_of, root, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What the task does and takes.
pub(crate) const HELP: &str = "\
cargo xtask instructions [--record]

Counts with callgrind what one call of each of the hottest kernels executes, and compares it with
crates/kernels/benches/instructions.txt: a kernel that grew or shrank by more than 3 % fails. Wants valgrind and a processor
with AVX2, the widest vectors valgrind knows.

  --record   writes the counts instead
";

/// The kernels of the `hot` example.
const KERNELS: [&str; 4] = ["decode", "decode-q4_k", "prefill", "attention"];
/// Other processors let the system's library choose other ways to copy.
const TOLERANCE: f64 = 0.03;
const HEADER: &str = "\
# Instructions of one call, with AVX2: a product of 256 x 2048 weights in Q4_0 with 1 token (decode) and 64 (prefill), the
# former in Q4_K as well, and the attention of one token of 8 heads in 2 groups to 512 positions. Valgrind's processor is one of
# Intel's, so one token reads panels in pairs. Written by `cargo xtask instructions --record`.
";

/// Runs the check, or the recording.
///
/// # Errors
/// When an argument is wrong, valgrind is missing, or a count differs from what is recorded.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let record = match words {
        [] => false,
        ["--record"] => true,
        _ => bail!("unknown arguments `{}`\n{HELP}", words.join(" ")),
    };
    let hot = build()?;
    let path = root().join("crates/kernels/benches/instructions.txt");
    let mut counts = Vec::new();
    for kernel in KERNELS {
        counts.push((kernel, per_call(&hot, kernel)?));
    }
    if record {
        let lines = counts
            .iter()
            .map(|(kernel, count)| format!("{kernel} {count}\n"));
        let text: String = std::iter::once(HEADER.to_owned()).chain(lines).collect();
        return fs::write(&path, text).with_context(|| format!("writing {}", path.display()));
    }
    let recorded =
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut changed = Vec::new();
    for (kernel, count) in counts {
        let expected = recorded_count(&recorded, kernel)
            .with_context(|| format!("{} has no count of {kernel}", path.display()))?;
        let change = count as f64 / expected as f64 - 1.0;
        eprintln!(
            "{kernel}: {count} instructions a call, {:+.2} %",
            change * 100.0
        );
        if change.abs() > TOLERANCE {
            changed.push(kernel);
        }
    }
    if !changed.is_empty() {
        bail!(
            "{} changed by more than {} %; if that is meant, `cargo xtask instructions --record`",
            changed.join(", "),
            TOLERANCE * 100.0
        );
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    let mut build = command("cargo");
    build.args([
        "build",
        "--release",
        // With the program's features, so that the kernels are those of its build.
        "--package",
        "shoal",
        "--package",
        "shoal-kernels",
        "--example",
        "hot",
    ]);
    check(&mut build)?;
    Ok(target()?.join("release/examples/hot"))
}

/// Returns what one call costs, without what comes before the first: the difference of many calls and few.
fn per_call(hot: &Path, kernel: &str) -> Result<u64> {
    const FEW: u64 = 2;
    const MANY: u64 = 12;
    let many = count(hot, kernel, MANY)?;
    let few = count(hot, kernel, FEW)?;
    let calls = many
        .checked_sub(few)
        .context("many calls cost less than few")?;
    Ok(calls / (MANY - FEW))
}

fn count(hot: &Path, kernel: &str, calls: u64) -> Result<u64> {
    let mut valgrind = command("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(hot)
        .args([kernel, "avx2", &calls.to_string()]);
    let line = line_of(&valgrind);
    let output = valgrind.output();
    let output = output.with_context(|| format!("starting `{line}`: is valgrind installed?"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{line}` failed ({}):\n{words}", output.status);
    }
    collected(&words).with_context(|| format!("`{line}` told no count:\n{words}"))
}

/// Returns the count of callgrind's last words, `==PID== Collected : COUNT`.
fn collected(words: &str) -> Option<u64> {
    let count = words
        .lines()
        .find_map(|line| line.split_once("Collected :"))?
        .1;
    count.trim().parse().ok()
}

fn recorded_count(text: &str, kernel: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == kernel)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found() {
        let words = "==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n";
        assert_eq!(collected(words), Some(1_234_567));
        assert_eq!(collected("==7== Events : Ir\n"), None);
        let text = format!("{HEADER}decode 5\nprefill 70\n");
        assert_eq!(recorded_count(&text, "prefill"), Some(70));
        assert_eq!(recorded_count(&text, "attention"), None);
    }
}
