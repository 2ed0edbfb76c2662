//! A machine as discovery finds it.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::address::Address;

/// What a machine has to talk to others with. Its JSON form goes from machine to machine; fields that a reader does not
/// know are passed over, so that releases may differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// Its operating system.
    pub system: System,
    /// What kind of machine it is, such as `Mac Studio`, where the system says so.
    #[serde(default)]
    pub model: Option<String>,
    /// Its network interfaces but loopback, by name.
    pub interfaces: Vec<Interface>,
    /// Its RDMA devices, by name.
    pub rdma: Vec<RdmaDevice>,
    /// Whether RDMA over Thunderbolt is switched on; `None` where that is not a question.
    #[serde(default)]
    pub rdma_enabled: Option<bool>,
    /// Its Thunderbolt ports, by receptacle.
    #[serde(default)]
    pub thunderbolt: Vec<ThunderboltPort>,
    /// What could not be found out, and why.
    #[serde(default)]
    pub unknown: Vec<String>,
}

/// An operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Linux.
    Linux,
    /// Apple's.
    Macos,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, such as `en2`.
    pub name: String,
    /// What it is, such as `Thunderbolt 2`, where the system says so.
    #[serde(default)]
    pub port: Option<String>,
    /// Whether it is switched on and has a link.
    pub is_up: bool,
    /// Longest packet.
    #[serde(default)]
    pub mtu_bytes: Option<u32>,
    /// Speed agreed on with the other end.
    #[serde(default)]
    pub speed_mbit: Option<u32>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// The interfaces that it joins, if it is a bridge.
    #[serde(default)]
    pub members: Vec<String>,
}

/// A device of the verbs library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaDevice {
    /// Its name, such as `rdma_en2` or `mlx5_0`.
    pub name: String,
    /// The network interface on the same wire.
    #[serde(default)]
    pub interface: Option<String>,
    /// Its ports, by number.
    pub ports: Vec<RdmaPort>,
}

/// A port of an [`RdmaDevice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaPort {
    /// Its number, from 1.
    pub number: u16,
    /// Whether it can be used.
    pub state: PortState,
    /// Speed and width in the system's words.
    #[serde(default)]
    pub rate: Option<String>,
    /// What it runs on, such as `Ethernet` or `Thunderbolt`.
    #[serde(default)]
    pub link_layer: Option<String>,
    /// The addresses by which it can be reached, by index; entries that hold none are left out.
    #[serde(default)]
    pub gids: Vec<Gid>,
}

/// An address of an [`RdmaPort`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u16,
    /// The address; one that stands for an IPv4 address is `::ffff:A.B.C.D`.
    pub gid: Ipv6Addr,
    /// How it is sent, such as `RoCE v2`, where the system says so.
    #[serde(default)]
    pub kind: Option<String>,
    /// The interface it belongs to, where the system says so.
    #[serde(default)]
    pub interface: Option<String>,
}

/// Whether an RDMA port can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// No link.
    Down,
    /// A link that is being set up.
    Init,
    /// A link that waits for its manager.
    Armed,
    /// Usable.
    Active,
    /// What the system says is not understood.
    Unknown,
}

/// A Thunderbolt port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThunderboltPort {
    /// Number of its socket, as the system counts them.
    pub receptacle: u16,
    /// The network interface of the port.
    #[serde(default)]
    pub interface: Option<String>,
    /// Names the port to the other end of a cable.
    pub domain: String,
    /// Whether something is plugged in.
    pub is_connected: bool,
    /// Speed agreed on with what is plugged in.
    #[serde(default)]
    pub speed_gbit: Option<u32>,
    /// The computer at the other end; `None` for anything else.
    #[serde(default)]
    pub peer: Option<Neighbour>,
}

/// A computer at the other end of a cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// What it calls itself.
    pub name: String,
    /// Names its port.
    pub domain: String,
}

impl Machine {
    /// Returns the interface of this name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|it| it.name == name)
    }

    /// Returns the RDMA device on the same wire as this interface.
    #[must_use]
    pub fn rdma_on(&self, interface: &str) -> Option<&RdmaDevice> {
        let is_its = |it: &&RdmaDevice| it.interface.as_deref() == Some(interface);
        self.rdma.iter().find(is_its)
    }

    /// Returns the switched-on bridge that has this interface among its members.
    #[must_use]
    pub fn bridge_of(&self, interface: &str) -> Option<&Interface> {
        let joins = |it: &&Interface| it.is_up && it.members.iter().any(|name| name == interface);
        self.interfaces.iter().find(joins)
    }
}

impl Interface {
    /// Whether it has an IPv4 address.
    #[must_use]
    pub fn has_v4(&self) -> bool {
        self.addresses.iter().any(|it| it.ip().is_ipv4())
    }
}

impl RdmaDevice {
    /// Whether one of its ports can be used.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.ports
            .iter()
            .any(|port| port.state == PortState::Active)
    }
}

impl PortState {
    /// Takes the state as sysfs (`4: ACTIVE`) and `ibv_devinfo` (`PORT_ACTIVE (4)`) write it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let states = [
            ("DOWN", Self::Down),
            ("INIT", Self::Init),
            ("ARMED", Self::Armed),
            ("ACTIVE", Self::Active),
        ];
        // `ACTIVE_DEFER` is a port that lost its link a moment ago.
        let words = text
            .split([' ', ':', '(', ')'])
            .map(|word| word.trim_start_matches("PORT_"));
        let mut known = words.filter_map(|word| states.iter().find(|(name, _)| *name == word));
        known.next().map_or(Self::Unknown, |(_, state)| *state)
    }

    /// Returns the state in a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Init => "init",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_in_both_spellings() {
        for (text, state) in [
            ("4: ACTIVE", PortState::Active),
            ("PORT_ACTIVE (4)", PortState::Active),
            ("1: DOWN", PortState::Down),
            ("PORT_DOWN (1)", PortState::Down),
            ("2: INIT", PortState::Init),
            ("3: ARMED", PortState::Armed),
            ("5: ACTIVE_DEFER", PortState::Unknown),
            ("", PortState::Unknown),
        ] {
            assert_eq!(PortState::parse(text), state, "{text}");
        }
    }
}
