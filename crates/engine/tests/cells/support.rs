//! Whole cells on the threads of one process, over loopback and a Unix socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shoal_engine::client::{Client, Event, FinishReason, Hello, Request, Sampling, TokenStream};
use shoal_engine::{EngineLimits, RankConfig, RankError, Role, run_rank};
use shoal_fabric::{Exchange, Key, Rank, tcp};
use shoal_kernels::{Isa, KvFormat};
use shoal_model::Shares;
use shoal_testkit::{TinyConfig, write_to};
use tempfile::TempDir;

/// Longer than anything here takes on the slowest machine; reached only by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the model is made for.
const CONTEXT: u32 = 4096;

pub(crate) struct Cell {
    pub(crate) folder: TempDir,
    pub(crate) key: Key,
    pub(crate) world: usize,
    pub(crate) limits: EngineLimits,
    pub(crate) orphan_timeout: Duration,
    pub(crate) step_timeout: Duration,
    pub(crate) context: u32,
    pub(crate) kv_format: KvFormat,
    pub(crate) isa: Isa,
    ranks: Vec<JoinHandle<Result<(), RankError>>>,
}

impl Cell {
    pub(crate) fn new(world: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_to(
            &TinyConfig {
                context: CONTEXT,
                ..TinyConfig::default()
            },
            &folder.path().join("tiny.gguf"),
        )
        .expect("the model is written");
        Self {
            folder,
            key: Key::random(),
            world,
            limits: EngineLimits {
                running_max: 3,
                waiting_max: 2,
                batch_tokens_max: 16,
            },
            orphan_timeout: PATIENCE,
            step_timeout: PATIENCE,
            context: CONTEXT,
            kv_format: KvFormat::F16,
            isa: Isa::detect(),
            ranks: Vec::new(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn config(&self, rank: u16, role: Role) -> RankConfig {
        RankConfig {
            rank: Rank(rank),
            world: self.world,
            key: self.key.clone(),
            links: tcp::Config::default(),
            role,
            threads: 1,
            isa: self.isa,
            first_core: None,
            step_timeout: self.step_timeout,
            join_timeout: PATIENCE,
        }
    }

    pub(crate) fn root(&self) -> RankConfig {
        let role = Role::Root {
            model: self.folder.path().join("tiny.gguf"),
            model_name: "tiny".to_owned(),
            socket: self.socket(),
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            shares: Shares::equal(self.world),
            context: self.context,
            kv_format: self.kv_format,
            exchange: Exchange::F32,
            limits: self.limits,
            orphan_timeout: self.orphan_timeout,
        };
        self.config(0, role)
    }

    pub(crate) fn start(&mut self, config: RankConfig) {
        self.ranks.push(thread::spawn(move || run_rank(config)));
    }

    /// Starts rank 0 and attaches to it as soon as it listens.
    pub(crate) fn start_root(&mut self, client: &Client) -> Hello {
        self.start(self.root());
        attach(client, self)
    }

    pub(crate) fn start_member(&mut self, rank: u16, rendezvous: SocketAddr) {
        self.start(self.config(rank, Role::Member { rendezvous }));
    }

    /// Starts every rank and waits until the cell is ready.
    pub(crate) fn start_all(&mut self) -> Client {
        let client = Client::new();
        let hello = self.start_root(&client);
        for rank in 1..self.world {
            self.start_member(
                rank as u16,
                hello.fabric.expect("several ranks have a fabric"),
            );
        }
        client
            .wait_ready(Instant::now() + PATIENCE)
            .expect("the cell becomes ready");
        client
    }

    /// Waits for the end of every rank.
    pub(crate) fn ends(self) -> Vec<Result<(), RankError>> {
        self.ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank does not panic"))
            .collect()
    }

    pub(crate) fn ends_well(self) {
        for (rank, end) in self.ends().into_iter().enumerate() {
            assert!(end.is_ok(), "rank {rank}: {end:?}");
        }
    }
}

/// Attaches to a rank 0 that may not listen yet, or not be rid of its last front.
pub(crate) fn attach(client: &Client, cell: &Cell) -> Hello {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.attach(&cell.socket(), deadline) {
            Ok(hello) => return hello,
            Err(error) => assert!(Instant::now() < deadline, "cannot attach: {error}"),
        }
        thread::yield_now();
    }
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

pub(crate) fn greedy(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Sampling::greedy(),
        max_tokens,
        stop_tokens: Vec::new(),
    }
}

/// Reads a stream to its end; returns its tokens and its last event.
pub(crate) fn drain(mut stream: TokenStream) -> (Vec<u32>, Event) {
    let mut tokens = Vec::new();
    loop {
        match stream.next_blocking().expect("a stream ends with an end") {
            Event::Token(token) => tokens.push(token),
            end => {
                assert_eq!(stream.next_blocking(), None, "nothing follows the end");
                return (tokens, end);
            }
        }
    }
}

/// The tokens of a request that completes.
pub(crate) fn reply(client: &Client, request: Request) -> Vec<u32> {
    let (tokens, end) = drain(client.submit(request).expect("the cell takes it"));
    assert!(matches!(end, Event::Finished { .. }), "{end:?}");
    tokens
}

pub(crate) fn finish_reason(end: &Event) -> FinishReason {
    match end {
        Event::Finished { reason, .. } => *reason,
        other => panic!("{other:?}"),
    }
}
