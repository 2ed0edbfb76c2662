//! Sums over processes of this machine: Shoal beside OpenMPI and MLX, in turns.

mod side;

use super::{block::Document, processor::Processor};
use crate::{
    shell::{command, line_of, output, root, target},
    spread::Spread,
    table::Table,
};
use anyhow::{Context, Result};
use side::{Samples, Side, Sides, Size};
use std::{collections::BTreeMap, fs};

/// Where the tables go.
pub(crate) const DOCUMENT: &str = "docs/FABRIC.md";
pub(crate) const TASK: &str = "peers fabric";

/// A decode step's sum, one of a short prompt, and those of long prompts.
const BYTES: [u64; 4] = [8 << 10, 64 << 10, 4 << 20, 64 << 20];
const WORLDS: [usize; 2] = [2, 4];

/// Returns what is measured of a program: less of MLX where ranks may have to share cores, for then a sum takes it 20 ms.
fn sizes(side: Side, world: usize) -> [Size; 4] {
    let (rounds_max, samples_max) = match side {
        Side::MlxRing if world > 2 => (4, 10),
        _ => (128, 20),
    };
    BYTES.map(|bytes| Size {
        bytes,
        rounds: ((1 << 20) / bytes).clamp(1, rounds_max) as u32,
        samples: ((256 << 20) / bytes).clamp(1, samples_max) as u32,
    })
}

/// Measures, prints the tables and writes them to the document.
///
/// # Errors
/// When a program cannot be had or fails, or the document lacks its markers.
pub(crate) fn run(rounds: u32) -> Result<()> {
    let document = Document::open(DOCUMENT, TASK)?;
    let folder = target()?.join("peers/fabric");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let sides = Sides::prepare(&folder)?;
    let date = output(command("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit = output(command("git").args(["describe", "--always", "--dirty", "--exclude=*"]))?;

    let mut report = head(&date, &commit, &sides.mpi_version, rounds);
    for world in WORLDS {
        let figures = Figures::take(&sides, world, rounds)?;
        report += &format!("\n{world} processes, over TCP; median (range) in µs:\n\n");
        report += &figures.table(&[Side::ShoalTcp, Side::OpenMpiTcp, Side::MlxRing]);
        report += &format!("\n{world} processes, over shared memory; median (range) in µs:\n\n");
        report += &figures.table(&[Side::ShoalShared, Side::OpenMpiShared, Side::MlxRing]);
    }
    report += &commands(&sides);
    eprintln!("\n{report}");
    document.write(&report)
}

/// The figures of one number of processes.
struct Figures {
    /// The median of each round's samples in µs, by side and bytes.
    medians: BTreeMap<(Side, u64), Vec<f64>>,
}

impl Figures {
    /// Runs every side once a round, so that a machine that slows down slows all.
    fn take(sides: &Sides, world: usize, rounds: u32) -> Result<Self> {
        let mut figures = Self {
            medians: BTreeMap::new(),
        };
        for _ in 0..rounds {
            for side in Side::ALL {
                figures.add(side, &sides.measure(side, world, &sizes(side, world))?);
            }
        }
        Ok(figures)
    }

    fn add(&mut self, side: Side, samples: &Samples) {
        for (&bytes, seconds) in samples {
            let spread = Spread::of(seconds);
            let medians = self.medians.entry((side, bytes)).or_default();
            medians.extend(spread.map(|spread| spread.median * 1e6));
        }
    }

    /// Shows `sides`, the first of which is Shoal, and how many times as long each other one takes.
    fn table(&self, sides: &[Side]) -> String {
        let others = &sides[1..];
        let mut titles = vec!["size".to_owned()];
        titles.extend(sides.iter().map(|side| name(*side).to_owned()));
        titles.extend(others.iter().map(|side| format!("{} ÷ Shoal", name(*side))));
        let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
        let mut table = Table::new(&titles);
        for bytes in BYTES {
            let medians = |side| {
                self.medians
                    .get(&(side, bytes))
                    .map_or(&[][..], Vec::as_slice)
            };
            let mut row = vec![shown(bytes)];
            row.extend(sides.iter().map(|side| cell(Spread::of(medians(*side)))));
            row.extend(others.iter().map(|side| {
                let ours = medians(sides[0]);
                let pairs = medians(*side).iter().zip(ours);
                let ratios: Vec<f64> = pairs.map(|(theirs, ours)| theirs / ours).collect();
                let ratio = Spread::of(&ratios);
                ratio.map_or_else(|| "—".to_owned(), |ratio| format!("{:.2} ×", ratio.median))
            }));
            table.push(row);
        }
        table.to_string()
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::ShoalTcp | Side::ShoalShared => "Shoal",
        Side::OpenMpiTcp | Side::OpenMpiShared => "OpenMPI",
        Side::MlxRing => "MLX ring",
    }
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "—".to_owned(), |spread| spread.to_string())
}

fn shown(bytes: u64) -> String {
    match bytes {
        ..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn head(date: &str, commit: &str, mpi_version: &str, rounds: u32) -> String {
    let Processor { model, cores, .. } = Processor::detect();
    let requirements = include_str!("fabric/requirements.txt").trim();
    format!(
        "All-reduce of f32 by sum, each rank a process of one machine: {model}, {cores} cores, {date}, commit {commit}, {mpi_version},\n\
         {requirements}. `cargo xtask peers fabric` took the programs in {rounds} turns; a figure is the median of the turns, the range is\n\
         that of the turns, and a turn's figure is the median of its samples. The last columns are the median of the ratios within\n\
         each turn: above 1, Shoal is quicker. Where there are cores enough, mpirun and Shoal's benchmark bind each rank to one; MLX\n\
         does not. Shoal's values lie in a region, as a model's do. MLX has no shared memory: beside that, its ring over TCP is shown again.\n",
        date = date.trim(),
        commit = commit.trim(),
    )
}

/// Shows how each program was run, without the folders of this machine.
fn commands(sides: &Sides) -> String {
    let mut text = "\n```sh\n".to_owned();
    for side in Side::ALL {
        let line = line_of(&sides.command(side, WORLDS[0], &sizes(side, WORLDS[0])));
        let words = line.split(' ').map(|word| {
            let is_path = word.starts_with('/') || word.starts_with(&*root().to_string_lossy());
            match word.rsplit_once('/') {
                Some((_, file)) if is_path => file,
                _ => word,
            }
        });
        text += &words.collect::<Vec<_>>().join(" ");
        text.push('\n');
    }
    text + "```\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_shown_like_wins_and_gaps_as_dashes() {
        let mut figures = Figures {
            medians: BTreeMap::new(),
        };
        for (ours, theirs) in [(10e-6, 20e-6), (30e-6, 15e-6), (10e-6, 5e-6)] {
            figures.add(Side::ShoalTcp, &Samples::from([(8192, vec![ours])]));
            figures.add(Side::OpenMpiTcp, &Samples::from([(8192, vec![theirs])]));
        }
        let table = figures.table(&[Side::ShoalTcp, Side::OpenMpiTcp]);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let first = ["8 KiB", "10.0 (10.0–30.0)", "15.0 (5.0–20.0)", "0.50 ×"];
        assert_eq!(rows[0], first);
        assert_eq!(rows[3], ["64 MiB", "—", "—", "—"]);
    }
}
