//! The front of a link test: starts the ranks, hands on what rank 0 tells, and leaves no process behind.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::{Interfaces, Key, Rank};
use thiserror::Error;

use super::report::{Event, Report};
use super::{Place, Plan};
use crate::carrier::Carrier;
use crate::cell::Placement;
use crate::control::{Spawn, Task, formation_key};
use crate::launch::{LaunchError, LinkTestRole, Program, RankLaunch, RankProcess, TaskLaunch};
use crate::remote::{NodeRefused, RemoteNode};
use crate::supervisor::{TICK, listen_ip, random_hex};
use crate::token::{SecretError, read_token};

/// A running link test. Dropping it ends every rank, here and on the nodes.
pub struct LinkTest {
    events: async_channel::Receiver<Event>,
    stopping: Arc<AtomicBool>,
    conductor: Option<thread::JoinHandle<Result<(Report, Place), LinkTestError>>>,
}

/// What is tested, and how.
#[derive(Clone, Debug)]
pub struct LinkTestConfig {
    /// Where the ranks run.
    pub placement: Placement,
    /// What they do.
    pub plan: Plan,
    /// What shall carry the bytes.
    pub carrier: Carrier,
    /// Over which interfaces of this machine; nothing leaves that to its environment.
    pub interfaces: Option<Interfaces>,
    /// Longest time for the ranks to find each other.
    pub join_timeout: Duration,
    /// Longest silence of a rank before it counts as lost; more than 10 s, since ranks also wait for each other's turns.
    pub silence_max: Duration,
}

/// The test could not be done. Each message is one line that says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkTestError {
    /// A process could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A node did not let us in.
    #[error(transparent)]
    Node(#[from] NodeRefused),
    /// There is no token to show the nodes.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// A rank ended before the test did.
    #[error("{rank} ended before the test did: {reason}")]
    RankEnded {
        /// Which one.
        rank: Rank,
        /// How it ended.
        reason: String,
    },
    /// The ranks could not go on.
    #[error("the links did not hold: {0}")]
    Failed(String),
    /// Rank 0 says nothing any more.
    #[error(
        "rank 0 has told nothing for {} s; try smaller --sizes, and --verbose to see where it stops", SILENCE_MAX.as_secs()
    )]
    Silent,
    /// Rank 0 said something unexpected.
    #[error("rank 0 was not understood: {0}")]
    Garbled(String),
    /// The caller stopped the test.
    #[error("stopped before the test was done")]
    Stopped,
}

impl LinkTest {
    /// Begins the test and returns at once.
    #[must_use]
    pub fn start(config: LinkTestConfig, program: Program) -> Self {
        let (sender, events) = async_channel::unbounded();
        let stopping = Arc::new(AtomicBool::new(false));
        let conductor = Conductor {
            id: format!("link-test-{}", random_hex(4)),
            config,
            program,
            stopping: Arc::clone(&stopping),
            events: sender,
        };
        let conductor = thread::Builder::new()
            .name("link-test".to_owned())
            .spawn(move || conductor.conduct())
            .expect("a process that cannot start one thread cannot do anything");
        Self {
            events,
            stopping,
            conductor: Some(conductor),
        }
    }

    /// Returns where it is told what happens; closed when the test is over.
    #[must_use]
    pub fn events(&self) -> async_channel::Receiver<Event> {
        self.events.clone()
    }

    /// Waits for the test to end; returns what was found, and where.
    ///
    /// # Errors
    /// [`LinkTestError`] when it could not be done.
    pub fn finish(mut self) -> Result<(Report, Place), LinkTestError> {
        let conductor = self.conductor.take().expect("taken here and in drop only");
        conductor.join().expect("the conductor does not panic")
    }
}

impl Drop for LinkTest {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(conductor) = self.conductor.take() {
            let _ = conductor.join();
        }
    }
}

/// What runs on the thread of a test.
struct Conductor {
    id: String,
    config: LinkTestConfig,
    program: Program,
    stopping: Arc<AtomicBool>,
    events: async_channel::Sender<Event>,
}

/// The ranks of a test; dropping them ends them.
#[derive(Default)]
struct Ranks {
    processes: Vec<(Rank, RankProcess)>,
    nodes: Vec<(Rank, RemoteNode)>,
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for (_, process) in &self.processes {
            process.kill_soon();
        }
    }
}

