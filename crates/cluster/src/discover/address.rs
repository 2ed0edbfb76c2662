//! An address with the network it is in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An IP address and how many of its leading bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    ip: IpAddr,
    /// At most as long as the address.
    prefix: u8,
}

/// A text is no address with a prefix.
#[derive(Debug, Error)]
#[error("`{0}` is no address such as 192.168.1.14/24")]
pub struct BadAddress(String);

impl Address {
    /// Makes an address of a network with a prefix of so many bits; `None` where the address has fewer.
    #[must_use]
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(ip)).then_some(Self { ip, prefix })
    }

    /// Returns the address without its network.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Whether it is in the same network as another.
    #[must_use]
    pub fn shares_network(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.network() == other.network()
    }

    /// Returns how many of its leading bits name the network.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address can be in both networks.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        let of = |it: &Self| Self { prefix, ..*it };
        of(self).shares_network(&of(other))
    }

    /// Whether it was given by the machine to itself, so that it changes and may be gone for minutes after a cable was
    /// pulled.
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
    }

    /// Returns the IPv4 address, if it is one that lasts.
    pub(crate) fn lasting_v4(&self) -> Option<Ipv4Addr> {
        match self.ip {
            IpAddr::V4(ip) if !ip.is_link_local() && !ip.is_loopback() => Some(ip),
            _ => None,
        }
    }

    /// The bits of the network, and which family it is of.
    fn network(&self) -> (bool, u128) {
        let (is_v4, bits) = match self.ip {
            IpAddr::V4(ip) => (true, ip.to_bits().into()),
            IpAddr::V6(ip) => (false, ip.to_bits()),
        };
        let host_bits = u32::from(width(self.ip) - self.prefix);
        (is_v4, bits.checked_shr(host_bits).unwrap_or(0))
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let parsed = text
            .split_once('/')
            .and_then(|(ip, prefix)| Self::new(ip.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| BadAddress(text.to_owned()))
    }
}

impl TryFrom<String> for Address {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Bits of an address.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_with_their_prefix() {
        for text in ["192.168.1.14/24", "fe80::1/64", "0.0.0.0/0", "::1/128"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "1.2.3.4", "1.2.3.4/33", "::/129", "x/1", "1.2.3.4/-1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_told_apart() {
        let shared = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|it| it.parse::<Address>().unwrap());
            one.shares_network(&other)
        };
        assert!(shared("10.0.0.1/30", "10.0.0.2/30"));
        assert!(!shared("10.0.0.1/30", "10.0.0.5/30"));
        assert!(!shared("10.0.0.1/24", "10.0.0.2/30"));
        assert!(shared("10.0.0.1/0", "99.0.0.5/0"));
        assert!(shared("fd00::1/64", "fd00::2/64"));
        assert!(!shared("0.0.0.0/0", "::/0"));
        assert!(!shared("10.0.0.1/32", "10.0.0.2/32"));
    }
}
