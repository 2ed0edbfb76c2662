//! The life of a rank's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shoal_fabric::{Exchange, Group, Key, Rank, tcp};
use shoal_kernels::{Cpu, CpuConfig, Isa, KvFormat, machine};
use shoal_model::{Model, Shares};
use tracing::info;

use crate::error::RankError;
use crate::root::Root;
use crate::status::RankReport;
use crate::step::Step;
use crate::wire::{self, Patience};

/// What a rank has to know when its process starts.
#[derive(Clone, Debug)]
pub struct RankConfig {
    /// Its number.
    pub rank: Rank,
    /// Number of ranks.
    pub world: usize,
    /// The secret of this group.
    pub key: Key,
    /// How it is linked to the others.
    pub links: tcp::Config,
    /// What it does beside computing.
    pub role: Role,
    /// Its compute threads.
    pub threads: usize,
    /// The instruction set it computes with.
    pub isa: Isa,
    /// Pins its threads to the cores from this one on.
    pub first_core: Option<usize>,
    /// How long a peer may be still within a step, and rank 0 between two steps. The front gives rank 0 up after this and
    /// 2 s of silence.
    pub step_timeout: Duration,
    /// How long the ranks may take to find each other, and be still while weights are handed out.
    pub join_timeout: Duration,
}

/// What a rank does beside computing.
#[derive(Clone, Debug)]
pub enum Role {
    /// Rank 0: reads the model, schedules, samples, answers the front.
    Root {
        /// The GGUF file.
        model: PathBuf,
        /// Name under which it is served.
        model_name: String,
        /// Where to listen for the front.
        socket: PathBuf,
        /// Where to listen for the other ranks; port 0 takes a free one.
        listen: SocketAddr,
        /// How the model is divided.
        shares: Shares,
        /// Longest sequence in tokens, at most what the model was made for.
        context: u32,
        /// What keys and values are kept as.
        kv_format: KvFormat,
        /// What partial sums travel as between the ranks.
        exchange: Exchange,
        /// Bounds of queue and batch.
        limits: EngineLimits,
        /// How long the cell waits for a front before it ends.
        orphan_timeout: Duration,
    },
    /// Any other rank.
    Member {
        /// Where rank 0 listens.
        rendezvous: SocketAddr,
    },
}

/// Bounds of a cell's queue and batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Requests worked on at once.
    pub running_max: usize,
    /// Requests that may wait beside those.
    pub waiting_max: usize,
    /// Tokens in one step.
    pub batch_tokens_max: usize,
}

/// Lives the whole life of a rank: joins its group, loads its part of the model, computes until it is told to end.
///
/// Rank 0 first listens at its socket, answers a front at once, waits for the other ranks, loads, and serves. The process
/// should end when this returns; a group cannot be joined again.
///
/// # Errors
/// [`RankError`] when the rank cannot start or its group falls apart.
pub fn run_rank(config: RankConfig) -> Result<(), RankError> {
    match config.role.clone() {
        Role::Root {
            model,
            model_name,
            socket,
            listen,
            shares,
            context,
            kv_format,
            exchange,
            limits,
            orphan_timeout,
        } => Root {
            config,
            model,
            model_name,
            socket,
            listen,
            shares,
            context,
            kv_format,
            exchange,
            limits,
            orphan_timeout,
        }
        .run(),
        Role::Member { rendezvous } => run_member(&config, rendezvous),
    }
}

fn run_member(config: &RankConfig, rendezvous: SocketAddr) -> Result<(), RankError> {
    let deadline = Instant::now() + config.join_timeout;
    // Before the CPU is taken, which pins this thread: how ranks wait depends on how many cores they may use.
    let mut group = tcp::join_with(
        config.links.clone(),
        rendezvous,
        config.rank,
        config.world,
        config.key.clone(),
        deadline,
    )?;
    info!(
        rank = config.rank.0,
        world = config.world,
        "joined the group"
    );
    group.set_timeout(config.silence_while_loading());
    let followed = follow(config, &mut group);
    if let Err(error) = &followed {
        let loss = error.loss(config.rank);
        group.abort(loss.rank, &loss.reason);
    }
    followed
}

/// Takes its share of the model and does what rank 0 says, until it says to end.
fn follow(config: &RankConfig, group: &mut Group) -> Result<(), RankError> {
    let cpu = config.cpu()?;
    let facts = Facts::of(&cpu);
    let mut model = Model::load_member(cpu, group)?;
    let report = facts.report(group.rank(), &model);
    report.log();
    let (mut bytes, mut reports) = (Vec::new(), Vec::new());
    loop {
        group.broadcast(ROOT, &mut bytes)?;
        // The first step comes when the last rank has its weights.
        group.set_timeout(config.step_timeout);
        match Step::decode(&bytes)? {
            Step::Run(spans) => {
                model.forward(&spans, group, &mut || {})?;
            }
            Step::Idle => group.barrier()?,
            Step::Report => {
                let report = facts.report(group.rank(), &model);
                group.all_gather(&wire::encode_report(&report), &mut reports)?;
            }
            Step::Shutdown => {
                info!(rank = group.rank().0, "told to end");
                return Ok(());
            }
        }
    }
}

impl RankConfig {
    pub(crate) fn cpu(&self) -> Result<Cpu, RankError> {
        let Self {
            isa,
            threads,
            first_core,
            ..
        } = *self;
        Ok(Cpu::new(CpuConfig {
            isa,
            threads,
            first_core,
        })?)
    }

    /// How long the front bears rank 0's silence: longer than the ranks bear each other's, since it is to hear from rank 0
    /// which other rank hangs. Rank 0 shows life before each wait for the others and after it, however long a step is.
    pub(crate) fn patience(&self) -> Patience {
        // With the weights handed out, rank 0 waits twice in a row: until all have them, and for their reports.
        let forming = self.silence_while_loading().saturating_mul(2);
        Patience {
            forming: forming.saturating_add(FRONT_MARGIN),
            serving: self.step_timeout.saturating_add(FRONT_MARGIN),
        }
    }

    pub(crate) fn silence_while_loading(&self) -> Duration {
        self.join_timeout.max(self.step_timeout)
    }
}

/// What a rank's device is, noted before the model takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    isa: Isa,
    threads: usize,
}

impl Facts {
    pub(crate) fn of(cpu: &Cpu) -> Self {
        Self {
            isa: cpu.isa(),
            threads: cpu.threads(),
        }
    }

    pub(crate) fn report(self, rank: Rank, model: &Model) -> RankReport {
        RankReport {
            rank,
            peak_memory_bytes: machine::peak_memory_bytes(),
            weight_bytes: model.weight_bytes(),
            kv_bytes: model.kv_bytes(),
            threads: self.threads,
            isa: self.isa,
            split: model.split().describe(rank),
        }
    }
}

impl RankReport {
    pub(crate) fn log(&self) {
        info!(
            rank = self.rank.0,
            isa = %self.isa,
            threads = self.threads,
            split = self.split,
            weight_bytes = self.weight_bytes,
            kv_bytes_max = self.kv_bytes,
            peak_memory_bytes = self.peak_memory_bytes,
            "rank loaded"
        );
    }
}

/// Rank 0 may have last shown life this long before it began to wait for a rank that hangs, and a busy machine may hold
/// back what it then says of that one.
const FRONT_MARGIN: Duration = Duration::from_secs(2);
/// The rank that leads.
pub(crate) const ROOT: Rank = Rank(0);
