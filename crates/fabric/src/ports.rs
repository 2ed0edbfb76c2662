//! By which addresses two ranks could reach each other, and which two of them are the ends of one cable.

use std::cmp::Reverse;
use std::net::IpAddr;

use tracing::warn;

use crate::addresses::{self, Address};
use crate::interfaces::Interfaces;
use crate::schedule::STRANDS_MAX;

/// What one rank has: the address that it is connected by, and those that could carry bytes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) near: Port,
    pub(crate) further: Vec<Port>,
}

/// One address of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    interface: String,
    pub(crate) ip: IpAddr,
    prefix: u8,
    /// 0 if it is not known.
    speed_mbps: u32,
    /// Somebody has named its interface.
    pinned: bool,
    /// It may carry bytes.
    allowed: bool,
}

impl Offer {
    /// Looks at this machine for what a rank has that is connected from `near` to `far`.
    ///
    /// # Errors
    /// Why nothing can be said.
    pub(crate) fn of_this_machine(
        interfaces: &Interfaces,
        near: IpAddr,
        far: IpAddr,
    ) -> Result<Self, String> {
        let (near, far) = (near.to_canonical(), far.to_canonical());
        if let Some(listed) = interfaces.as_listed() {
            let further = listed.iter().filter(|ip| **ip != near);
            return Ok(Self {
                near: Port::alone(near),
                further: further.map(|ip| Port::alone(*ip)).collect(),
            });
        }
        // Inside a machine no cable carries anything.
        if near == far {
            return Ok(Self {
                near: Port::alone(near),
                further: Vec::new(),
            });
        }
        let all = match addresses::of_this_machine() {
            Ok(all) => all,
            // The connection itself needs no list; only further cables do.
            Err(error) if *interfaces == Interfaces::USUAL => {
                warn!(%error, "this machine does not tell its interfaces: no further cables");
                Vec::new()
            }
            Err(error) => {
                return Err(format!(
                    "this machine does not tell its interfaces ({error})"
                ));
            }
        };
        Ok(Self::of(interfaces, near, &all))
    }

    fn of(interfaces: &Interfaces, near: IpAddr, all: &[Address]) -> Self {
        let own = all.iter().find(|address| address.ip == near);
        let name = own.map(|address| &*address.interface);
        let is_further = |address: &&Address| {
            let is_link_local = match address.ip {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            let is_other = name != Some(&address.interface);
            is_other
                && !address.is_loopback
                && !is_link_local
                && interfaces.allow_found(&address.interface, address.is_tunnel)
        };
        let port = |address: &Address| Port {
            interface: address.interface.clone(),
            ip: address.ip,
            prefix: address.prefix,
            speed_mbps: address.speed_mbps,
            pinned: interfaces.pin(&address.interface),
            allowed: interfaces.allow(Some(&address.interface)),
        };
        let unknown = || Port {
            interface: "an-unknown-interface".to_owned(),
            pinned: false,
            allowed: interfaces.allow(None),
            ..Port::alone(near)
        };
        let further = all.iter().filter(is_further).take(PORTS_MAX);
        Self {
            near: own.map_or_else(unknown, port),
            further: further.map(port).collect(),
        }
    }

    /// Returns the pairs of places, ours first, of addresses that are on a network of both: at most one for each network
    /// and for each interface, the fastest first.
    pub(crate) fn in_common_with(&self, theirs: &Self) -> Vec<(usize, usize)> {
        let is_one_machine = self.near.ip == theirs.near.ip;
        let near_fits =
            self.near.speed_with(&theirs.near) > 0 || !self.near.allowed_with(&theirs.near);
        let joins = |ours: &Port, theirs: &Port| {
            // Bridges of containers have the same address everywhere.
            let is_cable = (ours.ip == theirs.ip) == is_one_machine;
            // Without speeds all would carry the same, and the slowest hold up the rest: somebody has to have chosen them.
            let fits = near_fits && ours.speed_with(theirs) > 0 || ours.pinned || theirs.pinned;
            is_cable && fits && ours.network_has(theirs.ip) && theirs.network_has(ours.ip)
        };
        let mut pairs = Vec::new();
        for (own, ours) in self.further.iter().enumerate() {
            let places = theirs.further.iter().enumerate();
            let joined = places.filter(|(_, theirs)| joins(ours, theirs));
            pairs.extend(joined.map(|(place, theirs)| {
                let speed = Reverse(ours.speed_with(theirs));
                (speed, ours.ip.is_ipv6(), own, place)
            }));
        }
        pairs.sort_unstable();
        let mut taken = vec![(&self.near, &theirs.near)];
        let mut chosen = Vec::new();
        for (_, _, own, place) in pairs {
            let pair = (&self.further[own], &theirs.further[place]);
            let is_apart = |(ours, theirs): &(&Port, &Port)| {
                let is_one_network = ours.prefix == pair.0.prefix && ours.network_has(pair.0.ip);
                ours.interface != pair.0.interface
                    && theirs.interface != pair.1.interface
                    && !is_one_network
            };
            if taken.len() < STRANDS_MAX && taken.iter().all(is_apart) {
                taken.push(pair);
                chosen.push((own, place));
            }
        }
        chosen
    }

    /// Says why the two are not linked when nothing carries their bytes.
    pub(crate) fn denial(&self, theirs: &Self) -> String {
        let Port { interface, ip, .. } = match self.near.allowed {
            true => &theirs.near,
            false => &self.near,
        };
        format!(
            "they reach each other by {ip} on {interface}, which may not carry its bytes, and by no other cable; allow \
             {interface} there in SHOAL_INTERFACES, or connect by an allowed one"
        )
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let ports = [&self.near].into_iter().chain(&self.further);
        let lines: Vec<String> = ports.map(Port::encode).collect();
        lines.join("\n").into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let ports = str::from_utf8(bytes).ok()?.lines().map(Port::decode);
        let mut ports: Vec<Port> = ports.take(2 + PORTS_MAX).collect::<Option<_>>()?;
        let is_bounded = (1..=1 + PORTS_MAX).contains(&ports.len());
        is_bounded.then(|| Self {
            near: ports.remove(0),
            further: ports,
        })
    }
}

impl Port {
    /// Returns an address that is a network of its own, of which nothing else is known.
    fn alone(ip: IpAddr) -> Self {
        Self {
            interface: ip.to_string(),
            ip,
            prefix: if ip.is_ipv4() { 32 } else { 128 },
            speed_mbps: 0,
            pinned: true,
            allowed: true,
        }
    }

