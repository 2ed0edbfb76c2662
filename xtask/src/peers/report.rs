//! From figures to the text of the block.

use super::{
    Rows,
    llama::{Build, PACKAGE, VERSION},
    models::RANDOM_KV_BYTES,
    processor::Processor,
    turns::{Gain, Outcome, Turns},
    work::{BATCHES, DECODE, DECODE_LONG, LARGE, PREFILL, Pair, Work, pairs},
};
use crate::{
    shell::{command, output},
    spread::Spread,
    table::{Table, percent},
};
use anyhow::Result;

/// Takes all figures and writes them up.
///
/// # Errors
/// When the date or the commit cannot be had. A row that fails says so in its place.
pub(crate) fn measure(mut turns: Turns<'_>, processor: &Processor, rows: Rows) -> Result<String> {
    let quick = rows == Rows::Quick;
    let date = output(command("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit = output(command("git").args(["describe", "--always", "--dirty", "--exclude=*"]))?;

    let mut outcomes = Vec::new();
    for pair in pairs(quick) {
        outcomes.push((pair, turns.pair(pair)));
    }
    let mut parts = vec![head(&date, &commit, processor, turns.rounds())];
    parts.push(peers_table(&outcomes).to_string());

    parts.push(
        "One node of one thread against two nodes of one thread each, over loopback:".to_owned(),
    );
    let works = if quick {
        &[DECODE][..]
    } else {
        &[DECODE, PREFILL]
    };
    let gains = works.iter().map(|&work| (work, turns.nodes(work)));
    parts.push(nodes_table(&gains.collect::<Vec<_>>()).to_string());

    parts.push(
        "Sequences decoded together, each after 128 tokens of context, on 2 threads:".to_owned(),
    );
    parts.push(batches_table(&turns.batches(DECODE, &BATCHES)).to_string());

    parts.push("Loading, from the command to the first token possible, and memory:".to_owned());
    parts.push(load_table(&outcomes).to_string());

    if rows == Rows::All {
        let pair = Pair {
            model: LARGE,
            work: DECODE_LONG,
            threads: 1,
            isa: None,
            build: Build::Widest,
        };
        let long = turns.pair(pair);
        let short = outcomes.iter().find(|(short, _)| {
            *short
                == Pair {
                    work: DECODE,
                    ..pair
                }
        });
        parts.push("What a long context adds to a token:".to_owned());
        parts.push(context_table(short.map(|(_, short)| short), &long).to_string());
    }
    parts.push(commands(turns.commands(), processor));
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_end()).collect();
    Ok(parts.join("\n\n"))
}

fn head(date: &str, commit: &str, processor: &Processor, rounds: u32) -> String {
    let Processor { model, cores, .. } = processor;
    format!(
        "{date}, commit {commit}, {model}, {cores} core(s), {os}. Tokens per second: median (least–most) of {rounds} rounds; in \
         each round the sides run one after the other, and the ratio is the median of the rounds' ratios. llama.cpp is that of \
         {PACKAGE} {VERSION}.",
        date = date.trim(),
        commit = commit.trim(),
        os = std::env::consts::OS,
    )
}

type Outcomes = [(Pair, Result<Outcome>)];

fn peers_table(outcomes: &Outcomes) -> Table {
    let mut table = Table::new(&[
        "work",
        "instructions",
        "threads",
        "Shoal",
        "llama.cpp",
        "ratio",
        "of read bandwidth",
    ]);
    for (pair, outcome) in outcomes {
        let peer = match pair.build {
            Build::Widest => "",
            Build::Avx2 => " (AVX2 build)",
        };
        let mut row = vec![format!("{}, {}", pair.work, pair.model.name())];
        match outcome {
            Ok(outcome) => row.extend([
                outcome.isa.clone(),
                pair.threads.to_string(),
                outcome.shoal.to_string(),
                format!("{}{peer}", outcome.llama),
                format!("{:.2} ×", outcome.ratio),
                percent(outcome.of_read),
            ]),
            Err(error) => row.extend([
                pair.isa.map_or("—", |isa| isa.name).to_owned(),
                pair.threads.to_string(),
                not_measured(error),
                "—".to_owned(),
                "—".to_owned(),
                "—".to_owned(),
            ]),
        }
        table.push(row);
    }
    table
}

fn nodes_table(gains: &[(Work, Result<Gain>)]) -> Table {
    let mut table = Table::new(&["work", "one node", "two nodes", "gain"]);
    for (work, gain) in gains {
        let mut row = vec![format!("{work}, {}", LARGE.name())];
        row.extend(match gain {
            Ok(gain) => [
                gain.one.to_string(),
                gain.two.to_string(),
                format!("{:.2} ×", gain.ratio),
            ],
            Err(error) => [not_measured(error), "—".to_owned(), "—".to_owned()],
        });
        table.push(row);
    }
    table
}

fn batches_table(batches: &Result<Vec<(Spread, f64)>>) -> Table {
    let mut table = Table::new(&["sequences", "all together", "× one", "each"]);
    match batches {
        Ok(figures) => {
            for (batch, (rate, gain)) in BATCHES.iter().zip(figures) {
                table.push(vec![
                    batch.to_string(),
                    rate.to_string(),
                    format!("{gain:.2} ×"),
                    format!("{:.1}", rate.median / f64::from(*batch)),
                ]);
            }
        }
        Err(error) => {
            let mut row = vec!["—".to_owned(), not_measured(error)];
            row.resize(4, "—".to_owned());
            table.push(row);
        }
    }
    table
}

/// The decoding rows once more, at their most threads.
fn load_table(outcomes: &Outcomes) -> Table {
    let mut table = Table::new(&["file", "threads", "seconds", "peak memory ÷ file"]);
    let measured = outcomes
        .iter()
        .filter_map(|(pair, outcome)| Some((pair, outcome.as_ref().ok()?)));
    let decoded: Vec<_> = measured.filter(|(pair, _)| pair.work == DECODE).collect();
    let threads = decoded.iter().map(|(pair, _)| pair.threads).max();
    for (pair, outcome) in decoded
        .iter()
        .filter(|(pair, _)| Some(pair.threads) == threads)
    {
        table.push(vec![
            pair.model.name(),
            pair.threads.to_string(),
            outcome.load_seconds.to_string(),
            outcome.memory.to_string(),
        ]);
    }
    table
}

/// `short` and `long` are the same but for their context.
fn context_table(short: Option<&Result<Outcome>>, long: &Result<Outcome>) -> Table {
    let mut table = Table::new(&[
        "work",
        "Shoal",
        "llama.cpp",
        "added by Shoal",
        "its keys and values at bandwidth",
        "ratio",
    ]);
    let name = format!("{DECODE_LONG}, {}", LARGE.name());
    match (short, long) {
        (Some(Ok(short)), Ok(long)) => {
            let added_seconds = 1.0 / long.shoal.median - 1.0 / short.shoal.median;
            let read_seconds = long
                .read_bytes_per_second
                .map(|read| added_positions() as f64 * RANDOM_KV_BYTES as f64 / read);
            table.push(vec![
                name,
                long.shoal.to_string(),
                long.llama.to_string(),
                milliseconds(Some(added_seconds)),
                milliseconds(read_seconds),
                read_seconds.map_or_else(
                    || "—".to_owned(),
                    |read| format!("{:.2} ×", added_seconds / read),
                ),
            ]);
        }
        (_, Err(error)) | (Some(Err(error)), _) => {
            let mut row = vec![name, not_measured(error)];
            row.resize(6, "—".to_owned());
            table.push(row);
        }
        (None, Ok(_)) => {}
    }
    table
}

/// How much longer the context is.
fn added_positions() -> u32 {
    let (Work::Decode { context: short, .. }, Work::Decode { context: long, .. }) =
        (DECODE, DECODE_LONG)
    else {
        return 0;
    };
    long - short
}

fn commands(lines: &[String], processor: &Processor) -> String {
    let mut text =
        String::from("Shoal is a release build. llama.cpp's builds, and the commands:\n\n```sh\n");
    for (build, name) in [
        (Build::Widest, "llama-bench"),
        (Build::Avx2, "llama-bench, AVX2 build"),
    ] {
        text += &format!("cmake {}  # {name}\n", build.options(processor).join(" "));
    }
    for line in lines {
        text += line;
        text.push('\n');
    }
    text + "```\n"
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "—".to_owned(),
        |seconds| format!("{:.1} ms", seconds * 1e3),
    )
}

