//! Whether two ranks exchange bytes over RDMA, and why: found out by the two while their connection is set up.
//!
//! ```text
//! leader                                                      follower
//!   addresses of its devices ───────────────────────────────►
//!                            ◄─────────────────────────────── which of them it takes, its end of the connection
//!   its end of the connection, ready to receive ────────────►
//!                            ◄─────────────────────────────── ready to receive; a message through the devices
//!   a message through the devices; that the other came ─────►
//!                            ◄─────────────────────────────── that the other came
//! ```
//! Instead of any of these, either side may say why not, and that is the end of it: they use TCP.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::device::{Address, Device};
use super::endpoint::{Candidates, Endpoint, Kind};
use super::flow::Flow;
use super::pair::QueuePair;
use crate::channel::Channel;
use crate::error::FabricError;
use crate::key::random_bytes;
use crate::talk::Talk;
use crate::tcp::{Config, Rdma};

/// The RDMA devices of this machine, looked for when they are first wanted.
#[derive(Clone, Default)]
pub(crate) struct Devices {
    found: Arc<OnceLock<Result<Vec<Arc<Device>>, String>>>,
    /// First messages that were waited for in vain.
    in_vain: Arc<AtomicU32>,
}

/// What two ranks have found out: a connection that carries messages, or why there is none.
pub(crate) type Agreement = Result<Flow, String>;

impl Devices {
    fn look(&self, rdma: Rdma) -> Result<&[Arc<Device>], String> {
        match rdma {
            Rdma::Off => Err("switched off on this rank".to_owned()),
            Rdma::Auto | Rdma::Unreliable => self
                .found
                .get_or_init(Device::all)
                .as_deref()
                .map_err(String::clone),
        }
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
        let devices = match self.look(config.rdma) {
            Ok(devices) => devices,
            Err(reason) => return talk.decline(reason),
        };
        let addresses = addresses(devices);
        let ours = Candidates {
            ips: addresses.iter().map(|(_, address)| address.ip).collect(),
            unreliable: config.rdma == Rdma::Unreliable,
        };
        talk.say(&ours.encode())?;
        let (choice, peer) = match talk.hear()? {
            Ok(answer) => {
                let (choice, endpoint) = answer.split_first().unwrap_or((&0, &[]));
                (
                    usize::from(*choice),
                    talk.understand(Endpoint::decode(endpoint))?,
                )
            }
            Err(reason) => return Ok(Err(reason)),
        };
        if ours.unreliable && peer.kind == Kind::Reliable {
            return Err(talk.broken());
        }
        let (device, address) = *talk.understand(addresses.get(choice))?;
        let psn = random_psn();
        let flow = QueuePair::new(device, address, &[peer.kind], psn).and_then(|mut pair| {
            let endpoint = pair.endpoint();
            connect(&mut pair, &peer)?;
            Ok((Flow::new(pair), endpoint))
        });
        let mut flow = match flow {
            Ok((flow, endpoint)) => {
                talk.say(&endpoint.encode())?;
                flow
            }
            Err(reason) => return talk.decline(reason),
        };
        if let Err(reason) = talk.hear()? {
            return Ok(Err(reason));
        }
        flow.say_hello();
        if let Err(reason) = self.hear_hello(&mut flow, config, deadline) {
            return talk.decline(reason);
        }
        talk.say(&[])?;
        Ok(talk.hear()?.map(|_| flow))
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
        let near = channel.local_addr()?.ip();
        let far = channel.peer_addr().ip();
        let mut talk = Talk::new(channel, deadline, "RDMA");
        let theirs = match talk.hear()? {
            Ok(offer) => talk.understand(Candidates::decode(&offer))?,
            Err(reason) => return Ok(Err(reason)),
        };
        let devices = match self.look(config.rdma) {
            Ok(devices) => devices,
            Err(reason) => return talk.decline(reason),
        };
        let kinds: &[Kind] = match theirs.unreliable || config.rdma == Rdma::Unreliable {
            true => &[Kind::Unreliable],
            false => &[Kind::Reliable, Kind::Unreliable],
        };
        let pair = nearest(&addresses(devices), near, &theirs.ips, far).and_then(
            |((device, address), choice)| {
                let pair = QueuePair::new(device, address, kinds, random_psn())?;
                Ok((pair, choice))
            },
        );
        let mut pair = match pair {
            Ok((pair, choice)) => {
                talk.say(&[&[choice], &pair.endpoint().encode()[..]].concat())?;
                pair
            }
            Err(reason) => return talk.decline(reason),
        };
        let peer = match talk.hear()? {
            Ok(endpoint) => talk.understand(Endpoint::decode(&endpoint))?,
            Err(reason) => return Ok(Err(reason)),
        };
        if peer.kind != pair.kind() {
            return Err(talk.broken());
        }
        let mut flow = match connect(&mut pair, &peer) {
            Ok(()) => Flow::new(pair),
            Err(reason) => return talk.decline(reason),
        };
        flow.say_hello();
        talk.say(&[])?;
        if let Err(reason) = talk.hear()? {
            return Ok(Err(reason));
        }
        match self.hear_hello(&mut flow, config, deadline) {
            Ok(()) => {
                talk.say(&[])?;
                Ok(Ok(flow))
            }
            Err(reason) => talk.decline(reason),
        }
    }
}