    /// Returns the speed of the cable to `other`, or 0.
    pub(crate) fn speed_with(&self, other: &Self) -> u32 {
        self.speed_mbps.min(other.speed_mbps)
    }

    /// Whether the cable to `other` may carry bytes.
    pub(crate) fn allowed_with(&self, other: &Self) -> bool {
        self.allowed && other.allowed
    }

    fn network_has(&self, ip: IpAddr) -> bool {
        let differing = match (self.ip, ip) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= self.prefix.into()
    }

    fn encode(&self) -> String {
        let Self {
            interface,
            ip,
            prefix,
            speed_mbps,
            pinned,
            allowed,
        } = self;
        format!("{interface} {ip} {prefix} {speed_mbps} {pinned} {allowed}")
    }

    fn decode(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let port = Self {
            interface: words.next().filter(|name| !name.is_empty())?.to_owned(),
            ip: words.next()?.parse().ok()?,
            prefix: words.next()?.parse().ok()?,
            speed_mbps: words.next()?.parse().ok()?,
            pinned: words.next()?.parse().ok()?,
            allowed: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(port)
    }
}

/// Bound of what is told; a machine of many addresses has most of them on few interfaces.
const PORTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `interface address/prefix speed`, with commas.
    fn machine(text: &str) -> Vec<Address> {
        let address = |text: &str| {
            let mut words = text.split_whitespace();
            let interface = words.next().expect("a name").to_owned();
            let (ip, prefix) = words.next().and_then(|it| it.split_once('/')).expect("one");
            let speed = words.next().expect("a speed");
            Address {
                is_loopback: interface == "lo",
                is_tunnel: false,
                interface,
                ip: ip.parse().expect("an address"),
                prefix: prefix.parse().expect("a length"),
                speed_mbps: speed.parse().expect("a number"),
            }
        };
        text.split(',').map(address).collect()
    }

    fn offer(list: &str, text: &str) -> Offer {
        let all = machine(text);
        let interfaces = match list {
            "" => Interfaces::USUAL,
            list => list.parse().expect("a list"),
        };
        // The first one is that of the connection.
        let offer = Offer::of(&interfaces, all[0].ip, &all);
        assert_eq!(Offer::decode(&offer.encode()).as_ref(), Some(&offer));
        offer
    }

