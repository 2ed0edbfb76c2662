//! A node's side of copies.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shoal_fabric::Key;
use shoal_fabric::channel::Channel;
use shoal_fabric::lane::{Lane, Lanes};
use shoal_fabric::tcp::Config;
use tracing::{info, warn};

use super::connect::{AGREE_TIME_MAX, Terms, lane_links, note};
use super::error::{CopyError, Doing};
use super::limit::Limit;
use super::manifest::Manifest;
use super::receiver::{self, Receiving};
use super::relay::Relay;
use super::sender::Sending;
use super::source::Source;
use super::talk::Talk;
use super::wire::{CopyOrder, Message, PullOrder, PushOrder, out_of_turn};
use super::{LANES_MAX, sender};
use crate::carrier::Carrier;
use crate::store::free_bytes;

/// Gives and takes files below one folder.
pub(crate) struct CopyService {
    root: PathBuf,
    token: Key,
    links: Config,
    /// The connections for lanes that have come, by the copy's name.
    sessions: Mutex<Sessions>,
    came: Condvar,
    copies: AtomicUsize,
}

type Sessions = HashMap<String, Session>;

/// One of the copies that are under way, for as long as it is.
struct Place<'a> {
    copies: &'a AtomicUsize,
    /// How many there were without it.
    before: usize,
}

impl<'a> Place<'a> {
    fn take(copies: &'a AtomicUsize) -> Self {
        let before = copies.fetch_add(1, Ordering::Relaxed);
        Self { copies, before }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.copies.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A copy whose lanes are being opened.
struct Session {
    /// Connections for lanes that may still come.
    places: u8,
    came: Vec<Lanes>,
}

impl CopyService {
    pub(crate) fn new(root: PathBuf, token: Key, links: Config) -> Self {
        Self {
            root,
            token,
            links,
            sessions: Mutex::default(),
            came: Condvar::new(),
            copies: AtomicUsize::new(0),
        }
    }

    /// Serves one connection whose other end has proved the token, to its end.
    pub(crate) fn serve(&self, channel: Channel, order: CopyOrder) {
        let peer = channel.peer_addr();
        if let CopyOrder::Lanes { session } = order {
            self.enter(&session, channel);
            return;
        }
        let talk = Talk::over(channel, &peer.to_string());
        let place = Place::take(&self.copies);
        let outcome = if place.before < COPIES_MAX {
            self.copy(&talk, &peer, order)
        } else {
            let reason = format!("{COPIES_MAX} copies are under way; try again when one has ended");
            or_hang_up(&talk, Err(CopyError::path("busy", reason)))
        };
        drop(place);
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
                receiver::run(talk, lanes, &receiving, relay).map(|_received| ())
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
                sender::run(talk, lanes, &sending).map(|_reports| ())
            }
            CopyOrder::Lanes { .. } => Ok(()),
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
            carrier: order.carrier,
            then: then.to_vec(),
        });
        let terms = Terms {
            token: &self.token,
            links: &self.links,
            carrier: order.carrier,
        };
        let link = terms.connect(node, &order.session, order.lanes, onward);
        let limit = order.limit_bytes_per_second.map(Limit::new);
        Some(Relay::new(link, node.clone(), then.len(), limit, manifest))
    }

    /// Says that lanes may come, and waits for them.
    fn open_lanes(&self, talk: &Talk, session: &str, lanes: u8) -> Result<Vec<Lane>, CopyError> {
        if lanes == 0 || lanes > LANES_MAX {
            return Err(CopyError::Protocol(format!("{lanes} data connections")));
        }
        match self.sessions().entry(session.to_owned()) {
            Entry::Vacant(place) if session.len() <= SESSION_BYTES_MAX => {
                place.insert(Session {
                    places: lanes,
                    came: Vec::new(),
                });
            }
            _ => return Err(CopyError::Protocol("a copy of the same name".to_owned())),
        }
        let connections = talk.say(&Message::OpenLanes).and_then(|()| talk.hear());
        let until = Instant::now() + LANES_WAIT;
        let mut sessions = self.sessions();
        if let Ok(Message::LanesOpen { connections }) = connections {
            let is_missing =
                |sessions: &Sessions| sessions[session].came.len() < connections.into();
            while is_missing(&sessions) && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                let waited = self.came.wait_timeout(sessions, left);
                sessions = waited.expect("no panic under this lock").0;
            }
        }
        let came = sessions.remove(session).map(|session| session.came);
        drop(sessions);
        let Message::LanesOpen { connections } = connections? else {
            return Err(out_of_turn());
        };
        let came = came.unwrap_or_default();
        if came.is_empty() || came.len() != usize::from(connections) {
            let reason = "its data connections did not come".to_owned();
            return Err(CopyError::Protocol(reason));
        }
        let lanes: Vec<_> = came.into_iter().flat_map(|lanes| lanes.lanes).collect();
        talk.watch_over(&lanes)?;
        Ok(lanes)
    }

    /// Agrees on the lanes that a connection brings, and hands them to their copy.
    fn enter(&self, session: &str, channel: Channel) {
        let peer = channel.peer_addr().to_string();
        let place = match self.sessions().get_mut(session) {
            Some(session) => session.places.checked_sub(1).map(|left| {
                let is_first = session.came.is_empty();
                session.places = left;
                is_first
            }),
            None => None,
        };
        let Some(is_first) = place else { return };
        // RDMA and interfaces as this machine's owner has them; TCP is the choice of the other end.
        let links = lane_links(Carrier::Auto, &self.links);
        let deadline = Instant::now() + AGREE_TIME_MAX;
        match Lanes::follow(channel, &links, &self.token, deadline) {
            Ok(lanes) => {
                if is_first {
                    note(&peer, &lanes);
                }
                if let Some(session) = self.sessions().get_mut(session) {
                    session.came.push(lanes);
                    self.came.notify_all();
                }
            }
            Err(reason) => info!(peer, %reason, "no lanes"),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().expect("no panic under this lock")
    }
}

fn or_hang_up<T>(talk: &Talk, outcome: Result<T, CopyError>) -> Result<T, CopyError> {
    outcome.inspect_err(|error| talk.hang_up(error))
}

/// Each has a few threads and a hundred open files at most.
const COPIES_MAX: usize = 8;
const SESSION_BYTES_MAX: usize = 64;
const LANES_WAIT: Duration = Duration::from_secs(15);
