//! The supervisor: forms the group of ranks, watches it, and forms it again after a loss.
//!
//! One thread owns everything that can change: it connects to the nodes, starts the ranks, hands rank 0's socket to the
//! engine's [`Client`], and then waits for one of two events, a loss or the order to stop. After a loss it ends what is
//! left of the group and forms a new one, trying again with growing pauses for as long as it takes: a node that was
//! switched off is simply awaited. Requests fail with the rank's name meanwhile; that is the client's part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use shoal_engine::client::{CellInfo, CellState, Client, Loss};
use shoal_fabric::{Key, Rank};
use tracing::{info, warn};

use crate::cell::{CellConfig, CellError, Placement};
use crate::control::{Spawn, Task, formation_key};
use crate::found::FoundRanks;
use crate::launch::{Program, RankLaunch, RankProcess, RoleLaunch, TaskLaunch};
use crate::record::{CellRecord, RankRecord};
use crate::remote::RemoteNode;
use crate::token::read_token;

pub(crate) struct Supervisor {
    id: String,
    config: CellConfig,
    token: Option<Key>,
    program: Program,
    run_root: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) client: Client,
    pub(crate) stopping: Arc<AtomicBool>,
}

/// What the supervisor waits for.
pub(crate) enum Event {
    Lost(Loss),
    Stop,
}

/// A rank as the supervisor holds it; dropping it ends the rank.
pub(crate) enum Member {
    Local(Rank, RankProcess),
    Remote(Rank, RemoteNode),
    /// Ranks of this machine that an earlier front started.
    Found(FoundRanks),
}

impl Member {
    /// How a rank ended, in words, or `None` while all of them run.
    fn ended(&self) -> Option<Loss> {
        let (rank, reason) = match self {
            Self::Local(rank, process) => (*rank, process.ended()?),
            Self::Remote(rank, node) => (*rank, node.ended()?),
            Self::Found(_) => return None,
        };
        Some(Loss { rank, reason })
    }

    /// A rank whose machine does not answer, or `None` while all do.
    fn silence(&self) -> Option<Loss> {
        match self {
            Self::Remote(rank, node) => Some(Loss {
                rank: *rank,
                reason: node.silence()?,
            }),
            Self::Local(..) | Self::Found(_) => None,
        }
    }
}