impl Conductor {
    fn conduct(self) -> Result<(Report, Place), LinkTestError> {
        let nonce_hex = random_hex(16);
        let (nodes, key) = match &self.config.placement {
            Placement::Local { .. } => (Vec::new(), Key::random()),
            Placement::Peers {
                addresses,
                token_file,
            } => {
                let token = read_token(token_file)?;
                let nodes = RemoteNode::connect_all(addresses, &token)?;
                (nodes, formation_key(&token, &self.id, &nonce_hex))
            }
        };
        let mut ranks = Ranks::default();
        let listen = listen_ip(&nodes);
        let place = if nodes.iter().all(RemoteNode::is_here) {
            Place::ThisMachine
        } else {
            Place::Network
        };
        let root = LinkTestRole::Root {
            listen: SocketAddr::new(listen, 0),
            plan: self.config.plan.clone(),
            carrier: self.config.carrier,
            interfaces: self.config.interfaces.as_ref().map(Interfaces::to_string),
        };
        let (process, stdout) =
            RankProcess::spawn_telling(&self.program, &self.launch(0, &key, root))?;
        let mut told = Told::by(stdout);
        self.started(0, Some(process.pid()));
        ranks.processes.push((Rank(0), process));
        let port = match self.next(&ranks, &mut told)? {
            Event::Listening { port } => port,
            Event::Failed { reason } => return Err(LinkTestError::Failed(reason)),
            other => return Err(LinkTestError::Garbled(format!("it began with {other:?}"))),
        };

        if let Placement::Local { nodes } = self.config.placement {
            let rendezvous = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            for rank in 1..nodes {
                let launch = self.launch(
                    rank,
                    &key,
                    LinkTestRole::Member {
                        rendezvous,
                        carrier: self.config.carrier,
                    },
                );
                let process = RankProcess::spawn(&self.program, &launch)?;
                self.started(rank, Some(process.pid()));
                ranks.processes.push((Rank(rank), process));
            }
        }
        for (rank, node) in (1..).zip(nodes) {
            node.spawn(Spawn {
                cell: self.id.clone(),
                rank,
                world: self.config.placement.world(),
                nonce_hex: nonce_hex.clone(),
                rendezvous_port: port,
                step_timeout_ms: millis(self.config.silence_max),
                join_timeout_ms: millis(self.config.join_timeout),
                task: Task::LinkTest(self.config.carrier),
            })?;
            self.started(rank, None);
            ranks.nodes.push((Rank(rank), node));
        }
        Ok((self.listen(&ranks, &mut told)?, place))
    }

    /// Hands on what rank 0 tells, until it says how the test went.
    fn listen(&self, ranks: &Ranks, told: &mut Told) -> Result<Report, LinkTestError> {
        loop {
            match self.next(ranks, told)? {
                Event::Done(report) => {
                    // They leave by themselves; what is still there then is killed.
                    let deadline = Instant::now() + LEAVE_WAIT;
                    for (_, process) in &ranks.processes {
                        process.wait_until(deadline);
                    }
                    return Ok(*report);
                }
                Event::Failed { reason } => return Err(LinkTestError::Failed(reason)),
                event => {
                    let _nobody_may_listen = self.events.try_send(event);
                }
            }
        }
    }

    /// Waits for the next event, while it looks after the ranks.
    fn next(&self, ranks: &Ranks, told: &mut Told) -> Result<Event, LinkTestError> {
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(LinkTestError::Stopped);
            }
            if told.pinged.elapsed() > TICK {
                told.pinged = Instant::now();
                ranks.nodes.iter().for_each(|(_, node)| node.ping());
            }
            match told.lines.recv_timeout(LOOK_EVERY) {
                Ok(line) => {
                    told.last = Instant::now();
                    return serde_json::from_str(&line)
                        .map_err(|error| LinkTestError::Garbled(error.to_string()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_EVERY),
            }
            // Rank 0 is told of a loss by the fabric, and says more about it; it is left time to.
            match ranks.ended() {
                None => told.ended = None,
                // The first counts: others end for its sake.
                Some(ended) => {
                    let (since, (rank, reason)) =
                        told.ended.get_or_insert_with(|| (Instant::now(), ended));
                    if since.elapsed() > BLAME_WAIT {
                        let (rank, reason) = (*rank, reason.clone());
                        return Err(LinkTestError::RankEnded { rank, reason });
                    }
                }
            }
            if told.last.elapsed() > SILENCE_MAX {
                return Err(LinkTestError::Silent);
            }
        }
    }

    fn launch(&self, rank: u16, key: &Key, role: LinkTestRole) -> RankLaunch {
        RankLaunch {
            cell: self.id.clone(),
            rank,
            world: self.config.placement.world(),
            key_hex: hex::encode(key.as_bytes()),
            threads: None,
            isa: None,
            first_core: None,
            step_timeout_ms: millis(self.config.silence_max),
            join_timeout_ms: millis(self.config.join_timeout),
            task: TaskLaunch::LinkTest(role),
        }
    }

    fn started(&self, rank: u16, pid: Option<u32>) {
        let _nobody_may_listen = self.events.try_send(Event::Started { rank, pid });
    }
}

impl Ranks {
    /// The first rank that has ended, and how.
    fn ended(&self) -> Option<(Rank, String)> {
        let here = self.processes.iter().map(|(rank, it)| (*rank, it.ended()));
        let gone = |node: &RemoteNode| node.ended().or_else(|| node.silence());
        let elsewhere = self.nodes.iter().map(|(rank, it)| (*rank, gone(it)));
        here.chain(elsewhere)
            .find_map(|(rank, ended)| Some((rank, ended?)))
    }
}

/// What rank 0 has said.
struct Told {
    lines: mpsc::Receiver<String>,
    last: Instant,
    pinged: Instant,
    /// The rank that was first seen to have ended, when, and how.
    ended: Option<(Instant, (Rank, String))>,
}

impl Told {
    fn by(stdout: ChildStdout) -> Self {
        let (sender, lines) = mpsc::channel();
        // Ends with the process, or when nobody wants to hear more.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            lines,
            last: Instant::now(),
            pinged: Instant::now(),
            ended: None,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long rank 0 may take to tell of another's end.
const BLAME_WAIT: Duration = Duration::from_secs(3);
/// Ranks exit right after the last barrier.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
/// Longer than one round of the largest size takes on a slow link; the ranks bound each other's silence themselves.
const SILENCE_MAX: Duration = Duration::from_secs(600);
