//! Who sums: one program each, which is given the sizes and prints a line `BYTES SECONDS` for each sample.

use crate::{
    python,
    shell::{check, command, executable, line_of, output, root},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// One program over one kind of link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    ShoalTcp,
    OpenMpiTcp,
    MlxRing,
    ShoalShared,
    OpenMpiShared,
}

impl Side {
    pub(crate) const ALL: [Self; 5] = [
        Self::ShoalTcp,
        Self::OpenMpiTcp,
        Self::MlxRing,
        Self::ShoalShared,
        Self::OpenMpiShared,
    ];
}

/// What is measured at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    /// Sums of one sample: one alone can be quick only since the other ranks were ahead.
    pub(crate) rounds: u32,
    pub(crate) samples: u32,
}

/// Seconds of each sample, by bytes.
pub(crate) type Samples = BTreeMap<u64, Vec<f64>>;

/// The programs, built and fetched.
pub(crate) struct Sides {
    links: PathBuf,
    mpi: PathBuf,
    python: PathBuf,
    hostfile: PathBuf,
    pub(crate) mpi_version: String,
}

impl Sides {
    /// Builds Shoal's benchmark and the one for OpenMPI, and fetches MLX.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub(crate) fn prepare(folder: &Path) -> Result<Self> {
        let sources = root().join("xtask/src/peers/fabric");
        let mpi = folder.join("all_reduce");
        check(
            command("mpicc")
                .args(["-O2", "-o"])
                .arg(&mpi)
                .arg(sources.join("all_reduce.c")),
        )
        .context("compiling for OpenMPI (on Debian: apt-get install openmpi-bin libopenmpi-dev)")?;
        let version = output(command("mpirun").arg("--version"))?;
        Ok(Self {
            links: links()?,
            mpi,
            python: python::environment(&folder.join("mlx"), &sources.join("requirements.txt"))?,
            hostfile: folder.join("hosts.json"),
            mpi_version: version.lines().next().unwrap_or_default().to_owned(),
        })
    }

    /// Returns the command that measures `sizes` over `world` processes, or runs the first of them.
    pub(crate) fn command(&self, side: Side, world: usize, sizes: &[Size]) -> Command {
        let mut command = match side {
            Side::ShoalTcp => self.links("tcp", world),
            Side::ShoalShared => self.links("shared", world),
            Side::OpenMpiTcp => self.mpirun("tcp,self", world),
            Side::OpenMpiShared => self.mpirun("vader,self", world),
            Side::MlxRing => self.mlx(0),
        };
        command.args(words(sizes));
        command
    }

    /// Measures `sizes` over `world` processes.
    ///
    /// # Errors
    /// When a process fails, or a sample is missing.
    pub(crate) fn measure(&self, side: Side, world: usize, sizes: &[Size]) -> Result<Samples> {
        let mut command = self.command(side, world, sizes);
        let printed = match side {
            Side::MlxRing => self.beside_others(&mut command, world, sizes)?,
            _ => output(&mut command)?,
        };
        let samples = parse(&printed)?;
        for size in sizes {
            let count = samples.get(&size.bytes).map_or(0, Vec::len);
            ensure!(
                count == size.samples as usize,
                "`{}` printed {count} samples of {} bytes",
                line_of(&command),
                size.bytes
            );
        }
        Ok(samples)
    }

    fn links(&self, link: &str, world: usize) -> Command {
        let mut links = command(&self.links);
        links.arg(link).arg(world.to_string());
        links
    }

    /// More ranks than cores are allowed, and so is the administrator, who runs containers.
    fn mpirun(&self, transports: &str, world: usize) -> Command {
        let mut mpirun = command("mpirun");
        mpirun
            .args(["--allow-run-as-root", "--oversubscribe", "--mca", "btl"])
            .args([transports, "-np", &world.to_string()])
            .arg(&self.mpi);
        mpirun
    }

    fn mlx(&self, rank: usize) -> Command {
        let mut mlx = command(&self.python);
        mlx.arg(root().join("xtask/src/peers/fabric/all_reduce.py"))
            .env("MLX_RANK", rank.to_string())
            .env("MLX_HOSTFILE", &self.hostfile);
        mlx
    }

    /// Runs rank 0 of a ring together with its other ranks.
    fn beside_others(&self, rank_0: &mut Command, world: usize, sizes: &[Size]) -> Result<String> {
        let ports = free_ports(world)?;
        let hosts = ports.iter().map(|port| [format!("127.0.0.1:{port}")]);
        let hosts = serde_json::to_string(&hosts.collect::<Vec<_>>())?;
        fs::write(&self.hostfile, hosts)
            .with_context(|| format!("writing {}", self.hostfile.display()))?;
        let mut others = Others(Vec::new());
        for rank in 1..world {
            let mut other = self.mlx(rank);
            let started = other.args(words(sizes)).spawn();
            others.0.push(started.context("starting MLX")?);
        }
        let printed = output(rank_0)?;
        for other in &mut others.0 {
            other.wait().context("waiting for MLX")?;
        }
        Ok(printed)
    }
}

/// Ranks that run beside another. They wait for each other, so none outlives the failure of one.
struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for other in &mut self.0 {
            let _it_may_have_ended = other.kill();
            let _nobody_asks = other.wait();
        }
    }
}

/// Returns ports that were free a moment ago: the ring wants to be told before it listens.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let bind = |_| TcpListener::bind(("127.0.0.1", 0));
    let listeners = (0..count).map(bind).collect::<Result<Vec<_>, _>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}

fn words(sizes: &[Size]) -> Vec<String> {
    let words = |size: &Size| {
        [
            size.bytes.to_string(),
            size.rounds.to_string(),
            size.samples.to_string(),
        ]
    };
    sizes.iter().flat_map(words).collect()
}

fn parse(printed: &str) -> Result<Samples> {
    let mut samples = Samples::new();
    for line in printed.lines() {
        let sample = line.split_once(' ').and_then(|(bytes, seconds)| {
            let seconds: f64 = seconds.parse().ok()?;
            Some((bytes.parse().ok()?, seconds))
        });
        let Some((bytes, seconds)) = sample.filter(|(_, seconds)| *seconds > 0.0) else {
            bail!("`{line}` is no sample: BYTES SECONDS");
        };
        samples.entry(bytes).or_default().push(seconds);
    }
    Ok(samples)
}

/// Builds the fabric's benchmark and returns where cargo has put it.
fn links() -> Result<PathBuf> {
    let messages = output(command("cargo").args([
        "bench",
        "--package",
        "shoal-fabric",
        "--bench",
        "links",
        "--no-run",
        "--message-format",
        "json",
    ]))?;
    executable(&messages, "links").context("cargo did not say where it put the benchmark `links`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let samples = parse("8192 0.000010\n65536 0.5\n8192 0.000012\n").unwrap();
        assert_eq!(samples[&8192], [0.00001, 0.000012]);
        assert_eq!(samples[&65536], [0.5]);
        for wrong in [
            "a sum is wrong",
            "8192",
            "8192 fast",
            "8192 0.0",
            "8192 NaN",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