/// In one line, without what would end a cell of the table.
fn not_measured(error: &anyhow::Error) -> String {
    let reason = format!("{error:#}").replace(['\n', '|'], " ");
    format!("not measured: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::Spread;
    use anyhow::anyhow;

    fn outcome(rate: f64, peer_rate: f64) -> Outcome {
        let spread = |figure| Spread::of(&[figure]).unwrap();
        Outcome {
            isa: "avx512".to_owned(),
            shoal: spread(rate),
            llama: spread(peer_rate),
            ratio: rate / peer_rate,
            read_bytes_per_second: Some(15e9),
            of_read: Some(0.8),
            load_seconds: spread(0.5),
            memory: spread(1.1),
        }
    }

    fn cells(table: &Table) -> Vec<Vec<String>> {
        let text = table.to_string();
        let rows = text.lines().skip(2).map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        });
        rows.collect()
    }

    #[test]
    fn losses_and_missing_hardware_are_rows_like_others() {
        let all = pairs(false);
        let outcomes = [
            (all[0], Ok(outcome(8.0, 10.0))),
            (all[1], Err(anyhow!("this processor has no amx"))),
        ];
        let rows = cells(&peers_table(&outcomes));
        let lost = [
            "decode at 128, SmolLM2 Q4_1",
            "avx512",
            "1",
            "8.00 (8.00–8.00)",
            "10.0 (10.0–10.0)",
            "0.80 ×",
            "80 %",
        ];
        assert_eq!(rows[0], lost);
        assert_eq!(rows[1][3], "not measured: this processor has no amx");
        assert_eq!(rows[1].len(), 7);

        let rows = cells(&nodes_table(&[(DECODE, Err(anyhow!("a|b\nc")))]));
        assert_eq!(rows[0][1], "not measured: a b c");
    }

    #[test]
    fn batches_are_held_against_one_sequence() {
        let figures = BATCHES.map(|batch| {
            let rate = 40.0 * f64::from(batch).sqrt();
            (Spread::of(&[rate]).unwrap(), rate / 40.0)
        });
        let rows = cells(&batches_table(&Ok(figures.to_vec())));
        assert_eq!(rows.len(), BATCHES.len());
        assert_eq!(rows[2], ["4", "80.0 (80.0–80.0)", "2.00 ×", "20.0"]);
        let rows = cells(&batches_table(&Err(anyhow!("no"))));
        assert_eq!(rows, [["—", "not measured: no", "—", "—"]]);
    }

    #[test]
    fn the_time_of_a_long_context_is_held_against_its_bytes() {
        let short = Ok(outcome(20.0, 10.0));
        let rows = cells(&context_table(Some(&short), &Ok(outcome(14.0, 9.0))));
        // 8,000 positions of 32 KiB at 15 GB/s.
        assert_eq!(rows[0][3..], ["21.4 ms", "17.5 ms", "1.23 ×"]);
        let rows = cells(&context_table(Some(&short), &Err(anyhow!("no"))));
        assert_eq!(rows[0][1], "not measured: no");
    }

    #[test]
    fn loading_is_shown_once_a_file() {
        let outcomes: Vec<_> = pairs(false)
            .into_iter()
            .map(|pair| (pair, Ok(outcome(1.0, 1.0))))
            .collect();
        let rows = cells(&load_table(&outcomes));
        let files: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
        assert_eq!(files, ["SmolLM2 Q4_1", "1B Q4_0", "1B Q4_K", "1B Q8_0"]);
        assert!(
            rows.iter()
                .all(|row| row[1..] == ["2", "0.500 (0.500–0.500)", "1.10 (1.10–1.10)"])
        );
    }
}
