//! Interfaces as macOS's `ifconfig -a` prints them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::Address;
use super::machine::Interface;

/// Returns the interfaces but loopback, by name.
pub(crate) fn parse(output: &str) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for line in output.lines() {
        if !line.starts_with([' ', '\t']) {
            interfaces.extend(heading(line));
            continue;
        }
        let Some(interface) = interfaces.last_mut() else {
            continue;
        };
        let mut words = line.split_whitespace();
        match words.next() {
            Some("inet") => interface.addresses.extend(v4(words)),
            Some("inet6") => interface.addresses.extend(v6(words)),
            Some("member:") => interface.members.extend(words.next().map(str::to_owned)),
            // Interfaces that have no cable say nothing of one.
            Some("status:") => interface.is_up &= words.next() == Some("active"),
            _ => {}
        }
    }
    interfaces.retain(|interface| !interface.name.starts_with("lo"));
    interfaces.sort_by(|one, other| one.name.cmp(&other.name));
    interfaces
}

/// `en2: flags=8963<UP,BROADCAST,RUNNING> mtu 1500`
fn heading(line: &str) -> Option<Interface> {
    let (name, rest) = line.split_once(": ")?;
    let flags = rest.split_once('<')?.1.split_once('>')?.0;
    let mut words = rest.split_whitespace();
    let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next());
    Some(Interface {
        name: name.to_owned(),
        is_up: flags.split(',').any(|flag| flag == "UP"),
        mtu_bytes: mtu.and_then(|mtu| mtu.parse().ok()),
        ..Interface::default()
    })
}

/// `192.168.0.1 netmask 0xfffffffc broadcast 192.168.0.3`
fn v4<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Address> {
    let ip: Ipv4Addr = words.next()?.parse().ok()?;
    words.find(|word| *word == "netmask")?;
    let mask = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    Address::new(IpAddr::V4(ip), mask.leading_ones() as u8)
}

/// `fe80::1%en2 prefixlen 64 scopeid 0x5`
fn v6<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Address> {
    let ip: Ipv6Addr = words.next()?.split('%').next()?.parse().ok()?;
    words.find(|word| *word == "prefixlen")?;
    Address::new(IpAddr::V6(ip), words.next()?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found() {
        let interfaces = parse(include_str!("fixtures/mac1-ifconfig.txt"));
        let seen = interfaces.iter().map(|it| {
            let addresses: Vec<String> = it.addresses.iter().map(Address::to_string).collect();
            (it.name.as_str(), it.is_up, addresses.join(" "))
        });
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [
                ("bridge0", true, "169.254.7.9/16".to_owned()),
                ("en0", true, "192.168.1.14/24 fe80::10/64".to_owned()),
                ("en2", false, String::new()),
                ("en3", true, "fe80::11/64 192.168.0.1/30".to_owned()),
                ("en4", true, String::new()),
            ]
        );
        assert_eq!(interfaces[0].members, ["en2", "en3", "en4"]);
        assert_eq!(interfaces[0].mtu_bytes, Some(1500));
    }

    #[test]
    fn anything_may_be_printed() {
        for output in [
            "",
            "\tinet 1.2.3.4",
            "en0: flags=1<UP> mtu 1\n\tinet6 ::1 prefixlen 129",
            "en0: flags=1",
            "en0: flags=1<UP> mtu\n\tinet\n\tinet6 x\n\tmember:",
        ] {
            let interfaces = parse(output);
            assert!(interfaces.iter().all(|it| it.addresses.is_empty()));
        }
    }
}
