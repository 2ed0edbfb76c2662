//! Whether two ranks exchange bytes over RDMA, and why: found out by the two while their connection is set up.
//!
//! ```text
//! leader                                                      follower
//!   addresses of its devices ───────────────────────────────►
//!                            ◄─────────────────────────────── which of them it takes, each with its end of a connection
//!   for each: its end of the connection, ready to receive ──►
//!                            ◄─────────────────────────────── for each: ready to receive; a message through the devices
//!   for each: a message through the devices; that the other came ►
//!                            ◄─────────────────────────────── for each: that the other came
//! ```
//! Instead of any of these, either side may say why not. The connections that are left in the end carry the bytes together;
//! once none is left, that is the end of it: they use TCP.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::choice::choose;
use super::device::{Address, Device};
use super::endpoint::{Candidate, Candidates, Endpoint, Kind, Proposal};
use super::flow::Flow;
use super::flows::Flows;
use super::hello::{self, Patience};
use super::pair::QueuePair;
use super::trial::{No, Trial};
use crate::channel::Channel;
use crate::error::FabricError;
use crate::key::random_bytes;
use crate::schedule::STRANDS_MAX;
use crate::talk::Talk;
use crate::tcp::{Config, Rdma};

/// The RDMA devices of this machine, looked for when they are first wanted.
#[derive(Clone, Default)]
pub(crate) struct Devices {
    found: Arc<OnceLock<Result<Vec<Arc<Device>>, String>>>,
    /// First messages that were waited for in vain.
    in_vain: Arc<AtomicU32>,
}

/// What two ranks have found out: connections that carry messages, or why there are none.
pub(crate) type Agreement = Result<Flows, String>;

impl Devices {
    /// Whether any have been looked for and found.
    pub(crate) fn were_found(&self) -> bool {
        self.found.get().is_some_and(Result::is_ok)
    }

    /// Agrees as the end that leads.
    ///
    /// # Errors
    /// When the connection fails, or what the other end says cannot be read.
    pub(crate) fn lead(
        &self,
        config: &Config,
        channel: &mut Channel,
        deadline: Instant,
    ) -> Result<Agreement, FabricError> {
        let mut talk = Talk::new(channel, deadline, "RDMA");
        match self.offer(config, &mut talk, deadline) {
            Ok(flows) => Ok(Ok(flows)),
            Err(no) => no.conclude(&mut talk),
        }
    }

    /// Agrees as the end that follows.
    ///
    /// # Errors
    /// When the connection fails, or what the other end says cannot be read.
    pub(crate) fn follow(
        &self,
        config: &Config,
        channel: &mut Channel,
        deadline: Instant,
    ) -> Result<Agreement, FabricError> {
        let ends = (channel.local_addr()?.ip(), channel.peer_addr().ip());
        let mut talk = Talk::new(channel, deadline, "RDMA");
        match self.choose(config, ends, &mut talk, deadline) {
            Ok(flows) => Ok(Ok(flows)),
            Err(no) => no.conclude(&mut talk),
        }
    }

    fn offer(&self, config: &Config, talk: &mut Talk<'_>, deadline: Instant) -> Result<Flows, No> {
        let addresses = addresses(self.look(config.rdma)?);
        let ours = Candidates {
            all: candidates(&addresses),
            unreliable: config.rdma == Rdma::Unreliable,
        };
        talk.say(&ours.encode())?;
        let proposals = talk.hear_each()?.map_err(No::Theirs)?;
        let (mut trial, mut speeds_mbps) = (Trial::default(), Vec::new());
        for proposal in proposals.into_iter().flatten().take(STRANDS_MAX) {
            let proposal = talk.understand(Proposal::decode(&proposal))?;
            let peer = proposal.endpoint;
            if ours.unreliable && peer.kind == Kind::Reliable {
                return Err(talk.broken().into());
            }
            let address = addresses.get(usize::from(proposal.place));
            let (_, device, address) = *talk.understand(address)?;
            let pair = QueuePair::new(device, address, &[peer.kind], random_psn());
            let flow = pair.and_then(|pair| connected(pair, &peer));
            trial.ways.push(flow);
            speeds_mbps.push(proposal.speed_mbps);
        }
        trial.tell(talk, |flow| flow.pair.endpoint().encode())?;
        trial.hear(talk)?;
        trial.tried().for_each(Flow::say_hello);
        self.hear_hello(&mut trial, config, deadline);
        trial.tell(talk, |_| Vec::new())?;
        trial.hear(talk)?;
        settle(trial, speeds_mbps)
    }

