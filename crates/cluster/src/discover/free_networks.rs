//! Networks for cables, which nobody uses yet.

use std::net::{IpAddr, Ipv4Addr};

use super::address::Address;
use super::machine::Machine;

/// The next networks of four addresses, of which two can be used, from 192.168 as far as nobody uses it.
pub(crate) struct FreeNetworks {
    used: Vec<Address>,
    /// Of those there are in 192.168.
    next: u16,
}

impl FreeNetworks {
    pub(crate) fn beside(machines: &[Machine]) -> Self {
        let interfaces = machines.iter().flat_map(|machine| &machine.interfaces);
        let used = interfaces.flat_map(|interface| &interface.addresses);
        // A network that is in use keeps all of its 256 addresses, for a person to read.
        let used = used.filter_map(|it| Address::new(it.ip(), it.prefix().min(24)));
        Self {
            used: used.collect(),
            next: 0,
        }
    }
}

impl Iterator for FreeNetworks {
    type Item = [Ipv4Addr; 2];

    fn next(&mut self) -> Option<[Ipv4Addr; 2]> {
        loop {
            let [third, fourth] = self.next.checked_mul(4)?.to_be_bytes();
            self.next += 1;
            let hosts = [1, 2].map(|host| Ipv4Addr::new(192, 168, third, fourth + host));
            let network = Address::new(IpAddr::V4(hosts[0]), 30)?;
            if !self.used.iter().any(|used| used.overlaps(&network)) {
                return Some(hosts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_end_of_networks() {
        let mut free = FreeNetworks::beside(&[]);
        assert_eq!(
            free.by_ref().nth(63).unwrap()[1].to_string(),
            "192.168.0.254"
        );
        assert_eq!(free.next().unwrap()[0].to_string(), "192.168.1.1");
        assert_eq!(free.count(), 255 * 64 - 1);
    }

    #[test]
    fn what_a_machine_is_in_is_no_network_for_a_cable() {
        let used = ["192.168.1.14/22", "192.168.5.7/24", "10.0.0.1/8"];
        let free = FreeNetworks {
            used: used.map(|it| it.parse().unwrap()).to_vec(),
            next: 0,
        };
        let [first, after] = [0, 64].map(|skip| {
            let mut free = FreeNetworks {
                used: free.used.clone(),
                next: 0,
            };
            free.nth(skip).unwrap()[0].to_string()
        });
        assert_eq!((&*first, &*after), ("192.168.4.1", "192.168.6.1"));
    }
}
