//! A node's side of copies.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use shoal_fabric::Key;
use shoal_fabric::channel::Channel;
use tracing::{info, warn};

use super::connect::{bare, connect};
use super::error::{CopyError, Doing};
use super::limit::Limit;
use super::manifest::Manifest;
use super::receiver::{self, Receiving};
use super::relay::Relay;
use super::sender::Sending;
use super::source::Source;
use super::talk::Talk;
use super::wire::{CopyOrder, Message, PullOrder, PushOrder};
use super::{LANES_MAX, sender};
use crate::store::free_bytes;

/// Gives and takes files below one folder.
pub(crate) struct CopyService {
    root: PathBuf,
    token: Key,
    /// The lanes that have come, by the copy's name.
    sessions: Mutex<HashMap<String, Vec<Option<TcpStream>>>>,
    came: Condvar,
    copies: AtomicUsize,
}

impl CopyService {
    pub(crate) fn new(root: PathBuf, token: Key) -> Self {
        Self {
            root,
            token,
            sessions: Mutex::default(),
            came: Condvar::new(),
            copies: AtomicUsize::new(0),
        }
    }

    /// Serves one connection whose other end has proved the token, to its end.
    pub(crate) fn serve(&self, channel: Channel, order: CopyOrder) {
        let peer = channel.peer_addr();
        if let CopyOrder::Lane { session, lane } = order {
            self.enter(&session, lane, channel);
            return;
        }
        let talk = Talk::over(channel, &peer.to_string());
        let copies = self.copies.fetch_add(1, Ordering::Relaxed);
        let outcome = if copies < COPIES_MAX {
            self.copy(&talk, &peer, order)
        } else {
            let reason = format!("{COPIES_MAX} copies are under way; try again when one has ended");
            or_hang_up(&talk, Err(CopyError::path("busy", reason)))
        };
        self.copies.fetch_sub(1, Ordering::Relaxed);
        match outcome {
            Ok(()) => info!(%peer, "copy ended"),
            Err(reason) => warn!(%peer, %reason, "copy stopped"),
        }
    }

    fn copy(&self, talk: &Talk, peer: &SocketAddr, order: CopyOrder) -> Result<(), CopyError> {
        match order {
            CopyOrder::Push(order) => {
                let opened =
                    std::fs::create_dir_all(&self.root).doing("making", self.root.display());
                let opened =
                    opened.and_then(|()| self.open_lanes(talk, &order.session, order.lanes));
                let lanes = or_hang_up(talk, opened)?;
                info!(%peer, to = %order.to.path, "receiving files");
                let receiving = Receiving {
                    names: None,
                    base: &self.root,
                    destination: &order.to,
                    free_bytes,
                    on_progress: &|_| {},
                };
                let relay = |manifest: &_| self.relay(&order, manifest);
                receiver::run(talk, &lanes, &receiving, relay).map(|_received| ())
            }
            CopyOrder::Pull(order) => {
                let opened = self.open_lanes(talk, &order.session, order.lanes);
                let lanes = or_hang_up(talk, opened)?;
                info!(%peer, from = ?order.from, "sending files");
                let source = Source::below(&self.root, &order.from);
                let source = or_hang_up(talk, source)?;
                let PullOrder {
                    limit_bytes_per_second,
                    ..
                } = order;
                let sending = Sending {
                    source: &source,
                    limit: limit_bytes_per_second.map(Limit::new),
                    on_progress: &|_| {},
                };
                sender::run(talk, &lanes, &sending).map(|_reports| ())
            }
            CopyOrder::Lane { .. } => Ok(()),
        }
    }

    /// Connects to the next node of the chain, if there is one.
    fn relay(&self, order: &PushOrder, manifest: &Manifest) -> Option<Relay> {
        let (node, then) = order.then.split_first()?;
        let onward = CopyOrder::Push(PushOrder {
            session: order.session.clone(),
            lanes: order.lanes,
            to: order.to.clone(),
            limit_bytes_per_second: order.limit_bytes_per_second,
            then: then.to_vec(),
        });
        let link = connect(node, &self.token, &order.session, order.lanes, onward);
        let limit = order.limit_bytes_per_second.map(Limit::new);
        Some(Relay::new(link, node.clone(), then.len(), limit, manifest))
    }

    /// Says that lanes may come, and waits for them.
    fn open_lanes(
        &self,
        talk: &Talk,
        session: &str,
        lanes: u8,
    ) -> Result<Vec<TcpStream>, CopyError> {
        if lanes == 0 || lanes > LANES_MAX {
            return Err(CopyError::Protocol(format!("{lanes} data connections")));
        }
        let lock = || self.sessions.lock().expect("no panic under this lock");
        match lock().entry(session.to_owned()) {
            Entry::Vacant(place) if session.len() <= SESSION_BYTES_MAX => {
                place.insert((0..lanes).map(|_| None).collect());
            }
            _ => return Err(CopyError::Protocol("a copy of the same name".to_owned())),
        }
        let told = talk.say(&Message::OpenLanes);
        let until = Instant::now() + LANES_WAIT;
        let mut sessions = lock();
        while told.is_ok() && sessions[session].iter().any(Option::is_none) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sessions = self
                .came
                .wait_timeout(sessions, left)
                .expect("no panic under this lock")
                .0;
        }
        let came = sessions.remove(session).unwrap_or_default();
        drop(sessions);
        told?;
        let lanes: Option<Vec<_>> = came.into_iter().collect();
        let lanes = lanes
            .ok_or_else(|| CopyError::Protocol("its data connections did not come".to_owned()))?;
        talk.watch_over(&lanes)?;
        Ok(lanes)
    }

    fn enter(&self, session: &str, lane: u8, channel: Channel) {
        let Ok(stream) = bare(channel) else { return };
        let mut sessions = self.sessions.lock().expect("no panic under this lock");
        let place = sessions
            .get_mut(session)
            .and_then(|lanes| lanes.get_mut(usize::from(lane)));
        if let Some(place @ None) = place {
            *place = Some(stream);
            self.came.notify_all();
        }
    }
}

fn or_hang_up<T>(talk: &Talk, outcome: Result<T, CopyError>) -> Result<T, CopyError> {
    outcome.inspect_err(|error| talk.hang_up(error))
}

/// Each has a few threads and a hundred open files at most.
const COPIES_MAX: usize = 8;
const SESSION_BYTES_MAX: usize = 64;
const LANES_WAIT: Duration = Duration::from_secs(15);
