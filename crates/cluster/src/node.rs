//! The node: lends this machine to one cell at a time.
//!
//! It listens, lets in whoever proves knowledge of the token, and starts a rank when told to. It needs no model and no
//! configuration of one: those arrive over the fabric. When the front goes away the rank is left alone, since rank 0
//! may outlive the front and be found again by the next one; the rank ends by itself when its group does.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::channel::{Channel, Receiver, Sender};
use shoal_fabric::tcp::Config;
use shoal_fabric::{FabricError, Key};
use thiserror::Error;
use tracing::{info, warn};

use crate::control::{Order, Report, Spawn, Task, decode, encode, formation_key};
use crate::copy::CopyService;
use crate::doorstep::{Doorstep, Place};
use crate::launch::{LinkTestRole, Program, RankLaunch, RankProcess, RoleLaunch, TaskLaunch};

/// A node, listening.
pub struct Node {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What a node lends.
pub struct NodeConfig {
    /// Address to listen on; port 0 picks one.
    pub listen: SocketAddr,
    /// Secret that a front must know.
    pub token: Key,
    /// Compute threads for the rank; `None` lends every core.
    pub threads: Option<usize>,
    /// Instruction set to force.
    pub isa: Option<String>,
    /// Binary that runs the rank.
    pub program: Program,
    /// Folder that files are copied to and from; made when it is needed.
    pub root: PathBuf,
    /// How ranks of this machine are linked, of which RDMA and the interfaces hold for copies too.
    pub links: Config,
}

/// The node cannot listen.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; choose another address with --listen")]
pub struct NodeError {
    address: SocketAddr,
    source: io::Error,
}

struct Shared {
    copies: CopyService,
    config: NodeConfig,
    lent: Mutex<Lent>,
    doorstep: Arc<Doorstep>,
    /// Fronts that have proved the token.
    fronts: AtomicUsize,
}

/// Whom the node serves.
enum Lent {
    Free,
    To {
        cell: String,
        process: Arc<RankProcess>,
    },
    /// The node is ending; nothing is started any more.
    Closed,
}

impl Node {
    /// Binds the node's address.
    ///
    /// # Errors
    /// [`NodeError`] when the address is taken or not this machine's.
    pub fn bind(config: NodeConfig) -> Result<Self, NodeError> {
        let listener = TcpListener::bind(config.listen).map_err(|source| NodeError {
            address: config.listen,
            source,
        })?;
        Ok(Self {
            listener,
            shared: Arc::new(Shared {
                copies: CopyService::new(
                    config.root.clone(),
                    config.token.clone(),
                    config.links.clone(),
                ),
                config,
                lent: Mutex::new(Lent::Free),
                doorstep: Arc::default(),
                fronts: AtomicUsize::new(0),
            }),
        })
    }

    /// Returns the address that fronts connect to.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns a handle that ends the node's rank.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Serves fronts for as long as the process lives.
    pub fn serve(self) {
        for stream in self.listener.incoming() {
            // Out of descriptors or threads, most likely: leave the others time to finish.
            if let Err(error) = stream.and_then(|stream| self.admit(stream)) {
                warn!(%error, "cannot accept a connection");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let place = shared.doorstep.enter(&stream)?;
        let work = move || {
            let peer = stream
                .peer_addr()
                .map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
            if let Err(error) = converse(&shared, stream, place) {
                match error {
                    FabricError::WrongToken { .. } => warn!(%peer, "front refused: wrong token"),
                    error => info!(%peer, reason = %error, "front left"),
                }
            }
        };
        thread::Builder::new().spawn(work).map(|_thread| ())
    }
}

/// Ends the rank of a [`Node`], from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// Kills the rank, if one runs, and refuses to start another.
    pub fn stop(&self) {
        self.0.lent().replace(Lent::Closed);
    }
}

impl Lent {
    /// Kills the rank that there may be. Whoever reports on it may hold it too, so that dropping it here might not.
    fn replace(&mut self, next: Self) {
        if let Self::To { process, .. } = self {
            process.kill();
        }
        *self = next;
    }
}

impl Shared {
    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().expect("no panic under this lock")
    }

    /// Kills this rank, unless another has its place.
    fn end(&self, ending: &Weak<RankProcess>) {
        let mut lent = self.lent();
        if let Lent::To { cell, process } = &*lent
            && ending.ptr_eq(&Arc::downgrade(process))
        {
            info!(cell, "rank ended");
            lent.replace(Lent::Free);
        }
    }

