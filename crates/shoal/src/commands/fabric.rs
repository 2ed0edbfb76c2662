//! `shoal fabric test`: are the links between the machines whole, and as fast as such links are?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde_json::json;
use shoal_cluster::link_test::{
    Checked, Event, Grade, LinkTest, LinkTestConfig, Place, Plan, Report, Spread, Verdict,
};
use shoal_cluster::{Carrier, Placement};

use super::{cell, discover, placement, runtime};
use crate::cli::{FabricAction, FabricArgs, LinkTestArgs, LogArgs, TransportArg};
use crate::progress::{megabytes, note, say};
use crate::signals::Signals;

pub(crate) fn fabric(args: &FabricArgs, logs: &LogArgs) -> Result<()> {
    match &args.action {
        FabricAction::Discover(args) => discover::discover(args),
        FabricAction::Test(args) => test(args, logs),
    }
}

fn test(args: &LinkTestArgs, logs: &LogArgs) -> Result<()> {
    let carrier = match args.transport {
        TransportArg::Auto => Carrier::Auto,
        TransportArg::Tcp => Carrier::Tcp,
        TransportArg::SharedMemory => Carrier::SharedMemory,
        TransportArg::Rdma => Carrier::Rdma,
        TransportArg::Mpi => {
            return match measure_over_mpi(args).transpose() {
                Some(outcome) => tell(args, outcome),
                // Rank 0 tells.
                None => Ok(()),
            };
        }
    };
    let outcome = config(args, carrier).and_then(|config| measure(config, args.verbose, logs));
    tell(args, outcome)
}

fn tell(args: &LinkTestArgs, outcome: Result<Outcome>) -> Result<()> {
    if args.json {
        let line = match &outcome {
            Ok(outcome) => serde_json::to_string(outcome)?,
            Err(error) => json!({"healthy": false, "error": crate::one_line(error)}).to_string(),
        };
        say(&format!("{line}\n"))?;
    }
    let outcome = outcome?;
    if !args.json {
        say(&outcome.table())?;
    }
    if !outcome.healthy {
        bail!("{}", outcome.verdict.summary);
    }
    Ok(())
}

/// What one test found. Its JSON form is a contract.
#[derive(Serialize)]
struct Outcome {
    healthy: bool,
    place: Place,
    verdict: Verdict,
    #[serde(flatten)]
    report: Report,
}

fn config(args: &LinkTestArgs, carrier: Carrier) -> Result<LinkTestConfig> {
    let placement = match (placement::of(&args.machines)?, args.nodes) {
        (Some(peers), _) => peers,
        (None, nodes) => Placement::Local {
            nodes: nodes.context("give --nodes N, or machines by --peer or --hostfile")?,
        },
    };
    Ok(LinkTestConfig {
        placement,
        plan: plan(args, args.nodes.unwrap_or(1)),
        carrier,
        interfaces: args.interfaces.clone(),
        join_timeout: JOIN_TIMEOUT,
        silence_max: SILENCE_MAX,
    })
}

fn plan(args: &LinkTestArgs, local_ranks: u16) -> Plan {
    let mut sizes_bytes = args.sizes.clone();
    if sizes_bytes.is_empty() {
        sizes_bytes = default_sizes(args.quick, local_ranks);
    }
    sizes_bytes.sort_unstable();
    sizes_bytes.dedup();
    Plan {
        seed: args.seed.unwrap_or_else(Plan::random_seed),
        sizes_bytes,
        rounds: args.rounds.unwrap_or(if args.quick { 5 } else { 20 }),
        stress_seconds: args.stress.then_some(args.seconds),
        verbose: args.verbose,
    }
}

