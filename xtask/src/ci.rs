//! The checks of continuous integration, in order.

use crate::{
    arm, e2e, instructions, mpi, perplexity, programs, rdma, sanitize,
    shell::{check, command, output, succeeds, target},
};
use anyhow::{Context, Result, bail};
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// One check.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<()>,
}

/// Cheap checks come first, so that a slip is known within seconds.
const STEPS: &[Step] = &[
    step("fmt", "formatting", fmt),
    step(
        "rules",
        "house rules: crate arrows, unsafe code, purity",
        rules,
    ),
    step("clippy", "lints, warnings denied", clippy),
    step("test", "unit and integration tests", test),
    step(
        "loom",
        "lock-free parts in every order of their steps",
        loom,
    ),
    step("doctest", "examples in the documentation", doctest),
    step("docs", "documentation build, warnings denied", docs),
    step(
        "sanitize",
        "unsafe code under AddressSanitizer and Miri",
        sanitize::run_if_fetched,
    ),
    step(
        "arm",
        "kernels on emulated Arm processors, types on macOS",
        arm::run,
    ),
    step(
        "rdma",
        "links over Soft-RoCE in an emulated machine",
        || rdma::run(&[]),
    ),
    step("mpi", "links over MPI, each rank a process", mpi::run),
    step("release", "the release binary", release),
    step(
        "instructions",
        "instruction counts of the hottest kernels",
        || instructions::run(&[]),
    ),
    step(
        "perplexity",
        "fast kernels and splits against exact ones, on a text",
        perplexity::run,
    ),
    step("e2e", "the release binary with a real model", || {
        e2e::run(&[])
    }),
];

/// Runs every step.
///
/// # Errors
/// At the first step that fails, naming it.
pub(crate) fn run_all() -> Result<()> {
    run(STEPS.iter())
}

/// Runs the steps of these names, in the order of the list.
///
/// # Errors
/// When a name is unknown, or at the first step that fails.
pub(crate) fn run_only(names: &[&str]) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != **name))
    {
        bail!("unknown step `{unknown}`; the steps are:\n{}", describe());
    }
    run(STEPS.iter().filter(|step| names.contains(&step.name)))
}

/// Lists the steps, one a line.
pub(crate) fn describe() -> String {
    let mut text = String::new();
    for Step { name, about, .. } in STEPS {
        writeln!(text, "  {name:<12} {about}").expect("writing to a string succeeds");
    }
    text
}

const fn step(name: &'static str, about: &'static str, run: fn() -> Result<()>) -> Step {
    Step { name, about, run }
}

fn run<'a>(steps: impl Iterator<Item = &'a Step>) -> Result<()> {
    let start = Instant::now();
    let mut times = Vec::new();
    for step in steps {
        eprintln!("\n=== {}: {}", step.name, step.about);
        let step_start = Instant::now();
        let outcome = (step.run)();
        let seconds = seconds(step_start.elapsed());
        times.push(format!("{:<12} {seconds:>8}", step.name));
        if let Err(error) = outcome {
            eprintln!("=== {}: FAILED after {seconds}", step.name);
            return Err(error).with_context(|| {
                format!(
                    "step `{0}` (again alone: cargo xtask ci --only {0})",
                    step.name
                )
            });
        }
        eprintln!("=== {}: ok in {seconds}", step.name);
    }
    eprintln!(
        "\nall steps passed in {}\n  {}",
        seconds(start.elapsed()),
        times.join("\n  ")
    );
    Ok(())
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

fn cargo(line: &str) -> Result<()> {
    check(command("cargo").args(line.split(' ')))
}

fn fmt() -> Result<()> {
    cargo("fmt --all --check")
}

fn rules() -> Result<()> {
    cargo("test --package xtask --test house_rules")
}

fn clippy() -> Result<()> {
    cargo("clippy --workspace --all-targets -- -D warnings")
}

fn test() -> Result<()> {
    let isas = programs::build(&[("--example", "isas")], &[])?.remove(0);
    let isas = output(&mut command(isas))?;
    eprintln!(
        "kernels are tested for what this processor has ({}), and for nothing else",
        isas.trim().replace('\n', ", ")
    );
    // Where hosts can be made they have to be: a test that skips itself there would hide that it broke.
    let has_namespaces = succeeds(command("unshare").args(["--net", "--mount", "--uts", "true"]));
    if !has_namespaces {
        eprintln!(
            "there are no network namespaces for this user: what happens between machines is NOT tested"
        );
    }
    let words: &[&str] = if succeeds(command("cargo").args(["nextest", "--version"])) {
        &["nextest", "run", "--workspace"]
    } else {
        eprintln!(
            "cargo-nextest is not installed (`cargo install cargo-nextest --locked`): running `cargo test` instead"
        );
        &["test", "--workspace", "--lib", "--bins", "--tests"]
    };
    let mut tests = command("cargo");
    // Has the tests fail, rather than skip, where the headers of RDMA's library are missing.
    tests.args(words).env("SHOAL_REQUIRE_VERBS_HEADERS", "1");
    if has_namespaces {
        tests.env("SHOAL_REQUIRE_NETNS", "1");
    }
    check(&mut tests)
}

/// Builds into a folder of its own: the cfg is another one for every dependency as well.
fn loom() -> Result<()> {
    let folder = target()?.join("loom");
    check(
        command("cargo")
            .args(["test", "--package", "shoal-fabric", "--lib", "ring::models"])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", folder),
    )
}

fn doctest() -> Result<()> {
    cargo("test --workspace --doc")
}

fn docs() -> Result<()> {
    let mut doc = command("cargo");
    doc.args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings");
    check(&mut doc)
}

/// Builds the release binary; quick when it is there and nothing changed.
pub(crate) fn release() -> Result<()> {
    cargo("build --release --package shoal")
}