    /// Starts a rank in place of an older one of the same cell. Another cell's is left alone while it runs.
    fn spawn(&self, order: &Spawn, front: SocketAddr) -> Result<Arc<RankProcess>, String> {
        let mut lent = self.lent();
        match &*lent {
            Lent::Closed => return Err("the node is ending".to_owned()),
            Lent::To { cell, process } if *cell != order.cell && process.ended().is_none() => {
                return Err(format!(
                    "the node serves another cell ({cell}); stop that one, or wait until its ranks have given up their front"
                ));
            }
            // The old rank is killed before the new one starts.
            _ => lent.replace(Lent::Free),
        }
        let key = formation_key(&self.config.token, &order.cell, &order.nonce_hex);
        // As this machine calls it: the zone of a link-local address included.
        let mut rendezvous = front;
        rendezvous.set_port(order.rendezvous_port);
        let launch = RankLaunch {
            cell: order.cell.clone(),
            rank: order.rank,
            world: order.world,
            key_hex: hex::encode(key.as_bytes()),
            threads: self.config.threads,
            isa: self.config.isa.clone(),
            first_core: None,
            step_timeout_ms: order.step_timeout_ms,
            join_timeout_ms: order.join_timeout_ms,
            task: match order.task {
                Task::Model => TaskLaunch::Model(RoleLaunch::Member { rendezvous }),
                Task::LinkTest(carrier) => TaskLaunch::LinkTest(LinkTestRole::Member {
                    rendezvous,
                    carrier,
                }),
            },
        };
        let process =
            RankProcess::spawn(&self.config.program, &launch).map_err(|error| error.to_string())?;
        let process = Arc::new(process);
        info!(
            cell = order.cell,
            rank = order.rank,
            world = order.world,
            pid = process.pid(),
            task = ?order.task,
            "rank started"
        );
        *lent = Lent::To {
            cell: order.cell.clone(),
            process: Arc::clone(&process),
        };
        Ok(process)
    }
}

/// Serves one front, once it has proved the token, until it leaves.
fn converse(shared: &Shared, stream: TcpStream, place: Place) -> Result<(), FabricError> {
    let proved = Channel::accept(
        stream,
        &shared.config.token,
        Instant::now() + HANDSHAKE_WAIT,
    );
    drop(place);
    let mut channel = proved?;
    let front = channel.peer_addr();
    let first = match decode(&channel.recv(Some(Instant::now() + FRONT_SILENCE_MAX))?)? {
        Order::Copy(order) => {
            shared.copies.serve(channel, order);
            return Ok(());
        }
        first => first,
    };
    if shared.fronts.fetch_add(1, Ordering::Relaxed) >= FRONTS_MAX {
        shared.fronts.fetch_sub(1, Ordering::Relaxed);
        warn!(%front, "front refused: too many are connected");
        return Ok(());
    }
    info!(%front, "front connected");
    let (sender, mut receiver) = channel.split();
    let sender = Arc::new(Mutex::new(sender));
    let outcome = obey(shared, front, first, &sender, &mut receiver);
    // Whoever still waits to report on a rank would otherwise keep the connection half alive.
    sender.lock().expect("no panic under this lock").close();
    shared.fronts.fetch_sub(1, Ordering::Relaxed);
    outcome
}

fn obey(
    shared: &Shared,
    front: SocketAddr,
    first: Order,
    sender: &Arc<Mutex<Sender>>,
    receiver: &mut Receiver,
) -> Result<(), FabricError> {
    let mut order = first;
    let mut started = Weak::new();
    loop {
        match order {
            Order::Ping => report(sender, &Report::Pong)?,
            Order::Copy(_) => {}
            Order::End => shared.end(&started),
            Order::Spawn(order) => match shared.spawn(&order, front) {
                Ok(process) => {
                    report(sender, &Report::Spawned { pid: process.pid() })?;
                    report_end(sender, &process);
                    started = Arc::downgrade(&process);
                }
                Err(reason) => report(sender, &Report::Ended { reason })?,
            },
        }
        // A front whose rank runs may be stopped for a while (Ctrl-Z, a laptop that sleeps); the connection notices if
        // its machine is gone.
        let idle = started.strong_count() == 0;
        let deadline = idle.then(|| Instant::now() + FRONT_SILENCE_MAX);
        order = decode(&receiver.recv(deadline)?)?;
    }
}

/// Tells the front, if it is still there, when and how the rank ended.
fn report_end(sender: &Arc<Mutex<Sender>>, process: &Arc<RankProcess>) {
    let sender = Arc::clone(sender);
    // A strong reference would make a rank that was ended count as one that runs.
    let process = Arc::downgrade(process);
    thread::spawn(move || {
        let reason = loop {
            let Some(process) = process.upgrade() else {
                break "it was ended".to_owned();
            };
            if let Some(reason) = process.ended() {
                break reason;
            }
            drop(process);
            thread::sleep(END_POLL);
        };
        let _ = report(&sender, &Report::Ended { reason });
    });
}

fn report(sender: &Mutex<Sender>, report: &Report) -> Result<(), FabricError> {
    sender
        .lock()
        .expect("no panic under this lock")
        .send(&encode(report))
}

/// More than a few fronts at once means a mistake.
const FRONTS_MAX: usize = 16;
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// How soon a rank's end is told; the fabric tells its peers at once.
const END_POLL: Duration = Duration::from_millis(200);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A front pings every [`crate::supervisor::TICK`]; one that is silent this long is gone.
const FRONT_SILENCE_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::doorstep::STANDING_MAX;