/// Every fourth power of two; a rank holds three times the size, so many ranks of one machine stop earlier.
fn default_sizes(quick: bool, local_ranks: u16) -> Vec<usize> {
    let most = if quick { 16 << 20 } else { 256 << 20 };
    let sizes = [12, 16, 18, 20, 22, 24, 26, 28].map(|power| 1_usize << power);
    let fits = |bytes: &usize| bytes * usize::from(local_ranks) <= LOCAL_BYTES_MAX;
    sizes
        .into_iter()
        .filter(|bytes| *bytes <= most && fits(bytes))
        .collect()
}

fn measure(config: LinkTestConfig, verbose: bool, logs: &LogArgs) -> Result<Outcome> {
    let program = cell::program(logs, "warn")?;
    runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let test = LinkTest::start(config, program);
        let events = test.events();
        let follow = async {
            let mut shown = Instant::now();
            while let Ok(event) = events.recv().await {
                show(&event, verbose, &mut shown);
            }
        };
        let over = tokio::select! {
            () = follow => Ok(()),
            _ = signals.any() => Err(anyhow!("interrupted before the test was done")),
        };
        // Ends the ranks, and waits for that.
        let outcome = tokio::task::spawn_blocking(move || match over {
            Ok(()) => {
                let (report, place) = test.finish()?;
                Ok(Outcome::new(report, place))
            }
            Err(error) => {
                drop(test);
                Err(error)
            }
        });
        outcome.await?
    })
}

/// Returns what was found, on rank 0.
#[cfg(feature = "mpi")]
fn measure_over_mpi(args: &LinkTestArgs) -> Result<Option<Outcome>> {
    let is_placed = args.nodes.is_some() || placement::of(&args.machines)?.is_some();
    if is_placed || args.interfaces.is_some() {
        bail!(
            "over MPI, mpirun says how many ranks there are, where, and by which interfaces: leave out --nodes, --peer, --hostfile and --interfaces"
        );
    }
    let mut shown = Instant::now();
    let found = shoal_cluster::link_test::run_over_mpi(
        JOIN_TIMEOUT,
        SILENCE_MAX,
        |local_ranks| plan(args, u16::try_from(local_ranks).unwrap_or(u16::MAX)),
        &mut |event: &Event| {
            show(event, args.verbose, &mut shown);
            Ok(())
        },
    )?;
    Ok(found.map(|(report, place)| Outcome::new(report, place)))
}

#[cfg(not(feature = "mpi"))]
fn measure_over_mpi(_: &LinkTestArgs) -> Result<Option<Outcome>> {
    bail!(
        "this shoal was built without MPI: build it by `cargo build --release --features mpi`, which takes an MPI installation's mpicc, and libclang"
    );
}

/// A line on standard error for whoever waits, not more often than they can read.
fn show(event: &Event, verbose: bool, shown: &mut Instant) {
    match event {
        Event::Started { rank, pid } if verbose => match pid {
            Some(pid) => note(&format!("rank {rank} is process {pid}")),
            None => note(&format!("rank {rank} is started by its node")),
        },
        Event::Round { what, seconds } => note(&format!("{what}: {:.3} ms", seconds * 1e3)),
        Event::Progress(what) if shown.elapsed() >= SHOW_EVERY => {
            note(what);
            *shown = Instant::now();
        }
        _ => {}
    }
}

impl Outcome {
    fn new(report: Report, place: Place) -> Self {
        let verdict = Verdict::of(&report, place);
        Self {
            healthy: verdict.grade == Grade::Healthy,
            place,
            verdict,
            report,
        }
    }

