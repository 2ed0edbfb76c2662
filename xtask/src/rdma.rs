//! The RDMA checks: the conformance suite and whole cells over Soft-RoCE, in an emulated machine.
//!
//! A host's kernel need not have RDMA, and this needs no right to load modules: Debian's own kernel has Soft-RoCE, and boots in
//! QEMU by plain emulation within seconds. What runs inside is `rdma/guest.sh`; it tells its outcomes over the serial console.

mod image;

use crate::{
    programs,
    shell::{check, command, succeeds, target},
};
use anyhow::{Context, Result, bail, ensure};
use image::{Image, Kernel};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

pub(crate) const HELP: &str = "\
cargo xtask rdma [CHECK...]

Boots Debian's kernel in QEMU, makes a Soft-RoCE device there, and runs the checks over it, some with a second one: all, or
only those named. The first device is always made. --show shows the whole console.
";

/// Every check that `guest.sh` knows, in order, but for the device; the link goes down for good with `link_down_reliable`.
const CHECKS: &[&str] = &[
    "links_reliable",
    "links_unreliable",
    "tokens_as_over_tcp",
    "copy_to_a_node",
    "copy_killed",
    "lanes_reliable",
    "lanes_unreliable",
    "conformance_reliable",
    "conformance_unreliable",
    "collectives_reliable",
    "collectives_unreliable",
    "links_over_two_reliable",
    "links_over_two_unreliable",
    "lanes_over_two_reliable",
    "conformance_over_two_reliable",
    "one_of_two_down",
    "peer_killed_reliable",
    "peer_killed_unreliable",
    "link_down_unheard",
    "link_down_unreliable",
    "link_down_reliable",
    "port_down",
    "slow_network",
];

/// What runs inside: tests of the fabric that run over every kind of link, those between hosts, and the program itself.
const PROGRAMS: &[programs::Target<'_>] = &[
    ("--test", "lanes"),
    ("--test", "conformance"),
    ("--test", "collectives"),
    ("--test", "namespaces"),
    ("--bin", "shoal"),
];

/// What only the superuser can install, as `.ci/run` does.
const PREPARATION: &str = "on Debian, as root: apt-get install --no-install-recommends qemu-system-x86 busybox-static cpio \
    kmod rdma-core ibverbs-providers ibverbs-utils iproute2";

/// Runs the checks of these names, or all.
///
/// # Errors
/// When something they need cannot be fetched or built, or a check fails.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let is_shown = words.contains(&"--show");
    let mut checks: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| *word != "--show")
        .collect();
    if let Some(unknown) = checks.iter().find(|check| !CHECKS.contains(check)) {
        bail!("unknown check `{unknown}`; there are {}", CHECKS.join(", "));
    }
    if checks.is_empty() {
        checks = CHECKS.to_vec();
    }
    // Outcomes are told apart by their names.
    checks.sort_by_key(|check| CHECKS.iter().position(|known| known == check));
    checks.dedup();
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the RDMA checks need Debian on x86-64, because they boot its kernel");
    }
    for (program, argument) in [
        ("qemu-system-x86_64", "--version"),
        ("busybox", "true"),
        ("cpio", "--version"),
        ("modprobe", "--version"),
        ("ibv_devices", "--help"),
    ] {
        ensure!(
            program == "ibv_devices" && image::find(program).is_ok()
                || succeeds(command(program).arg(argument)),
            "`{program}` cannot be run; {PREPARATION}"
        );
    }
    let folder = target()?.join("rdma");
    let kernel = Kernel::fetch(&folder)
        .with_context(|| format!("fetching Debian's kernel ({PREPARATION})"))?;
    let built = build(&folder)?;
    let image = Image::make(&folder, &kernel, &built, &target()?.join("debug"), &checks)?;
    let outcomes = boot(&kernel, &image, is_shown)?;
    report(&checks, &outcomes)
}