    fn node_of(program: Program) -> Node {
        let node = Node::bind(NodeConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            token: Key::from_token("fish"),
            threads: None,
            isa: None,
            program,
            root: "/nowhere/root".into(),
            links: Config::default(),
        });
        node.expect("loopback")
    }

    fn order() -> Spawn {
        Spawn {
            cell: "tiny".to_owned(),
            rank: 1,
            world: 2,
            nonce_hex: String::new(),
            rendezvous_port: 1,
            step_timeout_ms: 1,
            join_timeout_ms: 1,
            task: Task::Model,
        }
    }

    #[test]
    fn a_rank_is_killed_though_somebody_still_reports_on_it() {
        let node = node_of(Program {
            path: "/bin/sh".into(),
            flags: ["-c", "exec sleep 600"].map(str::to_owned).into(),
        });
        let front = ([127, 0, 0, 1], 1).into();
        let start = || node.shared.spawn(&order(), front).expect("it starts");
        let replaced = start();
        let ended = start();
        assert!(replaced.ended().is_some());
        assert_eq!(ended.ended(), None);
        node.shared.end(&Arc::downgrade(&ended));
        assert!(ended.ended().is_some());
        let last = start();
        node.stopper().stop();
        assert!(last.ended().is_some());
    }

    #[test]
    fn strangers_who_hold_every_place_keep_no_front_out() {
        let token = Key::from_token("fish");
        let node = node_of(Program {
            path: "/nowhere/shoal".into(),
            flags: Vec::new(),
        });
        let address = node.local_addr().expect("bound");
        thread::spawn(|| node.serve());
        let connect = || {
            let soon = Instant::now() + Duration::from_secs(60);
            Channel::connect(&address.to_string(), &token, soon).expect("let in")
        };
        let strangers = || {
            let stranger = |_| TcpStream::connect(address).expect("it listens");
            (0..STANDING_MAX + 8).map(stranger).collect::<Vec<_>>()
        };
        let is_served = |front: &mut Channel| {
            front.send(&encode(&Order::Ping)).expect("it reads");
            let pong = decode(&front.recv(None).expect("it answers"));
            assert!(matches!(pong, Ok(Report::Pong)));
            front
                .send(&encode(&Order::Spawn(order())))
                .expect("it reads");
            let report = decode(&front.recv(None).expect("it answers"));
            let Report::Ended { reason } = report.expect("a report") else {
                panic!("a rank that cannot be started")
            };
            assert!(reason.contains("/nowhere/shoal"), "{reason}");
        };

        let mut first = connect();
        is_served(&mut first);
        let mut held = strangers();
        let mut second = connect();
        is_served(&mut second);
        held.extend(strangers());
        // Those who have proved the token are none of the strangers who had to go.
        is_served(&mut first);
        is_served(&mut second);
        let mut greeting = Vec::new();
        held[0]
            .read_to_end(&mut greeting)
            .expect("it was sent away");
    }
}
