//! One file over loopback: `shoal cp` beside plain streams, a plain copy and rsync over ssh, in turns.

mod place;
mod rsync;
mod shoal;
mod stream;

use super::{block::Document, processor::Processor};
use crate::{
    shell::{command, output, target},
    spread::Spread,
    table::{Table, percent},
};
use anyhow::{Context, Result};
use place::Place;
use rsync::Rsync;
use shoal::Shoal;
use std::fs;
use stream::End;

/// Where the table goes.
pub(crate) const DOCUMENT: &str = "docs/FABRIC.md";
pub(crate) const TASK: &str = "peers cp";

/// Measures, prints the table and writes it to the document.
///
/// # Errors
/// When a program cannot be had or fails, or the document lacks its markers. A side that cannot be measured is no error:
/// the table says why.
pub(crate) fn run(rounds: u32) -> Result<()> {
    let document = Document::open(DOCUMENT, TASK)?;
    let folder = target()?.join("peers/cp");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let place = Place::new()?;
    let shoal = Shoal::start(&place)?;
    let rsync = Rsync::start(&folder).map_err(|error| format!("{error:#}"));
    let date = output(command("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit = output(command("git").args(["describe", "--always", "--dirty", "--exclude=*"]))?;

    let mut figures = vec![Figures::default(); Side::ALL.len()];
    for _ in 0..rounds {
        for (side, figures) in Side::ALL.into_iter().zip(&mut figures) {
            place.clear()?;
            let sample = match side {
                Side::Stream(from, to, connections) => {
                    stream::measure(&place, from, to, connections)?
                }
                Side::Copy => stream::copy(&place)?,
                Side::Shoal(connections) => shoal.measure(&place, connections)?,
                Side::Rsync => match &rsync {
                    Ok(rsync) => rsync.measure(&place)?,
                    Err(_) => continue,
                },
            };
            place.check(side.leaves_a_file())?;
            figures.add(sample);
        }
    }
    let mut report = head(&date, &commit, rounds, &place);
    report += &table(&figures);
    if let Err(error) = &rsync {
        report += &format!("\nrsync was not measured: {error}\n");
    }
    eprintln!("\n{report}");
    document.write(&report)
}

/// Who carries the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A bare TCP connection or several.
    Stream(End, End, u8),
    /// Without a network.
    Copy,
    /// With so many connections.
    Shoal(u8),
    Rsync,
}

impl Side {
    /// The first is what the others are compared with.
    const ALL: [Self; 8] = [
        Self::Stream(End::Memory, End::Memory, 1),
        Self::Stream(End::Memory, End::Memory, 2),
        Self::Stream(End::File, End::File, 1),
        Self::Stream(End::File, End::File, 2),
        Self::Copy,
        Self::Shoal(1),
        Self::Shoal(2),
        Self::Rsync,
    ];

    fn leaves_a_file(self) -> bool {
        !matches!(self, Self::Stream(_, End::Memory, _))
    }

    fn name(self) -> String {
        match self {
            Self::Stream(from, to, connections) => format!(
                "plain TCP stream, {from} to {to}, {}",
                connected(connections)
            ),
            Self::Copy => "read and write, no network, one thread".to_owned(),
            Self::Shoal(connections) => format!("`shoal cp`, {}", connected(connections)),
            Self::Rsync => "`rsync -a --whole-file` over ssh".to_owned(),
        }
    }
}

fn connected(connections: u8) -> String {
    match connections {
        1 => "one connection".to_owned(),
        2 => "two connections".to_owned(),
        connections => format!("{connections} connections"),
    }
}

/// One turn of one side.
struct Sample {
    seconds: f64,
    /// Of both ends together, where that can be told.
    processor_seconds: Option<f64>,
}

/// What the turns of one side have given.
#[derive(Clone, Default)]
struct Figures {
    gigabytes_per_second: Vec<f64>,
    processor_seconds_per_gigabyte: Vec<f64>,
}

impl Figures {
    fn add(&mut self, sample: Sample) {
        let gigabytes = place::FILE_BYTES as f64 / 1e9;
        self.gigabytes_per_second.push(gigabytes / sample.seconds);
        let processor = sample.processor_seconds.map(|seconds| seconds / gigabytes);
        self.processor_seconds_per_gigabyte.extend(processor);
    }
}

fn table(figures: &[Figures]) -> String {
    let mut table = Table::new(&["", "GB/s", "of the first", "processor s/GB"]);
    let shown = |figures: &[f64]| Spread::of(figures).map_or("—".to_owned(), |it| it.to_string());
    let first = &figures[0].gigabytes_per_second;
    for (side, figures) in Side::ALL.into_iter().zip(figures) {
        let pairs = figures.gigabytes_per_second.iter().zip(first);
        let parts: Vec<f64> = pairs.map(|(rate, first)| rate / first).collect();
        table.push(vec![
            side.name(),
            shown(&figures.gigabytes_per_second),
            percent(Spread::of(&parts).map(|parts| parts.median)),
            shown(&figures.processor_seconds_per_gigabyte),
        ]);
    }
    table.to_string()
}

fn head(date: &str, commit: &str, rounds: u32, place: &Place) -> String {
    let Processor { model, cores, .. } = Processor::detect();
    format!(
        "One file of 1 GiB, both ends in {place} of one machine, over loopback: {model}, {cores} cores, {date}, commit {commit},\n\
         release build. `cargo xtask peers cp` took the rows in {rounds} turns; a figure is the median of the turns (and their range), the\n\
         part of the first row that of the ratios within each turn. GB is 10⁹ bytes; times are of whole commands; processor time is that\n\
         of both ends and the system.\n\n",
        date = date.trim(),
        commit = commit.trim(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_same_turn_and_gaps_are_dashes() {
        let mut figures = vec![Figures::default(); Side::ALL.len()];
        for (first, other) in [(1.0, 2.0), (2.0, 4.0), (1.0, 1.0)] {
            let sample = |seconds, processor_seconds| Sample {
                seconds,
                processor_seconds,
            };
            figures[0].add(sample(first, Some(1.0)));
            figures[1].add(sample(other, None));
        }
        let table = table(&figures);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            rows[0][1..],
            ["1.07 (0.54–1.07)", "100 %", "0.931 (0.931–0.931)"]
        );
        assert_eq!(rows[1][1..], ["0.537 (0.268–1.074)", "50 %", "—"]);
        assert_eq!(rows[7][1..], ["—", "—", "—"]);
    }
}
