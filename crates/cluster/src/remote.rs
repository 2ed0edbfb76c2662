//! A node on another machine, as the supervisor sees it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::channel::{Channel, Sender};
use shoal_fabric::{FabricError, Key};
use thiserror::Error;

use crate::control::{Order, Report, Spawn, decode, encode};
use crate::supervisor::TICK;

/// A connection to a node and what it reported.
pub(crate) struct RemoteNode {
    address: String,
    local_ip: IpAddr,
    is_here: bool,
    sender: Mutex<Sender>,
    news: Arc<News>,
}

/// What the node has said.
#[derive(Default)]
struct News {
    /// How its rank ended, in words.
    ended: Mutex<Option<String>>,
    /// Pings since it last said anything; counted from when its rank runs, because starting one may take it a while.
    unanswered: AtomicU32,
    has_rank: AtomicBool,
}

/// A node cannot be used. The fabric's message names it and says what to do.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct NodeRefused(#[from] FabricError);

impl RemoteNode {
    /// Connects and proves knowledge of the token; the node proves it too.
    pub(crate) fn connect(address: &str, token: &Key) -> Result<Self, NodeRefused> {
        let channel = Channel::connect(address, token, Instant::now() + CONNECT_WAIT)?;
        let local_ip = channel.local_addr()?.ip();
        let is_here = local_ip == channel.peer_addr().ip();
        let (sender, mut receiver) = channel.split();
        let news = Arc::new(News::default());
        let heard = Arc::clone(&news);
        thread::spawn(move || {
            // Without a deadline: pings that go unanswered are counted where they are sent, so that a front which was
            // itself stopped for a while blames nobody.
            let reason = loop {
                match receiver.recv(None).and_then(|bytes| decode(&bytes)) {
                    Ok(Report::Pong) => {}
                    Ok(Report::Spawned { .. }) => heard.has_rank.store(true, Ordering::Relaxed),
                    Ok(Report::Ended { reason }) => break reason,
                    Err(error) => break format!("its node left: {error}"),
                }
                heard.unanswered.store(0, Ordering::Relaxed);
            };
            *heard.ended.lock().expect("no panic under this lock") = Some(reason);
        });
        Ok(Self {
            address: address.to_owned(),
            local_ip,
            is_here,
            sender: Mutex::new(sender),
            news,
        })
    }

    /// Connects to all of `addresses`, side by side: each may take its whole time-out.
    pub(crate) fn connect_all(addresses: &[String], token: &Key) -> Result<Vec<Self>, NodeRefused> {
        thread::scope(|scope| {
            let connections: Vec<_> = addresses
                .iter()
                .map(|address| scope.spawn(|| Self::connect(address, token)))
                .collect();
            let connected = connections
                .into_iter()
                .map(|connection| connection.join().expect("connecting does not panic"));
            connected.collect()
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The address of this machine that the node talks to.
    pub(crate) fn local_ip(&self) -> IpAddr {
        self.local_ip
    }

    /// Whether the node runs on this machine: a connection between two addresses of one machine has the same at both ends.
    pub(crate) fn is_here(&self) -> bool {
        self.is_here
    }

    /// Orders the node to start its rank.
    pub(crate) fn spawn(&self, order: Spawn) -> Result<(), NodeRefused> {
        Ok(self.order(&Order::Spawn(order))?)
    }

    /// Asks for an answer; to be called every [`TICK`].
    pub(crate) fn ping(&self) {
        if self.news.has_rank.load(Ordering::Relaxed) {
            self.news.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        // A node that is gone shows in `ended`, in `silence`, or as a lost rank.
        let _ = self.order(&Order::Ping);
    }

    /// In words, that the node's machine does not answer any more; `None` while it does, and when its rank has ended, which
    /// says more.
    pub(crate) fn silence(&self) -> Option<String> {
        let is_silent = self.news.unanswered.load(Ordering::Relaxed) >= UNANSWERED_MAX;
        (is_silent && self.ended().is_none()).then(|| {
            let silent_ms = TICK.as_millis() * u128::from(UNANSWERED_MAX);
            format!("its machine has not answered for {silent_ms} ms: it is down, or cut off")
        })
    }

    /// Counts unanswered pings from now on.
    pub(crate) fn forgive(&self) {
        self.news.unanswered.store(0, Ordering::Relaxed);
    }

    /// How the rank ended, in words, or `None` while it runs.
    pub(crate) fn ended(&self) -> Option<String> {
        let ended = self.news.ended.lock();
        ended.expect("no panic under this lock").clone()
    }

    fn order(&self, order: &Order) -> Result<(), FabricError> {
        self.sender
            .lock()
            .expect("no panic under this lock")
            .send(&encode(order))
    }
}

impl Drop for RemoteNode {
    fn drop(&mut self) {
        let _ = self.order(&Order::End);
    }
}

const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// With one tick until the first ping after the loss, and one until it is looked at, a loss is known within 2 s.
const UNANSWERED_MAX: u32 = 4;
const _: () = assert!(TICK.as_millis() * (UNANSWERED_MAX as u128 + 2) <= 2000);
