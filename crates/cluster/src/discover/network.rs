//! The network that all machines are on.

use super::address::Address;
use super::machine::{Interface, Machine};

/// How a machine is on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) interface: String,
    pub(crate) address: Address,
}

/// Returns each machine's place on the fastest network that all of them share, `None` where they share none. Interfaces
/// that `counts` refuses, given the machine's place in the list, are passed over.
pub(crate) fn shared(
    machines: &[Machine],
    counts: impl Fn(usize, &Interface) -> bool,
) -> Option<Vec<Place>> {
    let usable = |at: usize| {
        let interfaces = machines[at].interfaces.iter();
        let up = interfaces
            .filter(|it| it.is_up && counts(at, it))
            .collect::<Vec<_>>();
        up.into_iter()
            .flat_map(|it| it.addresses.iter().map(move |address| (it, *address)))
            .filter(|(_, address)| !address.is_link_local() && !address.ip().is_loopback())
    };
    let mut best: Option<((bool, u32), Vec<Place>)> = None;
    for (_, network) in usable(0).collect::<Vec<_>>() {
        let mut slowest_mbit = u32::MAX;
        let mut places: Vec<Place> = Vec::new();
        for at in 0..machines.len() {
            // The same address on two machines is that of a private bridge, such as a container runtime makes.
            let fits = |it: &(&Interface, Address)| {
                it.1.shares_network(&network)
                    && places.iter().all(|place| place.address.ip() != it.1.ip())
            };
            let Some((interface, address)) = usable(at).find(fits) else {
                break;
            };
            slowest_mbit = slowest_mbit.min(interface.speed_mbit.unwrap_or(0));
            places.push(Place {
                interface: interface.name.clone(),
                address,
            });
        }
        let rank = (network.ip().is_ipv4(), slowest_mbit);
        if places.len() == machines.len() && best.as_ref().is_none_or(|(other, _)| rank > *other) {
            best = Some((rank, places));
        }
    }
    best.map(|(_, places)| places)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::discover::System;

    /// A Linux machine with interfaces given as name, speed in Mbit/s (0: unknown), address.
    pub(crate) fn linux(name: &str, interfaces: &[(&str, u32, &str)]) -> Machine {
        let interface = |(name, speed, address): &(&str, u32, &str)| Interface {
            name: (*name).to_owned(),
            is_up: true,
            speed_mbit: Some(*speed).filter(|speed| *speed > 0),
            addresses: vec![address.parse().unwrap()],
            ..Interface::default()
        };
        Machine {
            name: name.to_owned(),
            system: System::Linux,
            model: None,
            interfaces: interfaces.iter().map(interface).collect(),
            rdma: Vec::new(),
            rdma_enabled: None,
            thunderbolt: Vec::new(),
            unknown: Vec::new(),
        }
    }

    #[test]
    fn the_fastest_shared_network_is_taken() {
        let one = linux(
            "one",
            &[
                ("docker0", 100_000, "172.17.0.1/16"),
                ("eno1", 1000, "192.168.1.1/24"),
                ("roce0", 100_000, "10.0.0.1/24"),
                ("wlan0", 0, "fd00::1/64"),
            ],
        );
        let other = linux(
            "other",
            &[
                ("docker0", 100_000, "172.17.0.1/16"),
                ("eno1", 1000, "192.168.1.2/24"),
                ("roce7", 25_000, "10.0.0.2/24"),
                ("wlan0", 0, "fd00::2/64"),
            ],
        );
        let both = [one, other];
        let interfaces = |counts: fn(usize, &Interface) -> bool| {
            let places = shared(&both, counts)?;
            Some(
                places
                    .into_iter()
                    .map(|it| it.interface)
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(interfaces(|_, _| true).unwrap(), ["roce0", "roce7"]);
        assert_eq!(
            interfaces(|at, it| at == 0 || it.name != "roce7").unwrap(),
            ["eno1", "eno1"]
        );
        assert_eq!(
            interfaces(|_, it| it.name == "wlan0").unwrap(),
            ["wlan0", "wlan0"]
        );
        assert_eq!(interfaces(|_, it| it.name == "docker0"), None);
    }
}
