//! `shoal cp`: files and folders between this machine and nodes.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;
use shoal_cluster::Carrier;
use shoal_cluster::copy::{CopyConfig, CopyReport, CopySummary, Progress, RelPath, pull, push};
use shoal_cluster::read_token;
use tokio::sync::oneshot;

use super::placement::distinct;
use super::runtime;
use crate::cli::{CopyArgs, CopyTransportArg, Place};
use crate::progress::{bytes_bar, megabytes, note, say};
use crate::settings;
use crate::signals::Signals;

pub(crate) fn copy(args: &CopyArgs) -> Result<()> {
    let outcome = run(args);
    if args.json {
        let line = match &outcome {
            Ok(outcome) => serde_json::to_string(outcome)?,
            Err(error) => json!({"ok": false, "error": crate::one_line(error)}).to_string(),
        };
        say(&format!("{line}\n"))?;
    }
    let outcome = outcome?;
    if !args.json {
        outcome.tell();
    }
    match outcome
        .nodes
        .iter()
        .filter(|node| node.report.error.is_some())
        .count()
    {
        0 => Ok(()),
        missing => bail!(
            "{missing} of {} nodes do not have everything; the same command goes on from there",
            outcome.nodes.len()
        ),
    }
}

/// What was copied. Its JSON form is a contract.
#[derive(Serialize)]
struct Outcome {
    ok: bool,
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
    /// What carried the bytes from or to this machine.
    transport: String,
    /// Over how many cables.
    cables: usize,
    /// Those that received.
    nodes: Vec<NodeOutcome>,
    left_out: Vec<String>,
}

#[derive(Serialize)]
struct NodeOutcome {
    /// Its address, or "here".
    node: String,
    #[serde(flatten)]
    report: CopyReport,
}

/// What is to be done.
enum Job {
    Push {
        sources: Vec<PathBuf>,
        nodes: Vec<String>,
        to: String,
    },
    Pull {
        node: String,
        from: Vec<RelPath>,
        to: PathBuf,
    },
}

impl Job {
    fn of(args: &CopyArgs) -> Result<Self> {
        let places = args
            .paths
            .iter()
            .map(|path| Place::parse(path).map_err(|why| anyhow!(why)));
        let mut places = places.collect::<Result<Vec<_>>>()?;
        let destination = places
            .pop()
            .ok_or_else(|| anyhow!("name what to copy, and where to"))?;
        if !args.peer.is_empty() && !matches!(destination, Place::AllNodes { .. }) {
            bail!("--peer names the nodes that all:DST means; for one node write HOST:PORT:DST");
        }
        match destination {
            Place::AllNodes { path } => {
                if args.peer.is_empty() {
                    bail!("all:{path} means every --peer HOST:PORT; give one for each node");
                }
                distinct(&args.peer)?;
                Ok(Self::Push {
                    sources: here(places)?,
                    nodes: args.peer.clone(),
                    to: path,
                })
            }
            Place::Node { address, path } => Ok(Self::Push {
                sources: here(places)?,
                nodes: vec![address],
                to: path,
            }),
            Place::Here(to) => {
                let mut nodes = Vec::new();
                let mut from = Vec::new();
                for place in places {
                    let Place::Node { address, path } = place else {
                        bail!("one side is on a node: SRC… HOST:PORT:DST, or HOST:PORT:SRC DST");
                    };
                    from.push(
                        RelPath::parse(&path).map_err(|why| anyhow!("{address}:{path}: {why}"))?,
                    );
                    nodes.push(address);
                }
                nodes.dedup();
                if nodes.len() != 1 {
                    bail!("fetch from one node at a time");
                }
                Ok(Self::Pull {
                    node: nodes.remove(0),
                    from,
                    to: Path::new(&to).to_owned(),
                })
            }
        }
    }

    fn receivers(&self) -> Vec<String> {
        match self {
            Self::Push { nodes, .. } => nodes.clone(),
            Self::Pull { .. } => vec!["here".to_owned()],
        }
    }