    fn table(&self) -> String {
        let report = &self.report;
        let place = match self.place {
            Place::ThisMachine => "on this machine",
            Place::Network => "over the network",
        };
        let mut text = format!(
            "{} ranks {place}, {}, connected in {:.0} ms, seed {}\n\n",
            report.world, report.transport, report.join_ms, report.seed
        );
        text += &format!(
            "data         {}\n",
            checked(&report.correctness, "all operations")
        );
        if let Some(stress) = &report.stress {
            let what = format!(
                "{:.0} s of stress, {} rounds",
                stress.seconds, stress.rounds
            );
            text += &format!("             {}\n", checked(&stress.checked, &what));
        }
        for fault in report.faults() {
            text += &format!("             {fault}\n");
        }
        text += &format!(
            "{:<44} {:>9} {:>9} {:>9}\n",
            "latency, µs", "min", "median", "p99"
        );
        text += &spread("barrier (collective)", &report.barrier_us);
        text += &spread(
            "all_reduce of 4 KiB (collective)",
            &report.all_reduce_4kib_us,
        );
        for link in &report.links {
            let what = format!("round trip of 4 KiB, rank {} to {}", link.from, link.to);
            text += &spread(&what, &link.round_trip_4kib_us);
        }
        text += &format!(
            "\n{:<16} {:>7} {:>12}   GB/s each way: {:>7} {:>8}\n",
            "all_reduce, f32", "rounds", "median ms", "average", "peak"
        );
        for row in &report.sweep {
            text += &format!(
                "{:<16} {:>7} {:>12.3} {:>24.3} {:>8.3}\n",
                size(row.bytes),
                row.rounds,
                row.median_ms,
                row.average_gb_per_s,
                row.peak_gb_per_s
            );
        }
        text += &format!(
            "\n{:<37}   GB/s one way: {:>8} {:>8}\n",
            "link", "average", "peak"
        );
        for link in &report.links {
            let ways = [
                (link.from, link.to, link.there),
                (link.to, link.from, link.back),
            ];
            for (from, to, rate) in ways {
                let mut what = format!("rank {from} → rank {to}, {}", size(link.message_bytes));
                if link.cables > 1 {
                    what += &format!(", {} cables", link.cables);
                }
                text += &format!(
                    "{what:<37} {:>24.3} {:>8.3}\n",
                    rate.average_gb_per_s, rate.peak_gb_per_s
                );
            }
        }
        text += &format!("\nverdict: {}\n", self.verdict.summary);
        for advice in &self.verdict.advice {
            text += &format!("  - {advice}\n");
        }
        text
    }
}

fn checked(checked: &Checked, what: &str) -> String {
    let result = match checked.wrong {
        0 => "every byte is right".to_owned(),
        wrong => format!("{wrong} are WRONG"),
    };
    format!(
        "{what}: {} results, {} compared, {result}",
        checked.checks,
        megabytes(checked.bytes)
    )
}

fn spread(what: &str, spread: &Spread) -> String {
    format!(
        "{what:<44} {:>9.1} {:>9.1} {:>9.1}\n",
        spread.min, spread.median, spread.p99
    )
}

/// `64 KiB`, or bytes where no such unit fits.
fn size(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units
        .iter()
        .find(|(power, _)| bytes.is_multiple_of(1 << power));
    fitting.map_or_else(
        || format!("{bytes} B"),
        |(power, unit)| format!("{} {unit}", bytes >> power),
    )
}

const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any one message of a stream takes, during which the ranks that are not part of it wait.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const SHOW_EVERY: Duration = Duration::from_secs(2);
/// Of one size, over all ranks of this machine, unless --sizes says otherwise.
const LOCAL_BYTES_MAX: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::{default_sizes, size};

    #[test]
    fn sizes_stop_where_a_machine_of_many_ranks_would_run_out() {
        let last = |quick, ranks| default_sizes(quick, ranks).pop().map(size);
        assert_eq!(last(false, 1).as_deref(), Some("256 MiB"));
        assert_eq!(last(false, 2).as_deref(), Some("256 MiB"));
        assert_eq!(last(false, 4).as_deref(), Some("64 MiB"));
        assert_eq!(last(true, 2).as_deref(), Some("16 MiB"));
        assert_eq!(last(false, 64).as_deref(), Some("4 MiB"));
    }

    #[test]
    fn sizes_are_said_in_the_largest_whole_unit() {
        assert_eq!(
            [4, 4096, 1536 << 10, 1 << 30].map(size),
            ["4 B", "4 KiB", "1536 KiB", "1 GiB"]
        );
    }
}
