//! A node on another machine, as the supervisor sees it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::channel::{Channel, Sender};
use shoal_fabric::{FabricError, Key};
use thiserror::Error;

use crate::control::{Order, Report, Spawn, decode, encode};

/// A connection to a node and what it reported.
pub(crate) struct RemoteNode {
    address: String,
    cell: String,
    local_ip: IpAddr,
    is_here: bool,
    sender: Mutex<Sender>,
    ended: Arc<Mutex<Option<String>>>,
}

/// A node cannot be used. The fabric's message names it and says what to do.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct NodeRefused(#[from] FabricError);

impl RemoteNode {
    /// Connects and proves knowledge of the token; the node proves it too.
    pub(crate) fn connect(address: &str, cell: &str, token: &Key) -> Result<Self, NodeRefused> {
        let channel = Channel::connect(address, token, Instant::now() + CONNECT_WAIT)?;
        let local_ip = channel.local_addr()?.ip();
        let is_here = local_ip == channel.peer_addr().ip();
        let (sender, mut receiver) = channel.split();
        let ended = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&ended);
        thread::spawn(move || {
            // The node speaks only when there is news, so its silence means nothing and a deadline would be wrong. A
            // connection that ends, or whose other machine vanishes, ends the wait by itself; a node that hangs does not,
            // and takes nothing from its rank, which the fabric watches.
            let reason = loop {
                match receiver.recv(None).and_then(|bytes| decode(&bytes)) {
                    Ok(Report::Spawned { .. }) => {}
                    Ok(Report::Ended { reason }) => break reason,
                    Err(error) => break format!("its node left: {error}"),
                }
            };
            *heard.lock().expect("no panic under this lock") = Some(reason);
        });
        Ok(Self {
            address: address.to_owned(),
            cell: cell.to_owned(),
            local_ip,
            is_here,
            sender: Mutex::new(sender),
            ended,
        })
    }

    /// Connects to all of `addresses`, side by side: each may take its whole time-out.
    pub(crate) fn connect_all(
        addresses: &[String],
        cell: &str,
        token: &Key,
    ) -> Result<Vec<Self>, NodeRefused> {
        thread::scope(|scope| {
            let connections: Vec<_> = addresses
                .iter()
                .map(|address| scope.spawn(|| Self::connect(address, cell, token)))
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

    /// Keeps the connection alive.
    pub(crate) fn ping(&self) {
        // A node that is gone shows in `ended`, or as a lost rank.
        let _ = self.order(&Order::Ping);
    }

    /// How the rank ended, in words, or `None` while it runs.
    pub(crate) fn ended(&self) -> Option<String> {
        self.ended.lock().expect("no panic under this lock").clone()
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
        let _ = self.order(&Order::End {
            cell: self.cell.clone(),
        });
    }
}

const CONNECT_WAIT: Duration = Duration::from_secs(5);
