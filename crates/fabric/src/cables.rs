//! Over which cables two ranks stripe the bytes of a link: found out by the two once they are connected by one of them.
//!
//! ```text
//! leader                                                      follower
//!   its addresses, with networks and speeds ─────────────────►
//!                            ◄───────────────────────────────── for each further network that both are on: where it listens
//!   (connects over each at once, and proves the key and that it belongs here)
//!   for each: that it came, or why not ──────────────────────►
//!                            ◄───────────────────────────────── how much of the bytes each one carries
//! ```
//! A cable that does not answer in [`CABLE_TIME_MAX`] is left out. Either side may say instead that nothing may carry the
//! bytes, which is the end of it for both.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::channel::Channel;
use crate::error::FabricError;
use crate::ground::Road;
use crate::handshake::Purpose;
use crate::key::{KEY_BYTES, Key, random_bytes};
use crate::link::Transport;
use crate::lobby::Lobby;
use crate::ports::{Offer, Port};
use crate::schedule::{STRANDS_MAX, TOO_SLOW, WEIGHT_MAX, weights};
use crate::socket::connect_from;
use crate::talk::{self, Talk};
use crate::tcp::Config;

/// The connections that carry the bytes of one link.
#[derive(Debug)]
pub(crate) struct Cables {
    /// Those beside the one that they were agreed on over, in the same order at both ends.
    pub(crate) further: Vec<TcpStream>,
    /// How much of the bytes that one carries, and each further one.
    pub(crate) weights: Vec<u8>,
    /// The other end's addresses, of those that carry bytes.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those that were left out, and why.
    pub(crate) left_out: Vec<String>,
}

impl Cables {
    /// Returns what carries the bytes beside the connection, if anything does.
    pub(crate) fn into_road(self) -> Road {
        match self.further.is_empty() {
            true => Road::Tcp,
            false => Road::Striped(self),
        }
    }
}

impl fmt::Display for Cables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.further.is_empty() {
            return write!(f, "{}", Transport::Tcp);
        }
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let (count, addresses) = (addresses.len(), addresses.join(", "));
        let noun = if count == 1 { "address" } else { "addresses" };
        write!(f, "{} over {count} {noun}: {addresses}", Transport::Tcp)
    }
}

/// What has to be known to agree with any peer.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) config: &'a Config,
    pub(crate) key: &'a Key,
    pub(crate) deadline: Instant,
}

