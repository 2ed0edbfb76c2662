//! Which addresses of two ranks' devices are likely to reach each other.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::endpoint::Candidate;
use crate::schedule::STRANDS_MAX;

/// Chooses pairs of addresses, ours and theirs by their places; none where one end has none.
///
/// The first is of those that are [nearest] to each other. Further ones join other devices of both ends, each on a network
/// of its own that both of its ends have: there is no guess behind those, for each that turns out to be wrong costs time.
pub(crate) fn choose(
    ours: &[Candidate],
    near: IpAddr,
    theirs: &[Candidate],
    far: IpAddr,
) -> Vec<(usize, usize)> {
    let Some(first) = nearest(ours, near, theirs, far) else {
        return Vec::new();
    };
    let is_one_machine = ours[first.0].ip == theirs[first.1].ip;
    let mut pairs = Vec::new();
    for (own, our) in ours.iter().enumerate() {
        for (place, their) in theirs.iter().enumerate() {
            // Bridges of containers have the same address everywhere.
            let is_cable = (our.ip == their.ip) == is_one_machine;
            if is_cable && our.prefix == their.prefix && our.shares_network_with(their) {
                pairs.push((Reverse(our.speed_with(their)), own, place));
            }
        }
    }
    pairs.sort_unstable();
    let mut chosen = vec![first];
    for (_, own, place) in pairs {
        let is_apart = |(other_own, other_place): &(usize, usize)| {
            let (our, their) = (&ours[*other_own], &theirs[*other_place]);
            our.device != ours[own].device
                && their.device != theirs[place].device
                && !our.shares_network_with(&ours[own])
                && !their.shares_network_with(&theirs[place])
        };
        if chosen.len() < STRANDS_MAX && chosen.iter().all(is_apart) {
            chosen.push((own, place));
        }
    }
    chosen
}

/// Chooses the pair of addresses that are likeliest on one cable or network.
///
/// Those of the connection come first. Beyond that the most common leading bits win: of several cables, each with a network
/// of its own, that finds the one between these two machines.
fn nearest(
    ours: &[Candidate],
    near: IpAddr,
    theirs: &[Candidate],
    far: IpAddr,
) -> Option<(usize, usize)> {
    let connection = (near.to_canonical(), far.to_canonical());
    let (mut closest, mut best) = (None, None);
    for (own, our) in ours.iter().enumerate() {
        for (place, their) in theirs.iter().enumerate() {
            let is_this = connection == (our.ip.into(), their.ip.into());
            let close = (is_this, our.bits_in_common_with(their));
            // The first of equals, and so the same in every run.
            if closest.is_none_or(|closest| close > closest) {
                closest = Some(close);
                best = Some((own, place));
            }
        }
    }
    best
}

impl Candidate {
    /// Returns the speed between the two ports, or 0.
    pub(crate) fn speed_with(&self, other: &Self) -> u32 {
        self.speed_mbps.min(other.speed_mbps)
    }

    fn bits_in_common_with(&self, other: &Self) -> u32 {
        (self.ip.to_bits() ^ other.ip.to_bits()).leading_zeros()
    }

