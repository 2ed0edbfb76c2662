//! Forms a group over TCP.
//!
//! Rank 0 opens a [`Rendezvous`]; every other rank [joins](join) it, and says where it listens itself: on the address by
//! which it reached rank 0, so that is the network the group uses. Rank 0 answers all of them at once, when they are
//! complete, with everybody's address; then every rank connects to the ones below it. On each connection one end offers
//! memory, and the two share it if the other end can open it, which it cannot from another machine; if not, they look
//! whether RDMA devices of theirs reach each other; if not, whether further cables join them. All of this is authenticated, every connection for itself, message by
//! message; the frames of the collectives that follow are neither authenticated nor encrypted, so the group trusts whoever
//! can read or alter packets between its machines. Strangers at a port are turned away and stop nobody.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use tracing::{Span, info, warn};

use crate::cables::Terms;
use crate::channel::Channel;
use crate::error::FabricError;
use crate::ground::{Ground, Lead, Road};
use crate::group::Group;
use crate::handshake::Purpose;
use crate::invitation::{Join, Reply};
use crate::key::{KEY_BYTES, Key, random_bytes};
use crate::lobby::Lobby;
use crate::pace::Pace;
use crate::rank::{Rank, WORLD_MAX};
use crate::socket::{TcpLinks, has_one_address, poll_for};
use crate::verbs::Devices;

pub use crate::config::{Config, Rdma};

/// Where rank 0 waits for the others.
#[derive(Debug)]
pub struct Rendezvous {
    listener: TcpListener,
    address: SocketAddr,
    world: usize,
    key: Key,
    config: Config,
}

impl Rendezvous {
    /// Listens at `addr`, IPv4 or IPv6, for the other ranks of a group of `world`; port 0 takes any free one.
    ///
    /// # Errors
    /// [`FabricError::Io`] when the address cannot be listened at, [`FabricError::Invalid`] for a world of 0 or above
    /// [`WORLD_MAX`].
    pub fn bind(addr: SocketAddr, world: usize, key: Key) -> Result<Self, FabricError> {
        check_world(world)?;
        let listener = TcpListener::bind(addr)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            world,
            key,
            config: Config::default(),
        })
    }

    /// Sets how this rank is linked to the others.
    #[must_use]
    pub fn with(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits for all other ranks and connects them; returns rank 0's place in the group.
    ///
    /// Whoever fails to prove the token, or asks for a place that is taken, is refused, and the wait goes on.
    ///
    /// # Errors
    /// [`FabricError::Timeout`] naming the first rank that is missing at the deadline, or what was wrong with the last one
    /// refused for its token or version; [`FabricError::RankLost`] for one that joined and left.
    pub fn accept(self, deadline: Instant) -> Result<Group, FabricError> {
        let started = Instant::now();
        let (world, config, own_key) = (self.world, &self.config, self.key.clone());
        let mut lobby = Lobby::new(self.listener, move |stream| {
            let deadline = deadline.min(Instant::now() + GREETING_TIME_MAX);
            let mut channel = Channel::accept_for(stream, &own_key, Purpose::Rendezvous, deadline)?;
            let join = Join::decode(&channel.recv(Some(deadline))?)
                .map_err(|reason| broke(&channel, reason))?;
            Ok((channel, join))
        })?;
        let mut seats: Vec<Option<(Channel, SocketAddr)>> = (1..world).map(|_| None).collect();
        let mut refused = None;
        while let Some(missing) = seats.iter().position(Option::is_none) {
            match lobby.next(deadline)? {
                Some(Ok((channel, join))) => seat(&mut seats, channel, join),
                Some(Err(error)) => {
                    warn!(%error, "turned a connection away");
                    if matches!(
                        error,
                        FabricError::WrongToken { .. } | FabricError::VersionMismatch { .. }
                    ) {
                        refused = Some(error);
                    }
                }
                None => return Err(refused.unwrap_or_else(|| late(missing + 1, started, JOINING))),
            }
        }
        let (channels, addresses): (Vec<Channel>, Vec<SocketAddr>) =
            seats.into_iter().flatten().unzip();
        let table = Reply::Table {
            group: random_bytes(),
            addresses,
        }
        .encode();
        let mut forming: Vec<Option<(Channel, Lead)>> = Vec::with_capacity(channels.len());
        for (index, mut channel) in channels.into_iter().enumerate() {
            let lead = Lead::new(config);
            channel
                .send(&table)
                .and_then(|()| channel.send(lead.offer()))
                .map_err(|error| of_rank(index + 1, error, started, JOINING))?;
            forming.push(Some((channel, lead)));
        }
        let devices = Devices::default();
        let mut peers: Vec<Option<(Channel, Ground)>> = (0..world).map(|_| None).collect();
        while let Some(index) = first_to_speak(&forming, started, deadline)? {
            let (mut channel, lead) = forming[index].take().expect("it was waited for");
            let answer = channel
                .recv(Some(deadline))
                .map_err(|error| of_rank(index + 1, error, started, CONNECTING))?;
            let ground = lead
                .conclude(&answer)
                .map_err(|reason| broke(&channel, reason))?
                .or_rdma(|| devices.lead(config, &mut channel, deadline))
                .map_err(|error| of_rank(index + 1, error, started, CONNECTING))?;
            peers[index + 1] = Some((channel, ground));
        }
        let terms = Terms {
            config,
            key: &self.key,
            deadline,
        };
        group(terms, Rank(0), peers)?.choose_topology(deadline)
    }
}

