use super::{
    llama::{self, Llama},
    models::{Model, ModelFile, Models},
    processor::Processor,
    shoal::{self, Cell, Report, Shoal},
    work::{LARGE, Pair, Work},
};
use crate::{bench, spread::Spread};
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, path::Path, process::Command};

/// Runs works in turns: each round runs every side once, so that a machine that slows down slows both.
pub(crate) struct Turns<'a> {
    processor: &'a Processor,
    models: Models,
    llama: &'a Llama,
    shoal: &'a Shoal,
    rounds: u32,
    files: BTreeMap<String, ModelFile>,
    /// Every command line that was run, once.
    commands: Vec<String>,
}

/// Shoal and llama.cpp at the same work.
pub(crate) struct Outcome {
    pub(crate) isa: String,
    /// Tokens per second.
    pub(crate) shoal: Spread,
    /// Tokens per second.
    pub(crate) llama: Spread,
    /// Median of what Shoal's rate was of llama.cpp's in the same round.
    pub(crate) ratio: f64,
    /// Memory bandwidth of as many threads, for decoding.
    pub(crate) read_bytes_per_second: Option<f64>,
    /// Median of weight bytes read, as a part of the bandwidth of the same round.
    pub(crate) of_read: Option<f64>,
    pub(crate) load_seconds: Spread,
    /// Peak memory divided by the file.
    pub(crate) memory: Spread,
}

/// One node and two nodes at the same work, one thread each, in tokens per second.
pub(crate) struct Gain {
    pub(crate) one: Spread,
    pub(crate) two: Spread,
    /// Median of the rounds' ratios.
    pub(crate) ratio: f64,
}

impl<'a> Turns<'a> {
    pub(crate) fn new(
        processor: &'a Processor,
        models: Models,
        llama: &'a Llama,
        shoal: &'a Shoal,
        rounds: u32,
    ) -> Self {
        Self {
            processor,
            models,
            llama,
            shoal,
            rounds,
            files: BTreeMap::new(),
            commands: Vec::new(),
        }
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    pub(crate) fn commands(&self) -> &[String] {
        &self.commands
    }

    /// Runs a pair.
    ///
    /// # Errors
    /// When this machine cannot, or a side fails; the message is for the table.
    pub(crate) fn pair(&mut self, pair: Pair) -> Result<Outcome> {
        if let Some(isa) = pair.isa
            && !isa.runs_on(self.processor)
        {
            bail!("this processor has no {}", isa.name);
        }
        self.want_cores(pair.threads)?;
        let cell = Cell {
            nodes: 1,
            threads: pair.threads,
            isa: pair.isa.map(|isa| isa.name),
        };
        let file = self.file(pair.model)?;
        let mut ours = self.shoal.command(&file.path, pair.work, cell);
        let mut theirs = self
            .llama
            .command(pair.build, &file.path, pair.work, pair.threads);
        self.note(&ours);
        self.note(&theirs);

        let mut reports: Vec<Report> = Vec::new();
        let (mut ours_rates, mut theirs_rates) = (Vec::new(), Vec::new());
        let (mut reads, mut of_reads) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let report = shoal::measure(&mut ours)?;
            let rate = report.tokens_per_second(pair.work);
            ours_rates.push(rate);
            reports.push(report);
            let peer = llama::measure(&mut theirs)?;
            theirs_rates.push(peer.tokens_per_second);
            if let Work::Decode { .. } = pair.work {
                let read = bench::read_bytes_per_second(pair.threads)?;
                reads.push(read);
                of_reads.push(rate * peer.weight_bytes as f64 / read);
            }
        }
        let load: Vec<f64> = reports.iter().map(|report| report.load_seconds).collect();
        let memory = reports.iter();
        let memory: Vec<f64> = memory
            .map(|report| report.peak_memory_bytes() as f64 / file.bytes as f64)
            .collect();
        Ok(Outcome {
            isa: reports.first().context(NO_ROUND)?.isa.clone(),
            shoal: Spread::of(&ours_rates).context(NO_ROUND)?,
            llama: Spread::of(&theirs_rates).context(NO_ROUND)?,
            ratio: paired(&ours_rates, &theirs_rates).context(NO_ROUND)?,
            read_bytes_per_second: Spread::of(&reads).map(|read| read.median),
            of_read: Spread::of(&of_reads).map(|part| part.median),
            load_seconds: Spread::of(&load).context(NO_ROUND)?,
            memory: Spread::of(&memory).context(NO_ROUND)?,
        })
    }