    fn choose(
        &self,
        config: &Config,
        (near, far): (IpAddr, IpAddr),
        talk: &mut Talk<'_>,
        deadline: Instant,
    ) -> Result<Flows, No> {
        let offer = talk.hear()?.map_err(No::Theirs)?;
        let theirs = talk.understand(Candidates::decode(&offer))?;
        let kinds: &[Kind] = match theirs.unreliable || config.rdma == Rdma::Unreliable {
            true => &[Kind::Unreliable],
            false => &[Kind::Reliable, Kind::Unreliable],
        };
        let addresses = addresses(self.look(config.rdma)?);
        let ours = candidates(&addresses);
        let (mut trial, mut speeds_mbps) = (Trial::default(), Vec::new());
        let (mut pairs, mut proposals) = (Vec::new(), Vec::new());
        for (own, place) in choose(&ours, near, &theirs.all, far) {
            let (_, device, address) = addresses[own];
            match QueuePair::new(device, address, kinds, random_psn()) {
                Ok(pair) => {
                    let proposal = Proposal {
                        place: talk.understand(u8::try_from(place).ok())?,
                        speed_mbps: ours[own].speed_with(&theirs.all[place]),
                        endpoint: pair.endpoint(),
                    };
                    proposals.push(Ok(proposal.encode()));
                    speeds_mbps.push(proposal.speed_mbps);
                    pairs.push(pair);
                }
                Err(reason) => trial.left_out.push(reason),
            }
        }
        if pairs.is_empty() {
            return Err(No::Ours(match trial.left_out.is_empty() {
                true => "no device has an IPv4 address".to_owned(),
                false => trial.left_out.join(", "),
            }));
        }
        talk.say_each(&proposals)?;
        let ends = talk.hear_each()?.map_err(No::Theirs)?;
        if ends.len() != pairs.len() {
            return Err(talk.broken().into());
        }
        for (pair, end) in pairs.into_iter().zip(ends) {
            trial.ways.push(match end {
                Ok(end) => {
                    let peer = Endpoint::decode(&end).filter(|peer| peer.kind == pair.kind());
                    connected(pair, &talk.understand(peer)?)
                }
                Err(reason) => Err(reason),
            });
        }
        trial.tried().for_each(Flow::say_hello);
        trial.tell(talk, |_| Vec::new())?;
        trial.hear(talk)?;
        self.hear_hello(&mut trial, config, deadline);
        trial.tell(talk, |_| Vec::new())?;
        settle(trial, speeds_mbps)
    }

    fn look(&self, rdma: Rdma) -> Result<&[Arc<Device>], No> {
        let found = match rdma {
            Rdma::Off => return Err(No::Ours("switched off at this end".to_owned())),
            Rdma::Auto | Rdma::Unreliable => self.found.get_or_init(Device::all),
        };
        found.as_deref().map_err(|reason| No::Ours(reason.clone()))
    }

    /// Waits for the first messages: until the deadline where nothing else may carry the bytes. Where TCP may, each wait in vain
    /// halves the next, for all of them together must not take as long as a group may take to form.
    fn hear_hello(&self, trial: &mut Trial<Flow>, config: &Config, deadline: Instant) {
        let time = HELLO_TIME_MAX / (1 << self.in_vain.load(Ordering::Relaxed).min(6));
        let patience = Patience {
            until: match config.tcp {
                true => deadline.min(Instant::now() + time),
                false => deadline,
            },
            further: time / 4,
        };
        let awaited = trial.tried().count();
        hello::hear(&mut trial.ways, patience);
        if trial.tried().count() < awaited {
            self.in_vain.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes one link of what both ends have found to work, each with the speed of its ports.
fn settle(trial: Trial<Flow>, speeds_mbps: Vec<u32>) -> Result<Flows, No> {
    let reasons = trial.reasons();
    let (mut work, mut left_out) = (Vec::new(), trial.left_out);
    for (flow, speed_mbps) in trial.ways.into_iter().zip(speeds_mbps) {
        match flow {
            Ok(flow) => work.push((flow, speed_mbps)),
            Err(reason) => left_out.push(reason),
        }
    }
    let left_out = left_out.into_iter();
    let left_out = left_out.map(|reason| format!("not over another device: {reason}"));
    Flows::new(work, left_out.collect()).ok_or(No::Theirs(reasons))
}

fn connected(mut pair: QueuePair, peer: &Endpoint) -> Result<Flow, String> {
    match pair.connect(peer) {
        Ok(()) => Ok(Flow::new(pair)),
        Err(error) => {
            let name = &pair.device().name;
            Err(format!("{name} does not reach {} ({error})", peer.ip))
        }
    }
}

/// Returns all addresses of these, as far as they can be counted in a byte, with the place of the device of each.
fn addresses(devices: &[Arc<Device>]) -> Vec<(u8, &Arc<Device>, Address)> {
    let of = |(place, device): (u8, _)| {
        let addresses = <Arc<Device>>::as_ref(device).addresses.iter();
        addresses.map(move |address| (place, device, *address))
    };
    let all = (0..=u8::MAX).zip(devices).flat_map(of);
    all.take(usize::from(u8::MAX)).collect()
}

fn candidates(addresses: &[(u8, &Arc<Device>, Address)]) -> Vec<Candidate> {
    let candidate = |(place, device, address): &(u8, &Arc<Device>, Address)| Candidate {
        device: *place,
        ip: address.ip,
        prefix: address.prefix,
        speed_mbps: device.speed_mbps,
    };
    addresses.iter().map(candidate).collect()
}

fn random_psn() -> u32 {
    let [a, b, c, d, ..] = random_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// How long the first message may take before TCP is used instead.
const HELLO_TIME_MAX: Duration = Duration::from_secs(4);
