//! Which of a machine's interfaces may carry the bytes of a rank.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::FabricError;

/// Which interfaces may carry a rank's bytes over TCP.
///
/// It is read from names with commas: `en5,en6` are the only ones; `^docker0,wg*` are left out, as well as those that always
/// are. A `*` at the end of a name stands for whatever follows. The list is that of `NCCL_SOCKET_IFNAME`, but a name is
/// meant as it is: `en1` is not `en10`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(Choice);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Choice {
    #[default]
    Usual,
    Only(Vec<String>),
    Without(Vec<String>),
    Listed(Vec<IpAddr>),
}

impl Interfaces {
    /// All but those that lead to no other machine, through a tunnel, or through the air.
    pub const USUAL: Self = Self(Choice::Usual);

    /// Returns what takes exactly these addresses of this machine, each as a network of its own: for tests, whose machines
    /// have no interfaces but loopback.
    #[doc(hidden)]
    #[must_use]
    pub fn listed(addresses: &[IpAddr]) -> Self {
        Self(Choice::Listed(addresses.to_vec()))
    }

    /// Returns the addresses that were listed, if any were.
    pub(crate) fn as_listed(&self) -> Option<&[IpAddr]> {
        match &self.0 {
            Choice::Listed(addresses) => Some(addresses),
            Choice::Usual | Choice::Only(_) | Choice::Without(_) => None,
        }
    }

    /// Whether somebody has chosen this interface by its name.
    pub(crate) fn pin(&self, name: &str) -> bool {
        matches!(&self.0, Choice::Only(names) if is_in(names, name))
    }

    /// Whether the connection that two ranks find each other by may carry bytes if it is on this interface; nothing stands for
    /// one that is not known.
    pub(crate) fn allow(&self, name: Option<&str>) -> bool {
        match (&self.0, name) {
            (Choice::Usual | Choice::Listed(_), _) | (Choice::Without(_), None) => true,
            (Choice::Only(_), None) => false,
            (Choice::Only(names), Some(name)) => is_in(names, name),
            (Choice::Without(names), Some(name)) => !is_in(names, name),
        }
    }

    /// Whether bytes may be striped over this interface, which the ranks found by themselves.
    pub(crate) fn allow_found(&self, name: &str, is_tunnel: bool) -> bool {
        let is_usual = || !is_tunnel && !NEVER.iter().any(|pattern| matches(pattern, name));
        match &self.0 {
            Choice::Only(names) => is_in(names, name),
            Choice::Without(names) => !is_in(names, name) && is_usual(),
            Choice::Usual => is_usual(),
            Choice::Listed(_) => false,
        }
    }
}

impl FromStr for Interfaces {
    type Err = FabricError;

    fn from_str(list: &str) -> Result<Self, FabricError> {
        let invalid = |what: String| {
            Err(FabricError::Invalid(format!(
                "`{list}` names no interfaces: {what}; give some, such as en5,en6 or eth*, or begin with ^ to leave some out"
            )))
        };
        let leaves_out = list.trim_start().starts_with('^');
        let mut names = Vec::new();
        for word in list.split(',').map(str::trim) {
            let name = match word.strip_prefix('^') {
                None => word,
                // Some write it before each name.
                Some(name) if leaves_out => name,
                Some(_) => {
                    return invalid(format!(
                        "`{word}` comes after names that are to be used alone"
                    ));
                }
            };
            let stem = name.strip_suffix('*').unwrap_or(name);
            let is_name = |letter: char| letter.is_ascii_graphic() && !"*^/".contains(letter);
            if name.is_empty() || !stem.chars().all(is_name) {
                return invalid(format!("`{word}` is none"));
            }
            names.push(name.to_owned());
        }
        Ok(Self(match leaves_out {
            true => Choice::Without(names),
            false => Choice::Only(names),
        }))
    }
}

impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Choice::Usual => f.write_str("the usual ones"),
            Choice::Only(names) => f.write_str(&names.join(",")),
            Choice::Without(names) => write!(f, "^{}", names.join(",")),
            Choice::Listed(addresses) => write!(f, "{addresses:?}"),
        }
    }
}

fn is_in(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => name.starts_with(stem),
        None => name == pattern,
    }
}

/// What is never striped over unless it is named: bridges of containers and virtual machines, whose addresses are the same on
/// every machine; tunnels, which go over one of the cables themselves; and what shares the air with everybody.
const NEVER: &[&str] = &[
    "lo",
    "docker*",
    "br-*",
    "podman*",
    "cni*",
    "flannel*",
    "cali*",
    "lxcbr*",
    "lxdbr*",
    "virbr*",
    "vnet*",
    "vxlan*",
    "geneve*",
    "weave*",
    "tun*",
    "tap*",
    "wg*",
    "utun*",
    "tailscale*",
    "zt*",
    "ppp*",
    "ipsec*",
    "wl*",
    "awdl*",
    "llw*",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these names a list lets carry bytes: as the connection that was asked for, and as one that was found.
    fn check(list: &str, asked: &[&str], found: &[&str]) {
        const NAMES: [&str; 7] = ["lo", "eth0", "eth1", "en1", "en10", "docker0", "wg0"];
        let interfaces: Interfaces = match list {
            "" => Interfaces::USUAL,
            list => list.parse().expect("a list"),
        };
        let those = |holds: &dyn Fn(&str) -> bool| -> Vec<&str> {
            NAMES.into_iter().filter(|name| holds(name)).collect()
        };
        assert_eq!(those(&|name| interfaces.allow(Some(name))), asked, "{list}");
        assert_eq!(
            those(&|name| interfaces.allow_found(name, false)),
            found,
            "{list}"
        );
    }

    #[test]
    fn names_pin_or_leave_out() {
        let all = ["lo", "eth0", "eth1", "en1", "en10", "docker0", "wg0"];
        check("", &all, &["eth0", "eth1", "en1", "en10"]);
        check("en1", &["en1"], &["en1"]);
        check("en1*", &["en1", "en10"], &["en1", "en10"]);
        check(
            " eth1 , docker0",
            &["eth1", "docker0"],
            &["eth1", "docker0"],
        );
        let rest = ["lo", "eth1", "en1", "en10", "docker0", "wg0"];
        check("^eth0", &rest, &["eth1", "en1", "en10"]);
        let rest = ["lo", "eth0", "eth1", "wg0"];
        check("^en*,docker0", &rest, &["eth0", "eth1"]);
        check("^en*,^docker0", &rest, &["eth0", "eth1"]);
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for list in [
            "",
            ",",
            "eth0,",
            "^",
            "eth0,^wg0",
            "e th",
            "a*b",
            "../etc",
            "é",
        ] {
            let error = list.parse::<Interfaces>().expect_err(list).to_string();
            assert!(error.contains("names no interfaces"), "{error}");
        }
    }

    #[test]
    fn tunnels_are_found_only_by_name() {
        assert!(!Interfaces::USUAL.allow_found("vpn7", true));
        let named: Interfaces = "vpn7".parse().expect("a list");
        assert!(named.allow_found("vpn7", true) && named.pin("vpn7"));
    }
}