impl Terms<'_> {
    /// Agrees as the end that leads, or as the other; returns the reason where nothing may carry the bytes.
    ///
    /// # Errors
    /// When the connection fails, or what the other end says cannot be read.
    pub(crate) fn agree(
        self,
        channel: &mut Channel,
        leads: bool,
    ) -> Result<Result<Cables, String>, FabricError> {
        let (near, far) = (channel.local_addr()?.ip(), channel.peer_addr().ip());
        let ours = match self.config.tcp {
            true => Offer::of_this_machine(&self.config.interfaces, near, far),
            false => Err("switched off at this end".to_owned()),
        };
        let mut talk = Talk::new(channel, self.deadline, "its network interfaces");
        match (ours, leads) {
            (Err(reason), true) => talk.decline(reason),
            (Err(reason), false) => match talk.hear()? {
                Ok(_) => talk.decline(reason),
                Err(_) => Ok(Err(reason)),
            },
            (Ok(ours), true) => self.lead(&mut talk, &ours, far),
            (Ok(ours), false) => self.follow(&mut talk, &ours, far),
        }
    }

    fn lead(
        self,
        talk: &mut Talk<'_>,
        ours: &Offer,
        far: IpAddr,
    ) -> Result<Result<Cables, String>, FabricError> {
        talk.say(&ours.encode())?;
        let proposal = match talk.hear()? {
            Ok(proposal) => talk.understand(Proposal::decode(&proposal, ours.further.len()))?,
            Err(reason) => return Ok(Err(reason)),
        };
        let until = talk.within(CABLE_TIME_MAX);
        let mut reached = Vec::with_capacity(proposal.places.len());
        thread::scope(|scope| {
            let connecting: Vec<_> = proposal
                .places
                .iter()
                .map(|&(place, to)| {
                    let own = ours.further[place].ip;
                    let ticket = proposal.ticket(place);
                    scope.spawn(move || self.reach(own, to, &ticket, until))
                })
                .collect();
            for handle in connecting {
                let outcome = handle.join().unwrap_or_else(|panic| resume_unwind(panic));
                reached.push(outcome);
            }
        });
        let told = reached.iter().map(|came| match came {
            Ok(_) => CAME.to_owned(),
            Err(reason) => talk::reason(reason),
        });
        let told: Vec<String> = told.collect();
        talk.say(told.join("\n").as_bytes())?;
        let weights = match talk.hear()? {
            Ok(weights) => weights,
            Err(reason) => return Ok(Err(reason)),
        };
        let reached = reached.into_iter().map(Result::ok).collect();
        let came = settle(&weights, reached, far);
        let mut cables = talk.understand(came)?;
        cables.left_out = left_out(&proposal, &told, &weights);
        Ok(Ok(cables))
    }

    /// Connects over one more cable.
    fn reach(
        self,
        own: IpAddr,
        to: SocketAddr,
        ticket: &[u8],
        until: Instant,
    ) -> Result<TcpStream, String> {
        let connected = connect_from(own, to, until);
        let stream = connected.map_err(|error| format!("{own} does not reach it ({error})"))?;
        let through = || {
            let mut channel = Channel::over(stream, self.key, Purpose::Cable, until)?;
            channel.send(&[ticket, &FILL[..]].concat())?;
            channel.recv(Some(until))?;
            Ok(channel.into_stream())
        };
        through().map_err(|error: FabricError| error.to_string())
    }

    fn follow(
        self,
        talk: &mut Talk<'_>,
        ours: &Offer,
        far: IpAddr,
    ) -> Result<Result<Cables, String>, FabricError> {
        let theirs = match talk.hear()? {
            Ok(offer) => talk.understand(Offer::decode(&offer))?,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut proposal = Proposal {
            nonce: random_bytes(),
            places: Vec::new(),
        };
        let (mut speeds, mut awaited) = (Vec::new(), Vec::new());
        let until = talk.within(2 * CABLE_TIME_MAX);
        for (own, place) in ours.in_common_with(&theirs) {
            let own = &ours.further[own];
            match self.listen(own, proposal.ticket(place), until) {
                Ok((at, coming)) => {
                    proposal.places.push((place, at));
                    speeds.push(own.speed_with(&theirs.further[place]));
                    awaited.push(coming);
                }
                Err(error) => warn!(%error, ip = %own.ip, "cannot listen for a further cable"),
            }
        }
        talk.say(&proposal.encode())?;
        let told = match talk.hear()? {
            Ok(told) => told,
            Err(reason) => return Ok(Err(reason)),
        };
        let told = String::from_utf8_lossy(&told);
        let told: Vec<String> = told.lines().map(talk::reason).collect();
        if told.len() != awaited.len() {
            return Err(talk.broken());
        }
        let came = awaited.iter().zip(&told).map(|(coming, told)| {
            // It said that it got an answer, so the thread that gave it is about to hand the connection over.
            let left = until.saturating_duration_since(Instant::now());
            (**told == *CAME)
                .then(|| coming.recv_timeout(left).ok())
                .flatten()
        });
        let came: Vec<Option<TcpStream>> = came.collect();
        let speeds = came
            .iter()
            .zip(speeds)
            .map(|(came, speed)| came.as_ref().map(|_| speed));
        let near = ours.near.allowed_with(&theirs.near);
        let near = near.then(|| ours.near.speed_with(&theirs.near));
        let speeds: Vec<Option<u32>> = [near].into_iter().chain(speeds).collect();
        let weights = weights(&speeds);
        match settle(&weights, came, far) {
            Some(mut cables) => {
                talk.say(&weights)?;
                cables.left_out = left_out(&proposal, &told, &weights);
                Ok(Ok(cables))
            }
            None => talk.decline(ours.denial(&theirs)),
        }
    }

    /// Listens for one more cable until then; whoever comes has to show the ticket.
    fn listen(
        self,
        own: &Port,
        ticket: Vec<u8>,
        until: Instant,
    ) -> std::io::Result<(SocketAddr, mpsc::Receiver<TcpStream>)> {
        let listener = TcpListener::bind(SocketAddr::new(own.ip, 0))?;
        let at = listener.local_addr()?;
        let key = self.key.clone();
        let mut lobby = Lobby::new(listener, move |stream| {
            let mut channel = Channel::accept_for(stream, &key, Purpose::Cable, until)?;
            let shown = channel.recv(Some(until))?;
            if shown.strip_suffix(&FILL[..]) != Some(&ticket[..]) {
                return Err(FabricError::Protocol {
                    rank: None,
                    peer: channel.peer_addr().to_string(),
                    reason: "it belongs to another link".to_owned(),
                });
            }
            channel.send(&FILL)?;
            Ok(channel.into_stream())
        })?;
        let (sender, coming) = mpsc::channel();
        // Ends by itself, after the conversation if nobody comes.
        thread::Builder::new()
            .name("cable".to_owned())
            .spawn(move || {
                loop {
                    match lobby.next(until) {
                        Ok(Some(Ok(stream))) => {
                            let _nobody_may_wait = sender.send(stream);
                            return;
                        }
                        Ok(Some(Err(error))) => warn!(%error, "turned a connection away"),
                        Ok(None) | Err(_) => return,
                    }
                }
            })?;
        Ok((at, coming))
    }
}

