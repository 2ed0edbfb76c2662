//! The fabric's suites over MPI: each rank is a process that `mpirun` starts.

use crate::{
    programs,
    shell::{check, command, succeeds, target},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// The suites, and with how many ranks each runs.
const SUITES: [(&str, &[usize]); 3] = [
    ("mpi", &[2]),
    ("conformance", &[2, 3]),
    ("collectives", &[4, 5]),
];

/// What only the superuser can install, as `.ci/run` does.
const PREPARATION: &str = "on Debian, as root: apt-get install --no-install-recommends openmpi-bin libopenmpi-dev \
    libclang-dev";

/// Builds the program and the fabric with their feature `mpi`, and runs the fabric's suites.
///
/// # Errors
/// When there is no MPI, or a test fails.
pub(crate) fn run() -> Result<()> {
    for program in ["mpicc", "mpirun"] {
        ensure!(
            succeeds(command(program).arg("--version")),
            "`{program}` cannot be run; {PREPARATION}"
        );
    }
    let mut clippy = command("cargo");
    clippy.args(["clippy", "--features", "mpi", "--all-targets"]);
    for package in ["shoal-fabric", "shoal-cluster", "shoal"] {
        clippy.args(["--package", package]);
    }
    check(clippy.args(["--", "-D", "warnings"])).context(PREPARATION)?;
    let mut targets = SUITES.map(|(suite, _)| ("--test", suite)).to_vec();
    targets.push(("--bin", "shoal"));
    let mut built = programs::build(&targets, &["--features", "mpi"])?;
    let shoal = built.pop().context("as many are built as are asked for")?;
    for ((suite, worlds), program) in SUITES.into_iter().zip(built) {
        for world in worlds {
            let folder = target()?.join(format!("mpi/{suite}-{world}"));
            if folder.exists() {
                fs::remove_dir_all(&folder)
                    .with_context(|| format!("removing {}", folder.display()))?;
            }
            fs::create_dir_all(&folder)
                .with_context(|| format!("creating {}", folder.display()))?;
            let mut ranks = mpirun(*world);
            ranks.arg(&program);
            // All ranks run the same tests in the same order, and a failure shows before it ends all.
            ranks.args(["--test-threads", "1", "--nocapture", "--quiet"]);
            ranks.env("SHOAL_TEST_MPI", folder);
            check(&mut ranks)?;
        }
    }
    test_links(&shoal)
}

/// Tests the links between two ranks with the program itself.
fn test_links(shoal: &Path) -> Result<()> {
    let mut ranks = mpirun(2);
    ranks.arg(shoal);
    ranks.args([
        "fabric",
        "test",
        "--transport",
        "mpi",
        "--sizes",
        "4K,1M",
        "--rounds",
        "3",
        "--json",
    ]);
    // Not by its status, which tells of speed as well.
    let told = ranks.output().context("starting mpirun")?.stdout;
    let told = String::from_utf8_lossy(&told);
    let report: Value = serde_json::from_str(told.lines().next().unwrap_or_default())
        .context("the link test over MPI printed no report")?;
    ensure!(
        report["links"][0]["transport"] == "mpi" && report["correctness"]["wrong"] == 0,
        "the links over MPI are not right: {report}"
    );
    Ok(())
}

fn mpirun(world: usize) -> Command {
    let mut ranks = command("mpirun");
    ranks.args(["-n", &world.to_string()]);
    // Settings instead of options, since every MPI has its own options; those of others are ignored.
    for (name, value) in SETTINGS {
        ranks.env(name, value);
    }
    ranks
}

const SETTINGS: [(&str, &str); 6] = [
    // Bounds all of a run, in seconds.
    ("MPIEXEC_TIMEOUT", "300"),
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    // More ranks than cores.
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    // Stay on this machine: Open MPI otherwise asks for ssh.
    ("OMPI_MCA_plm", "isolated"),
    // As between machines: no rank reaches into another's memory.
    ("OMPI_MCA_btl", "tcp,self"),
];