impl Supervisor {
    pub(crate) fn new(
        id: String,
        config: CellConfig,
        program: Program,
        run_root: &Path,
    ) -> Result<Self, CellError> {
        let socket = CellRecord::socket(run_root, &id);
        let unusable = |reason: String| CellError::RunFolder {
            path: socket.clone(),
            reason,
        };
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(unusable(format!(
                "the path is longer than {SOCKET_PATH_MAX} bytes"
            )));
        }
        let token = match &config.placement {
            Placement::Local { .. } => None,
            Placement::Peers { token_file, .. } => Some(read_token(token_file)?),
        };
        Ok(Self {
            id,
            config,
            token,
            program,
            run_root: run_root.to_owned(),
            socket,
            client: Client::new(),
            stopping: Arc::default(),
        })
    }

    /// The supervisor's life: form (or take over what was `found`), watch, form again, until told to stop or until the
    /// very first formation fails, which its starter is told about.
    pub(crate) fn run(
        self,
        found: Option<Vec<Member>>,
        inbox: &mpsc::Receiver<Event>,
        formed: &async_channel::Sender<Result<CellInfo, CellError>>,
    ) {
        let mut ever_ready = found.is_some();
        let mut pause = Duration::ZERO;
        let mut outcome = match found {
            Some(members) => self.await_ready(&members).map(|info| (members, info)),
            None => self.form(),
        };
        loop {
            match outcome {
                Ok((members, info)) => {
                    ever_ready = true;
                    pause = Duration::ZERO;
                    let _ = formed.try_send(Ok(info));
                    let Event::Lost(loss) = self.watch(&members, inbox) else {
                        return self.end(members);
                    };
                    warn!(
                        rank = loss.rank.0,
                        reason = loss.reason,
                        "rank lost; forming the cell again"
                    );
                    self.client.detach(loss);
                }
                Err(error) if !ever_ready || matches!(error, CellError::Stopped) => {
                    self.end(Vec::new());
                    let _ = formed.try_send(Err(error));
                    return;
                }
                Err(error) => {
                    warn!(%error, retry_in_ms = pause.as_millis() as u64, "the cell could not be formed again");
                    if stopped_within(pause, inbox) {
                        return self.end(Vec::new());
                    }
                    pause = (pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
                }
            }
            outcome = self.form();
        }
    }

    /// Connects to the nodes, starts every rank, and waits until the group has loaded its model.
    fn form(&self) -> Result<(Vec<Member>, CellInfo), CellError> {
        let nonce_hex = random_hex(16);
        let nodes = self.connect_nodes()?;
        // Whoever starts another cell while this one has no ranks takes what is left of it for that of one that is over.
        self.make_folder()?;
        let key = self.token.as_ref().map_or_else(Key::random, |token| {
            formation_key(token, &self.id, &nonce_hex)
        });
        let root = RankProcess::spawn(&self.program, &self.root_launch(&key, listen_ip(&nodes)))?;
        let rendezvous = self.attach(&root)?;
        let mut members = vec![Member::Local(Rank(0), root)];

        if let Placement::Local { nodes } = self.config.placement {
            for rank in 1..nodes {
                let role = RoleLaunch::Member { rendezvous };
                let process = RankProcess::spawn(&self.program, &self.launch(rank, &key, role))?;
                members.push(Member::Local(Rank(rank), process));
            }
        }
        for (rank, node) in (1..).zip(nodes) {
            node.spawn(Spawn {
                cell: self.id.clone(),
                rank,
                world: self.config.placement.world(),
                nonce_hex: nonce_hex.clone(),
                rendezvous_port: rendezvous.port(),
                step_timeout_ms: self.config.step_timeout_ms,
                join_timeout_ms: self.config.join_timeout_ms,
                task: Task::Model,
            })?;
            members.push(Member::Remote(Rank(rank), node));
        }

        self.write_record(&members);
        let info = self.await_ready(&members)?;
        Ok((members, info))
    }

    fn make_folder(&self) -> Result<(), CellError> {
        let made = CellRecord::make_folder(&self.run_root, &self.id);
        made.map_err(|error| CellError::RunFolder {
            path: self.socket.clone(),
            reason: error.to_string(),
        })
    }

    fn connect_nodes(&self) -> Result<Vec<RemoteNode>, CellError> {
        let (Placement::Peers { addresses, .. }, Some(token)) =
            (&self.config.placement, &self.token)
        else {
            return Ok(Vec::new());
        };
        Ok(RemoteNode::connect_all(addresses, token)?)
    }

    fn root_launch(&self, key: &Key, listen: IpAddr) -> RankLaunch {
        let config = &self.config;
        self.launch(
            0,
            key,
            RoleLaunch::Root {
                model: config.model.clone(),
                model_name: config.model_name.clone(),
                socket: self.socket.clone(),
                listen: SocketAddr::new(listen, 0),
                shares: config.shares.clone(),
                context: config.context,
                kv_format: config.kv_format,
                exchange: config.exchange,
                running_max: config.running_max,
                waiting_max: config.waiting_max,
                batch_tokens_max: config.batch_tokens_max,
                orphan_timeout_ms: config.orphan_timeout_ms,
            },
        )
    }

    fn launch(&self, rank: u16, key: &Key, role: RoleLaunch) -> RankLaunch {
        let config = &self.config;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let local_ranks = match config.placement {
            Placement::Local { nodes } => usize::from(nodes),
            Placement::Peers { .. } => 1,
        };
        let threads = config.threads.unwrap_or((cores / local_ranks).max(1));
        // Threads are pinned only when this cell uses the whole machine: two smaller cells that each pinned from core 0
        // would fight over the same cores while others stand idle.
        let first_core = (threads * local_ranks == cores).then_some(usize::from(rank) * threads);
        RankLaunch {
            cell: self.id.clone(),
            rank,
            world: config.placement.world(),
            key_hex: hex::encode(key.as_bytes()),
            threads: Some(threads),
            isa: config.isa.clone(),
            first_core,
            step_timeout_ms: config.step_timeout_ms,
            join_timeout_ms: config.join_timeout_ms,
            task: TaskLaunch::Model(role),
        }
    }

    /// Waits for rank 0's socket and returns where rank 0 awaits the other ranks.
    fn attach(&self, root: &RankProcess) -> Result<SocketAddr, CellError> {
        let deadline = Instant::now() + ATTACH_WAIT;
        loop {
            match self.client.attach(&self.socket, deadline) {
                Ok(hello) => {
                    // A world of one has no fabric; nobody will use the address.
                    return Ok(hello
                        .fabric
                        .unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)));
                }
                // The socket appears within milliseconds of the process.
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => self.check(Rank(0), root.ended())?,
            }
            thread::sleep(POLL_EVERY);
        }
    }

    /// Waits until the group is ready, or one of it ends. How long a load may take nobody can say; its progress shows in
    /// the client's status, and the ranks bound their own waits.
    fn await_ready(&self, members: &[Member]) -> Result<CellInfo, CellError> {
        let mut pinged = Instant::now();
        loop {
            match self.client.status().state {
                CellState::Ready => {
                    return self
                        .client
                        .wait_ready(Instant::now() + ATTACH_WAIT)
                        .map_err(CellError::from);
                }
                CellState::Lost(loss) => {
                    // A local process says more about its end than the peer that missed it.
                    for member in members {
                        if let Member::Local(rank, process) = member
                            && *rank == loss.rank
                            && process.wait_until(Instant::now() + POLL_EVERY * 10)
                        {
                            self.check(*rank, process.ended())?;
                        }
                    }
                    return Err(CellError::Lost(loss));
                }
                _ => {}
            }
            if self.stopping.load(Ordering::Relaxed) {
                return Err(CellError::Stopped);
            }
            if let Some(Loss { rank, reason }) = members.iter().find_map(Member::ended) {
                return Err(CellError::RankEnded { rank, reason });
            }
            if pinged.elapsed() > TICK {
                pinged = Instant::now();
                ping(members);
            }
            thread::sleep(POLL_EVERY);
        }
    }

    fn check(&self, rank: Rank, ended: Option<String>) -> Result<(), CellError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(CellError::Stopped);
        }
        ended.map_or(Ok(()), |reason| Err(CellError::RankEnded { rank, reason }))
    }

    /// Records the cell for a later front. Without the record the cell still serves; it just cannot be found again.
    fn write_record(&self, members: &[Member]) {
        let ranks = members.iter().filter_map(|member| match member {
            Member::Local(_, process) => Some(RankRecord::local(process.pid())),
            Member::Remote(_, node) => Some(RankRecord::remote(node.address())),
            Member::Found(_) => None,
        });
        let record = CellRecord {
            id: self.id.clone(),
            config: self.config.clone(),
            ranks: ranks.collect(),
        };
        self.client.set_places(record.places());
        if let Err(error) = record.write(&self.run_root) {
            warn!(%error, "the cell is not recorded; `shoal serve --attach` will not find it");
        }
    }

    /// Waits for a loss or the order to stop, keeping the nodes' connections alive meanwhile.
    fn watch(&self, members: &[Member], inbox: &mpsc::Receiver<Event>) -> Event {
        let mut ended_since = None;
        // While a model loads its machine may be too busy to answer at once.
        for member in members {
            if let Member::Remote(_, node) = member {
                node.forgive();
            }
        }
        loop {
            match inbox.recv_timeout(TICK) {
                // Left over from a formation that failed: this group is well.
                Ok(Event::Lost(_)) if matches!(self.client.status().state, CellState::Ready) => {}
                Ok(event) => return event,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Event::Stop,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    // Rank 0 reports a loss at once, unless it hangs: then the others give it up and end first, and the
                    // client, which waits a little longer than they do, names it.
                    if let Some(loss) = members.iter().find_map(Member::ended)
                        && ended_since.get_or_insert_with(Instant::now).elapsed() > BLAME_WAIT
                    {
                        return Event::Lost(loss);
                    }
                    // Nobody is blamed by a machine that has vanished; it is not waited for.
                    if let Some(loss) = members.iter().find_map(Member::silence) {
                        return Event::Lost(loss);
                    }
                    ping(members);
                }
            }
        }
    }

    /// Ends the ranks in order, then by force, and removes what the cell left on disk.
    fn end(self, members: Vec<Member>) {
        self.client.shutdown();
        let deadline = Instant::now() + SHUTDOWN_WAIT;
        for member in &members {
            match member {
                Member::Local(_, process) => {
                    process.wait_until(deadline);
                }
                Member::Remote(_, node) => {
                    while node.ended().is_none() && Instant::now() < deadline {
                        thread::sleep(POLL_EVERY);
                    }
                }
                Member::Found(ranks) => ranks.wait_until(deadline),
            }
        }
        drop(members);
        CellRecord::remove(&self.run_root, &self.id);
        info!(cell = self.id, "cell ended");
    }
}