    /// Whether the smaller of the two networks is part of the other.
    fn shares_network_with(&self, other: &Self) -> bool {
        self.bits_in_common_with(other) >= self.prefix.min(other.prefix).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device for each line: its addresses with their prefixes, and then the speed of its port.
    fn candidates(devices: &[&str]) -> Vec<Candidate> {
        let mut all = Vec::new();
        for (device, line) in (0..).zip(devices) {
            let (line, speed) = line.split_once(" at ").unwrap_or((line, "0"));
            all.extend(line.split(' ').map(|address| {
                let (ip, prefix) = address.split_once('/').expect("an address and its network");
                Candidate {
                    device,
                    ip: ip.parse().expect("an address"),
                    prefix: prefix.parse().expect("a number"),
                    speed_mbps: speed.parse().expect("a number"),
                }
            }));
        }
        all
    }

    fn check(ours: &[&str], near: &str, theirs: &[&str], far: &str, expected: &[(usize, usize)]) {
        let [near, far] = [near, far].map(|text| text.parse().expect("an address"));
        let chosen = choose(&candidates(ours), near, &candidates(theirs), far);
        assert_eq!(chosen, expected, "{ours:?} {theirs:?}");
    }

    #[test]
    fn the_addresses_of_the_connection_come_first() {
        let ours = ["192.168.0.1/32", "10.0.0.1/24"];
        let theirs = ["192.168.0.2/32", "10.0.7.2/24"];
        check(&ours, "10.0.0.1", &theirs, "10.0.7.2", &[(1, 1)]);
        check(&ours, "::ffff:10.0.0.1", &theirs, "10.0.7.2", &[(1, 1)]);
    }

    #[test]
    fn of_several_cables_those_between_the_two_are_found() {
        // Networks of four addresses, as one cable each gets them.
        let ours = ["192.168.0.1/30", "192.168.0.5/30", "192.168.0.9/30"];
        let theirs = ["192.168.0.21/30", "192.168.0.17/30", "192.168.0.6/30"];
        check(&ours, "10.0.0.1", &theirs, "10.0.0.2", &[(1, 2)]);
        let theirs = ["192.168.0.10/30", "192.168.0.17/30", "192.168.0.6/30"];
        let both = [(1, 2), (2, 0)];
        check(&ours, "10.0.0.1", &theirs, "10.0.0.2", &both);
        let other = [(2, 0), (1, 2)];
        check(&ours, "192.168.0.9", &theirs, "192.168.0.10", &other);
    }

    #[test]
    fn one_device_serves_ranks_on_loopback() {
        let one = ["10.9.0.1/24"];
        check(&one, "127.0.0.1", &one, "127.0.0.1", &[(0, 0)]);
        check(&[], "127.0.0.1", &one, "127.0.0.1", &[]);
        check(&one, "127.0.0.1", &[], "127.0.0.1", &[]);
    }

    #[test]
    fn ranks_of_one_machine_use_each_device_with_itself() {
        let two = ["10.9.0.1/24", "10.9.1.1/24"];
        check(&two, "127.0.0.1", &two, "127.0.0.1", &[(0, 0), (1, 1)]);
    }

    #[test]
    fn a_network_and_a_device_carry_one_connection_each() {
        // Two ports of one network.
        let (ours, theirs) = (
            ["10.0.0.1/24", "10.0.0.2/24"],
            ["10.0.0.3/24", "10.0.0.4/24"],
        );
        check(&ours, "10.0.0.1", &theirs, "10.0.0.3", &[(0, 0)]);
        // Two networks of one port, at one end.
        let (ours, theirs) = (["10.0.0.1/24 10.0.1.1/24"], ["10.0.0.3/24", "10.0.1.3/24"]);
        check(&ours, "10.0.0.1", &theirs, "10.0.0.3", &[(0, 0)]);
        check(&theirs, "10.0.0.3", &ours, "10.0.0.1", &[(0, 0)]);
    }

    #[test]
    fn what_nobody_knows_to_be_one_network_is_none() {
        let ours = ["10.0.0.1/24", "10.0.1.1/32"];
        check(
            &ours,
            "10.0.0.1",
            &["10.0.0.3/24", "10.0.1.3/24"],
            "10.0.0.3",
            &[(0, 0)],
        );
        // The same on every machine.
        let ours = ["10.0.0.1/24", "172.17.0.1/16"];
        check(
            &ours,
            "10.0.0.1",
            &["10.0.0.3/24", "172.17.0.1/16"],
            "10.0.0.3",
            &[(0, 0)],
        );
        // What contains the network of the first one.
        let ours = ["10.0.0.1/24", "10.0.1.1/8"];
        check(
            &ours,
            "10.0.0.1",
            &["10.0.0.3/24", "10.0.1.3/8"],
            "10.0.0.3",
            &[(0, 0)],
        );
    }

    #[test]
    fn of_two_ways_over_a_device_the_faster_one_is_taken() {
        let ours = ["10.0.0.1/24 at 100", "10.0.1.1/24 10.0.2.1/24 at 100"];
        let theirs = [
            "10.0.0.2/24 at 100",
            "10.0.1.2/24 at 10",
            "10.0.2.2/24 at 100",
        ];
        check(&ours, "10.0.0.1", &theirs, "10.0.0.2", &[(0, 0), (2, 2)]);
    }

    #[test]
    fn there_are_not_too_many() {
        let end = |host: u8| (0..20).map(move |net| format!("10.0.{net}.{host}/24"));
        let [ours, theirs] = [1, 2].map(|host| end(host).collect::<Vec<_>>());
        let [ours, theirs] = [&ours, &theirs]
            .map(|end| candidates(&end.iter().map(|line| &**line).collect::<Vec<_>>()));
        let [near, far] = ["10.1.0.1", "10.1.0.2"].map(|text| text.parse().expect("an address"));
        assert_eq!(choose(&ours, near, &theirs, far).len(), STRANDS_MAX);
    }
}