/// What goes each way before a cable counts: one that lets only short packets through would stop a group in its first step.
static FILL: [u8; 64 * 1024] = [0; 64 * 1024];

/// Where the follower awaits the leader, by the places of the leader's addresses.
struct Proposal {
    nonce: [u8; KEY_BYTES],
    places: Vec<(usize, SocketAddr)>,
}

impl Proposal {
    /// Returns what a connection says to be let in.
    fn ticket(&self, place: usize) -> Vec<u8> {
        [&self.nonce[..], &(place as u64).to_le_bytes()].concat()
    }

    fn encode(&self) -> Vec<u8> {
        let places = self
            .places
            .iter()
            .map(|(place, at)| format!("{place} {at}"));
        let places: Vec<String> = places.collect();
        [&self.nonce[..], places.join("\n").as_bytes()].concat()
    }

    /// Reads one that answers `offered` addresses.
    fn decode(bytes: &[u8], offered: usize) -> Option<Self> {
        let (nonce, places) = bytes.split_first_chunk()?;
        let place = |line: &str| {
            let (place, at) = line.split_once(' ')?;
            let place = place.parse().ok().filter(|place| *place < offered)?;
            Some((place, at.parse().ok()?))
        };
        let places = str::from_utf8(places).ok()?.lines().map(place);
        let places: Vec<_> = places.take(STRANDS_MAX).collect::<Option<_>>()?;
        (places.len() < STRANDS_MAX).then_some(Self {
            nonce: *nonce,
            places,
        })
    }
}

/// Keeps those that carry something; nothing when none does, or one that did not come.
fn settle(weights: &[u8], came: Vec<Option<TcpStream>>, far: IpAddr) -> Option<Cables> {
    let (near, further) = weights.split_first()?;
    let is_sound =
        further.len() == came.len() && weights.iter().all(|weight| *weight <= WEIGHT_MAX);
    if !is_sound || weights.iter().all(|weight| *weight == 0) {
        return None;
    }
    let mut cables = Cables {
        further: Vec::new(),
        weights: vec![*near],
        addresses: (*near > 0)
            .then_some(far.to_canonical())
            .into_iter()
            .collect(),
        left_out: Vec::new(),
    };
    for (weight, stream) in further.iter().zip(came).filter(|(weight, _)| **weight > 0) {
        let stream = stream?;
        let address = stream.peer_addr().ok()?.ip();
        cables.addresses.push(address.to_canonical());
        cables.weights.push(*weight);
        cables.further.push(stream);
    }
    Some(cables)
}

/// Says which of the cables carry nothing, and why.
fn left_out(proposal: &Proposal, told: &[String], weights: &[u8]) -> Vec<String> {
    let weights = weights.iter().skip(1);
    let cables = proposal.places.iter().zip(told).zip(weights);
    let idle = cables.filter(|(_, weight)| **weight == 0);
    let reasons = idle.map(|(((_, at), told), _)| match &**told {
        CAME => format!("not over {}: {TOO_SLOW}", at.ip()),
        reason => format!("not over {}: {reason}", at.ip()),
    });
    reasons.collect()
}

/// What is said of a cable that answers; reasons are longer.
const CAME: &str = "+";
/// How long a further cable may take to answer.
const CABLE_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            if let Some(proposal) = Proposal::decode(&bytes, 3) {
                prop_assert!(proposal.places.iter().all(|(place, _)| *place < 3));
            }
        }
    }

    #[test]
    fn a_proposal_survives_and_is_bounded() {
        let at: SocketAddr = "[2001:db8::1]:5".parse().expect("an address");
        let proposal = |places| Proposal {
            nonce: [7; KEY_BYTES],
            places,
        };
        let sent = proposal(vec![(2, at), (0, at)]);
        let came = Proposal::decode(&sent.encode(), 3).expect("it was just encoded");
        assert_eq!((came.nonce, came.places), (sent.nonce, sent.places));
        let sent = proposal(vec![(2, at)]);
        assert!(Proposal::decode(&sent.encode(), 2).is_none());
        let sent = proposal(vec![(0, at); STRANDS_MAX]);
        assert!(Proposal::decode(&sent.encode(), 3).is_none());
    }
}
