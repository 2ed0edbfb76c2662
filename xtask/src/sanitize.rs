//! The unsafe code under tools that notice what a test cannot see: AddressSanitizer with every instruction set of this
//! processor, and Miri with the scalar one.

use crate::shell::{check, command, succeeds, target};
use anyhow::{Context, Result};
use std::process::Command;

/// The compiler that has both; pinned, so that a new one breaks no check on its own.
const NIGHTLY: &str = "nightly-2026-05-20";

/// What Miri interprets: of a package, a target and the names of its tests. Those that reach unsafe code, and that end while
/// one waits.
const INTERPRETED: &[(&str, &[&str], &[&str])] = &[
    (
        "shoal-kernels",
        &["--lib"],
        &[
            "arch::tests::bit",
            "arch::tests::exp",
            "kv_cache::",
            "ops::linear::activations::tests::extremes",
            "ops::linear::tests::float",
            "panels::",
            "pool::",
        ],
    ),
    (
        "shoal-kernels",
        &["--test", "cpu"],
        &[
            "attention_",
            "elementwise",
            "rms_norm",
            "rotary",
            "--skip=long_",
        ],
    ),
    ("shoal-fabric", &["--lib"], &["ring::"]),
];

/// Runs both.
///
/// # Errors
/// When the compiler cannot be fetched, or a test fails or does what it must not.
pub(crate) fn run() -> Result<()> {
    fetch()?;
    addresses()?;
    for (package, tests, names) in INTERPRETED {
        interpret(package, tests, names).with_context(|| format!("Miri on {package}"))?;
    }
    Ok(())
}

/// Runs both, or says that the compiler cannot be fetched: nothing else wants it, and not every machine reaches it.
///
/// # Errors
/// When a test fails or does what it must not.
pub(crate) fn run_if_fetched() -> Result<()> {
    match fetch() {
        Ok(()) => run(),
        Err(error) => {
            eprintln!("LEFT OUT, nothing was sanitized: {error:#}");
            Ok(())
        }
    }
}

fn fetch() -> Result<()> {
    if succeeds(cargo("miri").arg("--version")) {
        return Ok(());
    }
    let mut install = command("rustup");
    install.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    install.args(["--component", "miri,rust-src", "--no-self-update"]);
    check(&mut install).context("fetching the compiler that sanitizes, with rustup")
}

/// Has every load and store of the kernels' tests checked against what is allocated.
fn addresses() -> Result<()> {
    let mut test = cargo("test");
    test.args(["--package", "shoal-kernels", "--lib", "--tests"])
        // Named, so that only what runs on this machine is instrumented, not what runs in the compiler.
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", target()?.join("sanitize"))
        // Memory that is not there is an error, which is tested.
        .env("ASAN_OPTIONS", "allocator_may_return_null=1")
        .env("PROPTEST_CASES", "64");
    check(&mut test).context("AddressSanitizer on shoal-kernels")
}

/// Interprets tests, which are a thousand times slower then. Miri has no instruction sets but the scalar one.
fn interpret(package: &str, tests: &[&str], names: &[&str]) -> Result<()> {
    let mut miri = cargo("miri");
    miri.args(["test", "--package", package])
        .args(tests)
        .arg("--")
        .args(names)
        .env("CARGO_TARGET_DIR", target()?.join("sanitize"))
        // Proptest looks for the file of past failures.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", "1");
    check(&mut miri)
}

fn cargo(task: &str) -> Command {
    let mut cargo = command("rustup");
    cargo.args(["run", NIGHTLY, "cargo", task]);
    cargo
}