    /// Runs the large shape on one node and on two.
    ///
    /// # Errors
    /// As [`pair`](Self::pair).
    pub(crate) fn nodes(&mut self, work: Work) -> Result<Gain> {
        self.want_cores(2)?;
        let path = self.file(LARGE)?.path;
        let [mut one, mut two] = [1, 2].map(|nodes| {
            let cell = Cell {
                nodes,
                threads: 1,
                isa: None,
            };
            self.shoal.command(&path, work, cell)
        });
        self.note(&one);
        self.note(&two);
        let (mut ones, mut twos) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            ones.push(shoal::measure(&mut one)?.tokens_per_second(work));
            twos.push(shoal::measure(&mut two)?.tokens_per_second(work));
        }
        Ok(Gain {
            one: Spread::of(&ones).context(NO_ROUND)?,
            two: Spread::of(&twos).context(NO_ROUND)?,
            ratio: paired(&twos, &ones).context(NO_ROUND)?,
        })
    }

    /// Decodes several sequences of the large shape together, each number of `batches` once a round. Returns, for each,
    /// the tokens per second of all together, and the median of what that was of the first's rate in the same round.
    ///
    /// # Errors
    /// As [`pair`](Self::pair).
    pub(crate) fn batches(&mut self, work: Work, batches: &[u32]) -> Result<Vec<(Spread, f64)>> {
        self.want_cores(2)?;
        let path = self.file(LARGE)?.path;
        let cell = Cell {
            nodes: 1,
            threads: 2,
            isa: None,
        };
        let shoal = self.shoal;
        let commands = batches.iter();
        let mut commands: Vec<Command> = commands
            .map(|&batch| shoal.together(&path, work, cell, batch))
            .collect();
        commands.iter().for_each(|command| self.note(command));
        let mut rates = vec![Vec::new(); commands.len()];
        for _ in 0..self.rounds {
            for (command, rates) in commands.iter_mut().zip(&mut rates) {
                rates.push(shoal::measure(command)?.tokens_per_second(work));
            }
        }
        let first = rates.first().context("no batch was asked for")?;
        let figures = rates.iter().map(|rates| {
            let spread = Spread::of(rates)?;
            Some((spread, paired(rates, first)?))
        });
        figures.collect::<Option<_>>().context(NO_ROUND)
    }

    fn want_cores(&self, count: u32) -> Result<()> {
        let cores = self.processor.cores;
        if cores < count as usize {
            bail!("this machine has {cores} core");
        }
        Ok(())
    }

    fn file(&mut self, model: Model) -> Result<ModelFile> {
        let name = model.name();
        if let Some(file) = self.files.get(&name) {
            return Ok(file.clone());
        }
        let file = self.models.file(model)?;
        self.files.insert(name, file.clone());
        Ok(file)
    }

    fn note(&mut self, command: &Command) {
        let line = shown(command);
        if !self.commands.contains(&line) {
            self.commands.push(line);
        }
    }
}

const NO_ROUND: &str = "there was no round";

/// The median of the ratios of figures taken in the same round.
fn paired(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
    Some(Spread::of(&ratios.collect::<Vec<_>>())?.median)
}

/// The command line with the set it is held to, and without the folders that this machine keeps things in.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| {
        let path = Path::new(word);
        let name = path.file_name().filter(|_| path.is_absolute());
        name.unwrap_or(word).to_string_lossy().into_owned()
    });
    let isa = command.get_envs().find_map(|(name, value)| {
        let value = value.filter(|_| name == "SHOAL_ISA")?;
        Some(format!("SHOAL_ISA={}", value.to_string_lossy()))
    });
    isa.into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was half as fast in the second round: that changes no ratio.
        assert_eq!(paired(&[20.0, 10.0, 22.0], &[10.0, 5.0, 10.0]), Some(2.0));
        assert_eq!(paired(&[], &[]), None);
    }

    #[test]
    fn commands_are_shown_without_folders() {
        let mut command = Command::new("/some/where/shoal");
        command.args(["bench", "--model", "/else/where/m.gguf"]);
        command.env("SHOAL_HOME", "/home").env("SHOAL_ISA", "avx2");
        assert_eq!(shown(&command), "SHOAL_ISA=avx2 shoal bench --model m.gguf");
        command.env_remove("SHOAL_ISA");
        assert_eq!(shown(&command), "shoal bench --model m.gguf");
    }
}