fn ping(members: &[Member]) {
    for member in members {
        if let Member::Remote(_, node) = member {
            node.ping();
        }
    }
}

/// Waits before the next attempt; says whether the order to stop came meanwhile.
fn stopped_within(pause: Duration, inbox: &mpsc::Receiver<Event>) -> bool {
    let until = Instant::now() + pause;
    loop {
        match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Lost(_)) => {} // of the group that is already gone
            Ok(Event::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return true,
            Err(mpsc::RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Rank 0 listens where the nodes can reach it, and nowhere else if they are all on this machine.
pub(crate) fn listen_ip(nodes: &[RemoteNode]) -> IpAddr {
    match nodes
        .iter()
        .map(RemoteNode::local_ip)
        .find(|ip| !ip.is_loopback())
    {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

pub(crate) fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    hex::encode(random)
}

/// Unix socket paths hold 104 bytes on macOS and 108 on Linux, with the closing zero.
const SOCKET_PATH_MAX: usize = 103;
const POLL_EVERY: Duration = Duration::from_millis(10);
const ATTACH_WAIT: Duration = Duration::from_secs(10);
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);
/// How often the ranks are looked after; well within the silence that a node puts up with.
pub(crate) const TICK: Duration = Duration::from_millis(325);
/// How long the client may take to name the rank that was lost, once another has ended: longer than it bears rank 0's
/// silence beyond what the ranks do.
const BLAME_WAIT: Duration = Duration::from_secs(4);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