    fn copy(&self, config: &CopyConfig, bar: &ProgressBar) -> Result<CopySummary> {
        let show = |progress: Progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        };
        Ok(match self {
            Self::Push { sources, nodes, to } => push(config, sources, nodes, to, &show)?,
            Self::Pull { node, from, to } => pull(config, node, from, to, &show)?,
        })
    }
}

fn here(places: Vec<Place>) -> Result<Vec<PathBuf>> {
    let paths = places.into_iter().map(|place| match place {
        Place::Here(path) => Ok(path.into()),
        _ => bail!("one side is on this machine: SRC… HOST:PORT:DST, or HOST:PORT:SRC DST"),
    });
    paths.collect()
}

fn run(args: &CopyArgs) -> Result<Outcome> {
    let job = Job::of(args)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = CopyConfig {
        token: read_token(&args.token_file)?,
        lanes: args
            .connections
            .unwrap_or(cores.min(LANES_DEFAULT_MAX) as u8),
        carrier: match args.transport {
            CopyTransportArg::Auto => Carrier::Auto,
            CopyTransportArg::Tcp => Carrier::Tcp,
            CopyTransportArg::Rdma => Carrier::Rdma,
        },
        links: settings::transport()?,
        limit_bytes_per_second: args.limit_rate,
        verify: args.verify,
    };
    let receivers = job.receivers();
    let bar = bytes_bar("copying");
    let shown = bar.clone();
    let started = Instant::now();
    let summary = runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let (done, outcome) = oneshot::channel();
        // A thread that nobody waits for: at a signal the process ends, and with it the connections. What has arrived
        // stays where it is.
        std::thread::Builder::new()
            .name("copy".to_owned())
            .spawn(move || done.send(job.copy(&config, &shown)))?;
        tokio::select! {
            outcome = outcome => outcome?,
            _ = signals.any() => Err(anyhow!("interrupted; what has arrived is kept, and the same command goes on from there")),
        }
    });
    bar.finish_and_clear();
    Ok(Outcome::new(
        summary?,
        receivers,
        started.elapsed().as_secs_f64(),
    ))
}

impl Outcome {
    fn new(summary: CopySummary, receivers: Vec<String>, seconds: f64) -> Self {
        let nodes = receivers.into_iter().zip(summary.reports);
        let nodes: Vec<_> = nodes
            .map(|(node, report)| NodeOutcome { node, report })
            .collect();
        Self {
            ok: nodes.iter().all(|node| node.report.error.is_none()),
            bytes: summary.total_bytes,
            seconds,
            bytes_per_second: summary.total_bytes as f64 / seconds,
            transport: summary.transport.to_string(),
            cables: summary.cables,
            nodes,
            left_out: summary.left_out,
        }
    }

    fn carrier(&self) -> String {
        match self.cables {
            1 => format!("over {}", self.transport),
            cables => format!("over {}, {cables} cables", self.transport),
        }
    }

    fn tell(&self) {
        for path in &self.left_out {
            note(&format!(
                "left out {path}: a file that another copy has not finished, or neither file, folder nor link"
            ));
        }
        for NodeOutcome { node, report } in &self.nodes {
            note(&match &report.error {
                Some(error) => format!("{node}: {error}"),
                None => format!(
                    "{node}: {} written, {} unchanged, {} sent of {} in {:.1} s ({}/s) {}",
                    files(report.files_written),
                    report.files_unchanged,
                    megabytes(report.bytes_received),
                    megabytes(self.bytes),
                    self.seconds,
                    megabytes(self.bytes_per_second as u64),
                    self.carrier()
                ),
            });
        }
    }
}

fn files(count: u64) -> String {
    match count {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    }
}

/// More connections than this carry no more than these, on machines that have the cores for them.
const LANES_DEFAULT_MAX: usize = 4;