/// Builds what runs inside, and a model for it; returns where that lies.
fn build(folder: &Path) -> Result<Vec<PathBuf>> {
    let model = folder.join("tiny.gguf");
    for tiny in programs::build(&[("--example", "tiny")], &[])? {
        check(command(tiny).arg("Q8_0").arg(&model))?;
    }
    let mut built = programs::build(PROGRAMS, &[])?;
    built.push(model);
    Ok(built)
}

/// How a check went.
#[derive(Debug)]
struct Outcome {
    name: String,
    /// What it wrote.
    text: String,
    /// None where the machine ended first.
    passed: Option<bool>,
    took: Duration,
}

/// Runs the machine to its end.
fn boot(kernel: &Kernel, image: &Image, is_shown: bool) -> Result<Vec<Outcome>> {
    let mut qemu = command("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "2048",
    ])
    .args(["-nographic", "-no-reboot", "-nic", "none"])
    .arg("-kernel")
    .arg(kernel.file()?)
    .arg("-initrd")
    .arg(image.file())
    .args(["-append", "console=ttyS0 quiet panic=-1"])
    .stdin(Stdio::null())
    .stdout(Stdio::piped());
    let mut machine = Machine(qemu.spawn().context("starting QEMU")?);
    let console = machine.0.stdout.take().expect("it is piped");
    // Not even the console of a machine that hangs may hold this up.
    let (lines, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if lines
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let until = Instant::now() + TIME_MAX;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut begun = Instant::now();
    while let Ok(line) = told.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if is_shown {
            eprintln!("{line}");
        }
        // The firmware leaves a line unfinished, on which the first news then stands.
        let news = line
            .find("@@ ")
            .map_or(line.as_str(), |start| &line[start..]);
        let words: Vec<&str> = news.split(' ').collect();
        match (words.as_slice(), outcomes.last_mut()) {
            (["@@", "over"], _) => break,
            (["@@", "begin", name], _) => {
                begun = Instant::now();
                outcomes.push(Outcome {
                    name: (*name).to_owned(),
                    text: String::new(),
                    passed: None,
                    took: Duration::ZERO,
                });
            }
            (["@@", "end", _, status], Some(outcome)) => {
                outcome.passed = Some(*status == "0");
                outcome.took = begun.elapsed();
                let word = if *status == "0" { "passed" } else { "FAILED" };
                eprintln!(
                    "{word} in {:.1} s: {}",
                    outcome.took.as_secs_f64(),
                    outcome.name
                );
            }
            (_, Some(outcome)) => {
                outcome.text += &line;
                outcome.text.push('\n');
            }
            (_, None) => {}
        }
    }
    Ok(outcomes)
}

/// The emulated machine; it does not outlive its use.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _nobody_asks = self.0.wait();
    }
}

/// Says how each check went, and what those said that failed.
fn report(checks: &[&str], outcomes: &[Outcome]) -> Result<()> {
    let mut failed = Vec::new();
    eprintln!("\n{:<32} {:>8}", "over Soft-RoCE", "seconds");
    for name in std::iter::once("device").chain(checks.iter().copied()) {
        let outcome = outcomes.iter().find(|outcome| outcome.name == name);
        match outcome {
            Some(outcome) if outcome.passed == Some(true) => {
                eprintln!("{name:<32} {:>8.1} passed", outcome.took.as_secs_f64());
            }
            Some(outcome) => {
                eprintln!("{name:<32} {:>8} FAILED", "");
                failed.push((name, outcome.text.as_str()));
            }
            None => {
                eprintln!("{name:<32} {:>8} not run", "");
                failed.push((name, "the machine ended before it began"));
            }
        }
    }
    for (name, text) in &failed {
        eprintln!("\n=== {name}\n{text}");
    }
    ensure!(
        failed.is_empty(),
        "{} of {} checks failed; again, with all that the machine says: cargo xtask rdma --show",
        failed.len(),
        checks.len() + 1
    );
    Ok(())
}

/// A machine that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(1200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_knows_every_check() {
        let script = include_str!("rdma/guest.sh");
        for check in CHECKS {
            assert!(script.contains(&format!("\n{check}()")), "{check}");
        }
    }
}