    /// The further cables of two machines, by their addresses at ours.
    fn check(ours: &Offer, theirs: &Offer, expected: &[&str]) {
        let of = |ours: &Offer, theirs: &Offer| -> Vec<String> {
            let pairs = ours.in_common_with(theirs).into_iter();
            pairs
                .map(|(own, _)| ours.further[own].ip.to_string())
                .collect()
        };
        assert_eq!(of(ours, theirs), expected);
        assert_eq!(of(theirs, ours).len(), expected.len());
    }

    const LEFT: &str = "eth0 10.0.0.1/24 10000, eth1 10.0.1.1/24 10000, eth2 10.0.2.1/24 25000";
    const RIGHT: &str = "eth0 10.0.0.2/24 10000, eth5 10.0.2.2/24 25000, eth6 10.0.1.2/24 10000";

    #[test]
    fn cables_are_found_by_their_networks_the_fastest_first() {
        check(
            &offer("", LEFT),
            &offer("", RIGHT),
            &["10.0.2.1", "10.0.1.1"],
        );
        let far = "eth0 10.0.0.2/24 10000, eth1 10.0.9.2/24 10000";
        check(&offer("", LEFT), &offer("", far), &[]);
        // One says that its network is larger than it is for the other.
        let wide = "eth0 10.0.0.2/24 10000, eth1 10.0.200.9/16 10000";
        check(&offer("", LEFT), &offer("", wide), &[]);
    }

    #[test]
    fn pins_and_denials_of_either_end_hold() {
        check(&offer("^eth2", LEFT), &offer("", RIGHT), &["10.0.1.1"]);
        check(&offer("", LEFT), &offer("^eth5", RIGHT), &["10.0.1.1"]);
        check(
            &offer("eth0,eth1", LEFT),
            &offer("eth*", RIGHT),
            &["10.0.1.1"],
        );
        check(&offer("eth0", LEFT), &offer("", RIGHT), &[]);
        // The one that they are connected by need not be one of them.
        let ours = offer("eth1", LEFT);
        assert!(!ours.near.allowed);
        check(&ours, &offer("", RIGHT), &["10.0.1.1"]);
        assert!(ours.denial(&offer("", RIGHT)).contains("10.0.0.1 on eth0"));
        assert!(offer("", RIGHT).denial(&ours).contains("10.0.0.1 on eth0"));
    }

    #[test]
    fn one_cable_counts_once() {
        let both = "eth0 10.0.0.1/24 10, eth1 10.0.1.1/24 10, eth1 2001:db8:1::1/64 10";
        let there = "eth0 10.0.0.2/24 10, eth1 10.0.1.2/24 10, eth1 2001:db8:1::2/64 10";
        check(&offer("", both), &offer("", there), &["10.0.1.1"]);
        // On the same interface as the connection, or on the same network.
        let both = "eth0 10.0.0.1/24 10, eth0 10.0.1.1/24 10, eth1 10.0.0.3/24 10";
        let there = "eth0 10.0.0.2/24 10, eth0 10.0.1.2/24 10, eth1 10.0.0.4/24 10";
        check(&offer("", both), &offer("", there), &[]);
    }

    #[test]
    fn what_is_no_cable_between_the_two_is_left_out() {
        let here = "eth0 10.0.0.1/24 10, lo 127.0.0.1/8 10, br7 172.17.0.1/16 10, eth1 169.254.1.1/16 10, eth1 fe80::1/64 10";
        let there = "eth0 10.0.0.2/24 10, lo 127.0.0.1/8 10, br7 172.17.0.1/16 10, eth1 169.254.1.2/16 10, eth1 fe80::2/64 10";
        check(&offer("", here), &offer("", there), &[]);
    }

    #[test]
    fn a_cable_of_unknown_speed_has_to_be_named_by_one_end() {
        let here = "eth0 10.0.0.1/24 10, eth1 10.0.1.1/24 0";
        let there = "eth0 10.0.0.2/24 10, eth1 10.0.1.2/24 10";
        check(&offer("", here), &offer("", there), &[]);
        check(&offer("", here), &offer("eth*", there), &["10.0.1.1"]);
        let here = "eth0 10.0.0.1/24 0, eth1 10.0.1.1/24 10";
        check(&offer("", here), &offer("", there), &[]);
        // The first one carries nothing, so that its speed does not matter.
        check(&offer("^eth0", here), &offer("", there), &["10.0.1.1"]);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            if let Some(offer) = Offer::decode(&bytes) {
                let again = Offer::decode(&offer.encode());
                prop_assert_eq!(again.as_ref(), Some(&offer));
                offer.in_common_with(&offer);
            }
        }
    }
}
