//! A cell as its front holds it: how it is to be made up, how it is started, found again, and stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shoal_engine::KvFormat;
use shoal_engine::client::{AttachError, CellInfo, Client, Loss};
use shoal_fabric::{Exchange, Rank};
use thiserror::Error;
use tracing::info;

use crate::found::FoundRanks;
use crate::launch::{LaunchError, Program};
use crate::record::CellRecord;
use crate::remote::NodeRefused;
use crate::supervisor::{Event, Member, Supervisor, random_hex};
use crate::token::SecretError;

/// A cell under supervision. Dropping it ends the supervisor and kills the ranks of this machine.
pub struct Cell {
    client: Client,
    events: mpsc::Sender<Event>,
    stopping: Arc<AtomicBool>,
    formed: async_channel::Receiver<Result<CellInfo, CellError>>,
    supervisor: Option<thread::JoinHandle<()>>,
}

/// How a cell is to be made up. Kept on disk so that a restarted front can form it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellConfig {
    /// GGUF file on this machine; no other machine needs it.
    pub model: PathBuf,
    /// Name under which it is served.
    pub model_name: String,
    /// Where the ranks run.
    pub placement: Placement,
    /// Weight of each rank in the split.
    pub shares: Vec<u32>,
    /// Compute threads of each local rank; `None` divides the cores among them.
    pub threads: Option<usize>,
    /// Instruction set to force.
    pub isa: Option<String>,
    /// Longest sequence in tokens.
    pub context: u32,
    /// What keys and values are kept as.
    pub kv_format: KvFormat,
    /// What partial sums travel as between the ranks.
    pub exchange: Exchange,
    /// Requests computed at once.
    pub running_max: usize,
    /// Requests waiting at most.
    pub waiting_max: usize,
    /// Tokens in a step at most.
    pub batch_tokens_max: usize,
    /// How long the ranks outlive their front.
    pub orphan_timeout_ms: u64,
    /// Longest silence of a rank within a step.
    pub step_timeout_ms: u64,
    /// Longest time for the ranks to find each other.
    pub join_timeout_ms: u64,
}

/// Where a cell's ranks run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Placement {
    /// All on this machine.
    Local {
        /// Number of ranks.
        nodes: u16,
    },
    /// Rank 0 on this machine, one more on each node.
    Peers {
        /// `HOST:PORT` of each node.
        addresses: Vec<String>,
        /// File that holds the token they share.
        token_file: PathBuf,
    },
}

impl Placement {
    /// Returns the number of ranks.
    #[must_use]
    pub fn world(&self) -> u16 {
        match self {
            Self::Local { nodes } => *nodes,
            Self::Peers { addresses, .. } => addresses.len() as u16 + 1,
        }
    }
}

/// The cell could not be formed. Each message is one line that says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CellError {
    /// A process could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A node did not let us in.
    #[error(transparent)]
    Node(#[from] NodeRefused),
    /// A rank ended before the cell was ready; its own log says more.
    #[error("{rank} did not start: {reason}")]
    RankEnded {
        /// Which one.
        rank: Rank,
        /// How it ended.
        reason: String,
    },
    /// Rank 0 did not speak in time, or not our protocol.
    #[error("cannot talk to rank 0: {0}")]
    Attach(#[from] AttachError),
    /// The group fell apart while it was loading.
    #[error("the cell did not become ready: {0}")]
    Lost(Loss),
    /// The run folder cannot hold the socket.
    #[error("cannot keep the cell's socket at {}: {reason}; set SHOAL_HOME to a short, writable path", path.display())]
    RunFolder {
        /// Intended path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is no token to show the nodes.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// Nothing to attach to.
    #[error(
        "no running cell without a front was found; start one with `shoal serve --model MODEL --nodes 2`"
    )]
    NothingToAttach,
    /// The caller stopped the cell before it was ready.
    #[error("stopped before the cell was ready")]
    Stopped,
}

impl Cell {
    /// Begins to form a cell and returns at once; [`Cell::formed`] tells when it is ready.
    ///
    /// # Errors
    /// [`CellError::RunFolder`] or [`CellError::Token`] when the files it needs are out of reach.
    pub fn start(config: CellConfig, program: Program, run_root: &Path) -> Result<Self, CellError> {
        CellRecord::sweep(run_root);
        let supervisor = Supervisor::new(random_hex(4), config, program, run_root)?;
        Ok(Self::supervise(supervisor, None))
    }

    /// Finds a cell whose front is gone and takes it over, without reloading its model. `prepare` makes what the new front
    /// needs before anything is touched: if it fails, the cell is left as it was.
    ///
    /// # Errors
    /// [`CellError::NothingToAttach`] when no recorded cell (of this model, if one is named) answers, or what `prepare`
    /// says.
    pub fn attach<T, E: From<CellError>>(
        model_name: Option<&str>,
        program: &Program,
        run_root: &Path,
        prepare: impl Fn(&CellConfig) -> Result<T, E>,
    ) -> Result<(Self, CellConfig, T), E> {
        CellRecord::sweep(run_root);
        for record in CellRecord::all(run_root) {
            let CellRecord { id, config, .. } = &record;
            if model_name.is_some_and(|name| name != config.model_name) {
                continue;
            }
            let prepared = prepare(config)?;
            let supervisor = Supervisor::new(id.clone(), config.clone(), program.clone(), run_root);
            let attached = supervisor.and_then(|supervisor| {
                let deadline = Instant::now() + ATTACH_WAIT;
                supervisor.client.attach(&supervisor.socket, deadline)?;
                Ok(supervisor)
            });
            match attached {
                Ok(supervisor) => {
                    info!(cell = id, model = config.model_name, "found a running cell");
                    supervisor.client.set_places(record.places());
                    let ranks = FoundRanks::new(id.clone(), record.pids());
                    let cell = Self::supervise(supervisor, Some(vec![Member::Found(ranks)]));
                    return Ok((cell, record.config, prepared));
                }
                // It may belong to another front.
                Err(error) => info!(cell = id, %error, "recorded cell cannot be taken over"),
            }
        }
        Err(CellError::NothingToAttach.into())
    }

    fn supervise(supervisor: Supervisor, found: Option<Vec<Member>>) -> Self {
        let (events, inbox) = mpsc::channel();
        let (formed_sender, formed) = async_channel::bounded(1);
        let client = supervisor.client.clone();
        let stopping = Arc::clone(&supervisor.stopping);

        let losses = client.losses();
        let loss_events = events.clone();
        thread::spawn(move || {
            while let Ok(loss) = losses.recv_blocking() {
                if loss_events.send(Event::Lost(loss)).is_err() {
                    break;
                }
            }
        });
        let supervisor = thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || supervisor.run(found, &inbox, &formed_sender))
            .expect("a process that cannot start one thread cannot do anything");
        Self {
            client,
            events,
            stopping,
            formed,
            supervisor: Some(supervisor),
        }
    }

    /// Returns the handle through which requests are made.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns where the outcome of the first formation arrives, once.
    #[must_use]
    pub fn formed(&self) -> async_channel::Receiver<Result<CellInfo, CellError>> {
        self.formed.clone()
    }

    /// Ends the cell: every rank, here and on the nodes, and what it left on disk. Takes a few seconds at most.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.events.send(Event::Stop);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.end();
    }
}

/// A live rank 0 answers at once.
const ATTACH_WAIT: Duration = Duration::from_secs(2);
