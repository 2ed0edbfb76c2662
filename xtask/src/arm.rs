//! The Arm checks: the kernels' tests executed under emulation, and all of the workspace type-checked for macOS.
//!
//! The pinned toolchain has the standard library of its own machine only, so the compiler is Debian's `rustc-web`, unpacked
//! below the target folder: for Linux on Arm with the standard library that Debian built, for macOS with its source.

use crate::{
    debian,
    shell::{check, command, output, succeeds, target},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Processors to emulate, and the instruction sets that must be found there: a set that goes missing is not tested.
const PROCESSORS: &[(&str, &str)] = &[
    ("cortex-a57", "scalar neon"),
    ("cortex-a76", "scalar neon neon-dot"),
    ("max", "scalar neon neon-dot neon-i8mm"),
];

/// Fewer than otherwise, because emulation is slow.
const PROPTEST_CASES: &str = "32";

/// What only the superuser can install, as `.ci/run` does.
const PREPARATION: &str = "on Debian, as root: dpkg --add-architecture arm64 && apt-get update && \
    apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libedit2 libxml2 libz3-4";

/// Runs all Arm checks.
///
/// # Errors
/// When something they need cannot be fetched, or a check fails.
pub(crate) fn run() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the Arm checks need Debian on x86-64, because they compile with its `rustc-web`");
    }
    for program in ["aarch64-linux-gnu-gcc", "qemu-aarch64"] {
        if !succeeds(command(program).arg("--version")) {
            bail!("`{program}` cannot be run; {PREPARATION}");
        }
    }
    let folder = target()?.join("arm");
    let toolchain = Toolchain::fetch(&folder)?;
    toolchain.test_kernels()?;
    toolchain.check_macos()
}

/// Debian's compiler, with the standard libraries of this machine and of Arm.
struct Toolchain {
    /// Where the packages were unpacked.
    root: PathBuf,
    /// Build outputs, apart from those of the pinned compiler.
    outputs: PathBuf,
}

impl Toolchain {
    /// Downloads and unpacks the packages, unless that was done before.
    fn fetch(folder: &Path) -> Result<Self> {
        let root = debian::fetched_once(folder, "root", |parts| {
            let unpacked = unpack(parts)
                .with_context(|| format!("fetching the compiler for Arm ({PREPARATION})"))?;
            let version =
                output(with_libraries(&mut command(rustc(&unpacked)), &unpacked).arg("--version"))
                    .with_context(|| {
                        format!("the compiler for Arm lacks a library ({PREPARATION})")
                    })?;
            // Debian's main suite has an older one.
            let wanted = env!("CARGO_PKG_RUST_VERSION");
            ensure!(
                release(version.trim_start_matches("rustc ")) >= release(wanted),
                "apt offers {}, but Rust {wanted} is needed; add Debian's security suite to its sources",
                version.trim()
            );
            Ok(unpacked)
        })?;
        Ok(Self {
            root,
            outputs: folder.join("build"),
        })
    }

    /// Runs the tests of `shoal-kernels` on each of [`PROCESSORS`].
    fn test_kernels(&self) -> Result<()> {
        for &(processor, expected) in PROCESSORS {
            let isas = ["--example", "isas"];
            check(self.emulated(processor, "build").args(isas))?;
            let found = output(self.emulated(processor, "run").args(isas).arg("--quiet"))?;
            let found: Vec<_> = found.split_whitespace().collect();
            ensure!(
                found.join(" ") == expected,
                "an emulated {processor} has the instruction sets `{}`, expected `{expected}`",
                found.join(" ")
            );
            check(self.emulated(processor, "test").args(["--lib", "--tests"]))
                .with_context(|| format!("on an emulated {processor}"))?;
        }
        Ok(())
    }

    /// Returns a cargo that builds for Linux on Arm and runs what it built on `processor`.
    fn emulated(&self, processor: &str, task: &str) -> Command {
        const TARGET: &str = "aarch64-unknown-linux-gnu";
        let mut cargo = self.cargo(task);
        cargo
            .args(["--package", "shoal-kernels", "--target", TARGET])
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                "aarch64-linux-gnu-gcc",
            )
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
                format!("qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu {processor}"),
            )
            .env("PROPTEST_CASES", PROPTEST_CASES);
        cargo
    }

    /// Type-checks all packages with their tests for macOS.
    fn check_macos(&self) -> Result<()> {
        let mut cargo = self.cargo("check");
        cargo
            .args(["--workspace", "--all-targets"])
            .args(["--target", "aarch64-apple-darwin"])
            .arg("-Zbuild-std=std,panic_abort,test")
            // Nothing is linked, so the C code of dependencies, for which there is no compiler here, can be left out.
            .env("CC_aarch64_apple_darwin", "true")
            .env("AR_aarch64_apple_darwin", "true");
        check(&mut cargo).context("for macOS")
    }

    fn cargo(&self, task: &str) -> Command {
        let mut cargo = command("cargo");
        with_libraries(&mut cargo, &self.root)
            .arg(task)
            .args(["--config", "profile.dev.debug=false"])
            .env("CARGO_TARGET_DIR", &self.outputs)
            .env("RUSTC", rustc(&self.root))
            // For `-Z`; everywhere, because dependencies are built anew when it changes.
            .env("RUSTC_BOOTSTRAP", "1");
        cargo
    }
}

/// Downloads the packages into `folder` and unpacks them. Returns the root of what they hold.
fn unpack(folder: &Path) -> Result<PathBuf> {
    // The names of these two hold versions.
    let library = debian::dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = debian::dependency(&library, "libllvm")?;
    let mut packages = vec!["rustc-web".to_owned(), "rust-web-src".to_owned(), llvm];
    for package in [library.as_str(), "libstd-rust-web-dev"] {
        packages.extend([package.to_owned(), format!("{package}:arm64")]);
    }
    debian::unpack(folder, &packages)
}

/// Returns the numbers that `version` begins with, major and minor.
fn release(version: &str) -> Vec<u32> {
    let numbers = version.split('.').map_while(|part| part.parse().ok());
    numbers.take(2).collect()
}

fn rustc(root: &Path) -> PathBuf {
    root.join("usr/bin/rustc")
}

/// Has `command` and what it starts find the libraries of [`rustc`].
fn with_libraries<'a>(command: &'a mut Command, root: &Path) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert_eq!(release("1.96.0 (ac68faa20 2026-05-25)"), [1, 96]);
        assert!(release("1.9") < release("1.95"));
        assert!(release("nonsense") < release("1.95"));
    }
}