impl Devices {
    /// Waits for the first message: until the deadline where nothing else may carry the bytes. Where TCP may, each wait in vain
    /// halves the next, for all of them together must not take as long as a group may take to form.
    fn hear_hello(
        &self,
        flow: &mut Flow,
        config: &Config,
        deadline: Instant,
    ) -> Result<(), String> {
        let patience = HELLO_TIME_MAX / (1 << self.in_vain.load(Ordering::Relaxed).min(6));
        let until = match config.tcp {
            true => deadline.min(Instant::now() + patience),
            false => deadline,
        };
        flow.hear_hello(until).inspect_err(|_| {
            self.in_vain.fetch_add(1, Ordering::Relaxed);
        })
    }
}

fn connect(pair: &mut QueuePair, peer: &Endpoint) -> Result<(), String> {
    pair.connect(peer).map_err(|error| {
        format!(
            "{} does not reach {} ({error})",
            pair.device().name,
            peer.ip
        )
    })
}

fn addresses(devices: &[Arc<Device>]) -> Vec<(&Arc<Device>, Address)> {
    let mut all = Vec::new();
    for device in devices {
        all.extend(device.addresses.iter().map(|address| (device, *address)));
    }
    all.truncate(usize::from(u8::MAX));
    all
}

/// Chooses the pair of addresses that are likeliest on one cable or network; returns the place of the other end's.
///
/// Those of the connection come first. Beyond that, nobody knows the networks' sizes, so the most common leading bits win:
/// of several cables, each with a network of its own, that finds the one between these two machines.
fn nearest<T: Copy>(
    ours: &[(T, Address)],
    near: IpAddr,
    theirs: &[Ipv4Addr],
    far: IpAddr,
) -> Result<((T, Address), u8), String> {
    let closeness = |ours: Ipv4Addr, theirs: Ipv4Addr| {
        let is_this = (near.to_canonical(), far.to_canonical()) == (ours.into(), theirs.into());
        let common = (ours.to_bits() ^ theirs.to_bits()).leading_zeros();
        (is_this, common)
    };
    let (mut closest, mut best) = (None, None);
    for (device, address) in ours {
        for (choice, ip) in (0..=u8::MAX).zip(theirs) {
            let close = closeness(address.ip, *ip);
            // The first of equals, and so the same in every run.
            if closest.is_none_or(|closest| close > closest) {
                closest = Some(close);
                best = Some(((*device, *address), choice));
            }
        }
    }
    best.ok_or_else(|| "no device has an IPv4 address".to_owned())
}

fn random_psn() -> u32 {
    let [a, b, c, d, ..] = random_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// How long the first message may take before TCP is used instead.
const HELLO_TIME_MAX: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ours: &[&str], near: &str, theirs: &[&str], far: &str, expected: Option<(usize, u8)>) {
        let ip = |text: &&str| text.parse::<Ipv4Addr>().expect("an address");
        let ours: Vec<(usize, Address)> = ours
            .iter()
            .enumerate()
            .map(|(place, text)| {
                (
                    place,
                    Address {
                        ip: ip(text),
                        index: 1,
                    },
                )
            })
            .collect();
        let theirs: Vec<Ipv4Addr> = theirs.iter().map(ip).collect();
        let [near, far] = [near, far].map(|text| text.parse().expect("an address"));
        let found = nearest(&ours, near, &theirs, far);
        let found = found.ok().map(|((place, _), choice)| (place, choice));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_addresses_of_the_connection_come_first() {
        let ours = ["192.168.0.1", "10.0.0.1"];
        let theirs = ["192.168.0.2", "10.0.7.2"];
        check(&ours, "10.0.0.1", &theirs, "10.0.7.2", Some((1, 1)));
        check(&ours, "::ffff:10.0.0.1", &theirs, "10.0.7.2", Some((1, 1)));
    }

    #[test]
    fn of_several_cables_the_one_between_the_two_is_found() {
        // Networks of four addresses, as one cable each gets them.
        let ours = ["192.168.0.1", "192.168.0.5", "192.168.0.9"];
        let theirs = ["192.168.0.21", "192.168.0.17", "192.168.0.6"];
        check(&ours, "10.0.0.1", &theirs, "10.0.0.2", Some((1, 2)));
    }

    #[test]
    fn one_device_serves_ranks_on_loopback() {
        check(
            &["10.9.0.1"],
            "127.0.0.1",
            &["10.9.0.1"],
            "127.0.0.1",
            Some((0, 0)),
        );
        check(&[], "127.0.0.1", &["10.9.0.1"], "127.0.0.1", None);
        check(&["10.9.0.1"], "127.0.0.1", &[], "127.0.0.1", None);
    }
}
