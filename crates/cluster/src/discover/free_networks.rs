//! Networks for cables, which nobody uses yet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::machine::Machine;

/// The next networks of four addresses, of which two can be used, from 192.168 as far as nobody uses it.
pub(crate) struct FreeNetworks {
    used: BTreeSet<u8>,
    third: u8,
    fourth: u16,
}

impl FreeNetworks {
    pub(crate) fn beside(machines: &[Machine]) -> Self {
        let interfaces = machines.iter().flat_map(|machine| &machine.interfaces);
        let addresses = interfaces.flat_map(|interface| &interface.addresses);
        let used = addresses.filter_map(|address| match address.ip() {
            IpAddr::V4(ip) => match ip.octets() {
                [192, 168, third, _] => Some(third),
                _ => None,
            },
            IpAddr::V6(_) => None,
        });
        Self {
            used: used.collect(),
            third: 0,
            fourth: 0,
        }
    }
}

impl Iterator for FreeNetworks {
    type Item = [Ipv4Addr; 2];

    fn next(&mut self) -> Option<[Ipv4Addr; 2]> {
        while self.fourth > 252 || self.used.contains(&self.third) {
            (self.third, self.fourth) = (self.third.checked_add(1)?, 0);
        }
        let first = self.fourth as u8;
        self.fourth += 4;
        Some([1, 2].map(|host| Ipv4Addr::new(192, 168, self.third, first + host)))
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
}