/// [Joins](join_with) with the usual [`Config`].
///
/// # Errors
/// See [`join_with`].
pub fn join(
    rendezvous: SocketAddr,
    rank: Rank,
    world: usize,
    key: Key,
    deadline: Instant,
) -> Result<Group, FabricError> {
    join_with(Config::default(), rendezvous, rank, world, key, deadline)
}

/// Joins the group of `world` whose rank 0 waits at `rendezvous`, as `rank`; returns this rank's place in the group.
///
/// The other ranks connect to the local address by which `rendezvous` was reached: over machines, no rank should be given
/// a loopback address, not even one on rank 0's own machine.
///
/// # Errors
/// [`FabricError::Unreachable`], [`FabricError::WrongToken`], [`FabricError::VersionMismatch`],
/// [`FabricError::Refused`] when the place is taken or the world is another, [`FabricError::Timeout`] or
/// [`FabricError::RankLost`] naming the rank that did not come or left, [`FabricError::Invalid`] for a rank that does not
/// fit the world.
pub fn join_with(
    config: Config,
    rendezvous: SocketAddr,
    rank: Rank,
    world: usize,
    key: Key,
    deadline: Instant,
) -> Result<Group, FabricError> {
    check_world(world)?;
    if rank.index() >= world || rank == Rank(0) {
        return Err(FabricError::Invalid(format!(
            "{rank} cannot join a group of {world}: ranks 1 to N-1 join rank 0"
        )));
    }
    let started = Instant::now();
    let mut root = Channel::connect_for(
        rendezvous,
        &rendezvous.to_string(),
        &key,
        Purpose::Rendezvous,
        deadline,
    )?;
    let mut own = root.local_addr()?;
    own.set_port(0);
    let listener = TcpListener::bind(own)?;
    root.send(
        &Join {
            rank,
            world,
            listens: listener.local_addr()?,
        }
        .encode(),
    )?;
    let reply = root
        .recv(Some(deadline))
        .map_err(|error| of_rank(0, error, started, JOINING))?;
    let (group_id, addresses) =
        match Reply::decode(&reply).map_err(|reason| broke(&root, reason))? {
            Reply::Refused(reason) => {
                return Err(FabricError::Refused {
                    peer: rendezvous.to_string(),
                    reason,
                });
            }
            Reply::Table { addresses, .. } if addresses.len() != world - 1 => {
                return Err(broke(
                    &root,
                    format!("its table has {} ranks", addresses.len()),
                ));
            }
            Reply::Table { group, addresses } => (group, addresses),
        };
    let offer = root
        .recv(Some(deadline))
        .map_err(|error| of_rank(0, error, started, JOINING))?;

    let devices = Devices::default();
    let mut peers: Vec<Option<(Channel, Ground)>> = (0..world).map(|_| None).collect();
    for below in 1..rank.index() {
        let address = in_scope_of(own, addresses[below - 1]);
        let name = format!("{} at {address}", Rank::at(below));
        let met = Channel::connect_for(address, &name, &key, Purpose::Mesh, deadline).and_then(
            |mut channel| {
                let terms = (&config, &devices);
                let ground = introduce(&mut channel, terms, group_id, rank, deadline)?;
                Ok((channel, ground))
            },
        );
        peers[below] = Some(met.map_err(|error| of_rank(below, error, started, CONNECTING))?);
    }
    let (own_key, own_config, own_devices) = (key.clone(), config.clone(), devices.clone());
    let mut lobby = Lobby::new(listener, move |stream| {
        let greeted_by = deadline.min(Instant::now() + GREETING_TIME_MAX);
        let mut channel = Channel::accept_for(stream, &own_key, Purpose::Mesh, greeted_by)?;
        let terms = (&own_config, &own_devices);
        let (from, ground) = welcome(&mut channel, terms, group_id, greeted_by, deadline)?;
        Ok((channel, from, ground))
    })?;
    while let Some(missing) = (rank.index() + 1..world).find(|above| peers[*above].is_none()) {
        match lobby.next(deadline)? {
            Some(Ok((channel, from, ground))) if from > rank && from.index() < world => {
                peers[from.index()] = Some((channel, ground));
            }
            Some(Ok((_, from, _))) => {
                warn!(%from, "turned a rank away that should not connect here")
            }
            Some(Err(error)) => warn!(%error, "turned a connection away"),
            None => return Err(late(missing, started, CONNECTING)),
        }
    }
    let (answer, ground) = Ground::seek(&config, &offer);
    let ground = root
        .send(&answer)
        .and_then(|()| ground.or_rdma(|| devices.follow(&config, &mut root, deadline)))
        .map_err(|error| of_rank(0, error, started, CONNECTING))?;
    peers[0] = Some((root, ground));
    let terms = Terms {
        config: &config,
        key: &key,
        deadline,
    };
    group(terms, rank, peers)?.choose_topology(deadline)
}

/// Waits until a rank speaks or hangs up, and returns its place; nothing once all have spoken.
///
/// Of several the lowest: a rank that dies takes only those above it along, which connect to it.
fn first_to_speak(
    forming: &[Option<(Channel, Lead)>],
    started: Instant,
    deadline: Instant,
) -> Result<Option<usize>, FabricError> {
    let waiting = forming.iter().enumerate().filter_map(|(place, rank)| {
        let (channel, _) = rank.as_ref()?;
        Some((place, PollFd::new(channel.stream(), PollFlags::IN)))
    });
    let (places, mut fds): (Vec<usize>, Vec<PollFd<'_>>) = waiting.unzip();
    let Some(first) = places.first() else {
        return Ok(None);
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        poll_for(&mut fds, left)?;
        if let Some(at) = fds.iter().position(|fd| !fd.revents().is_empty()) {
            return Ok(Some(places[at]));
        }
        if left.is_zero() {
            return Err(late(first + 1, started, CONNECTING));
        }
    }
}

/// Gives a rank its place, or tells it why not.
fn seat(seats: &mut [Option<(Channel, SocketAddr)>], mut channel: Channel, join: Join) {
    let Join {
        rank,
        world,
        listens,
    } = join;
    let peer = channel.peer_addr();
    let mut refuse = |reason: String| {
        warn!(%rank, %peer, reason, "refused a rank");
        let _it_may_be_gone = channel.send(&Reply::Refused(reason).encode());
    };
    if world != seats.len() + 1 {
        return refuse(format!(
            "the cell has {} ranks and {rank} was started for {world}",
            seats.len() + 1
        ));
    }
    let Some(seat) = rank
        .index()
        .checked_sub(1)
        .and_then(|index| seats.get_mut(index))
    else {
        return refuse(format!("a cell of {world} has no place for {rank} to join"));
    };
    // One that was started again takes the place of its former self.
    if seat.as_ref().is_some_and(|(former, _)| !former.has_ended()) {
        return refuse(format!("{rank} is there already: start every rank once"));
    }
    info!(%rank, %peer, "rank joined");
    *seat = Some((channel, listens));
}

/// Says to a rank below who connects, and waits until it agrees.
fn introduce(
    channel: &mut Channel,
    (config, devices): (&Config, &Devices),
    group: [u8; KEY_BYTES],
    rank: Rank,
    deadline: Instant,
) -> Result<Ground, FabricError> {
    let lead = Lead::new(config);
    channel.send(&[&group[..], &rank.0.to_le_bytes(), lead.offer()].concat())?;
    let answer = channel.recv(Some(deadline))?;
    lead.conclude(&answer)
        .map_err(|reason| broke(channel, reason))?
        .or_rdma(|| devices.lead(config, channel, deadline))
}

/// Hears from a rank above who connects, and agrees if it is of the same group.
fn welcome(
    channel: &mut Channel,
    (config, devices): (&Config, &Devices),
    group: [u8; KEY_BYTES],
    greeted_by: Instant,
    deadline: Instant,
) -> Result<(Rank, Ground), FabricError> {
    let introduction = channel.recv(Some(greeted_by))?;
    let (rank, offer) = introduction
        .strip_prefix(&group)
        .and_then(<[u8]>::split_first_chunk)
        .ok_or_else(|| broke(channel, "it belongs to another group".to_owned()))?;
    let (answer, ground) = Ground::seek(config, offer);
    channel.send(&answer)?;
    let ground = ground.or_rdma(|| devices.follow(config, channel, deadline))?;
    Ok((Rank(u16::from_le_bytes(*rank)), ground))
}

/// Makes the group of ranks that are connected.
///
/// Each two settle what is left to settle at the same time as all others: of many cables that do not answer, none is
/// waited for after another.
fn group(
    terms: Terms<'_>,
    rank: Rank,
    peers: Vec<Option<(Channel, Ground)>>,
) -> Result<Group, FabricError> {
    let (world, started) = (peers.len(), Instant::now());
    let settle = |index: usize, (mut channel, ground): (Channel, Ground)| {
        // As before, when memory was offered.
        let leads = rank == Rank(0) || (1..rank.index()).contains(&index);
        let peer = Rank::at(index);
        let road = ground.settle(rank, peer, |why| {
            let agreed = terms.agree(&mut channel, leads);
            let agreed = agreed.map_err(|error| of_rank(index, error, started, CONNECTING))?;
            agreed.map_err(|reason| FabricError::NoTransport {
                peer: peer.to_string(),
                reason: format!("{why}; tcp: {reason}"),
            })
        })?;
        Ok::<_, FabricError>((channel.into_stream(), road))
    };
    let span = Span::current();
    let mut lines: Vec<Option<(TcpStream, Road)>> = (0..world).map(|_| None).collect();
    let (tell, settled) = mpsc::channel();
    thread::scope(|scope| {
        for (index, peer) in peers.into_iter().enumerate() {
            let (settle, span, tell) = (&settle, &span, tell.clone());
            if let Some(peer) = peer {
                let settling = thread::Builder::new().name("settling".to_owned());
                settling.spawn_scoped(scope, move || {
                    let outcome = span.in_scope(|| settle(index, peer));
                    let _one_may_have_failed = tell.send((index, outcome));
                })?;
            }
        }
        drop(tell);
        // The first that fails names the rank: the others may have given up because of it.
        for (index, outcome) in settled {
            lines[index] = Some(outcome?);
        }
        Ok::<_, FabricError>(())
    })?;
    let is_local = |(stream, road): &&(TcpStream, Road)| {
        matches!(road, Road::Shared(_)) || has_one_address(stream)
    };
    let local_ranks = 1 + lines.iter().flatten().filter(is_local).count();
    info!(%rank, world, local_ranks, "group formed");
    Ok(Group::new(
        rank,
        world,
        Box::new(TcpLinks::new(lines)?),
        Pace::of_machine(local_ranks),
    ))
}

/// Returns `address` as this machine must call it: a link-local address names its interface by a number of our own.
fn in_scope_of(own: SocketAddr, address: SocketAddr) -> SocketAddr {
    match (own, address) {
        (SocketAddr::V6(own), SocketAddr::V6(mut theirs))
            if theirs.ip().is_unicast_link_local() =>
        {
            theirs.set_scope_id(own.scope_id());
            SocketAddr::V6(theirs)
        }
        _ => address,
    }
}

fn check_world(world: usize) -> Result<(), FabricError> {
    if (1..=WORLD_MAX).contains(&world) {
        Ok(())
    } else {
        Err(FabricError::Invalid(format!(
            "a group of {world} ranks; 1 to {WORLD_MAX} are possible"
        )))
    }
}

/// Returns the error for a rank whose connection failed while the group was being formed.
fn of_rank(index: usize, error: FabricError, started: Instant, doing: &'static str) -> FabricError {
    match error {
        FabricError::Silent { .. } => late(index, started, doing),
        FabricError::Closed { reason, .. } => FabricError::RankLost {
            rank: Rank::at(index),
            reason,
        },
        FabricError::Unreachable { .. } => FabricError::RankLost {
            rank: Rank::at(index),
            reason: error.to_string(),
        },
        error => error,
    }
}

fn late(index: usize, started: Instant, doing: &'static str) -> FabricError {
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    FabricError::Timeout {
        rank: Rank::at(index),
        waited_ms,
        doing,
        cable: None,
    }
}

fn broke(channel: &Channel, reason: String) -> FabricError {
    FabricError::Protocol {
        rank: None,
        peer: channel.peer_addr().to_string(),
        reason,
    }
}

const JOINING: &str = "waiting for all ranks to join";
const CONNECTING: &str = "connecting the ranks to each other";
/// How long somebody who connects may take to prove who they are.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins as far as the table, and no further.
    fn seated(rendezvous: SocketAddr, rank: u16, key: &Key, deadline: Instant) -> Channel {
        let name = rendezvous.to_string();
        let purpose = Purpose::Rendezvous;
        let root = Channel::connect_for(rendezvous, &name, key, purpose, deadline);
        let mut root = root.expect("rank 0 waits");
        let join = Join {
            rank: Rank(rank),
            world: 3,
            listens: rendezvous,
        };
        root.send(&join.encode()).expect("rank 0 hears");
        root
    }

    #[test]
    fn a_rank_that_dies_while_the_group_forms_is_named_whatever_others_wait_for() {
        let (key, deadline) = (Key::random(), Instant::now() + Duration::from_secs(60));
        let listen = "127.0.0.1:0".parse().expect("an address");
        let rendezvous = Rendezvous::bind(listen, 3, key.clone()).expect("a free port");
        let address = rendezvous.local_addr();
        let root = thread::spawn(move || rendezvous.accept(deadline));
        // Rank 1 is up, and waits for rank 2.
        let mut first = seated(address, 1, &key, deadline);
        let mut second = seated(address, 2, &key, deadline);
        for rank in [&mut first, &mut second] {
            rank.recv(Some(deadline)).expect("the table");
        }
        drop(second);
        let error = root
            .join()
            .expect("no panic")
            .err()
            .expect("a rank is gone");
        assert_eq!(error.lost_rank(), Some(Rank(2)), "{error}");
        drop(first);
    }
}
