//! Addresses as Linux's `ip -json address` prints them.

use std::net::IpAddr;

use serde::Deserialize;

use super::BadOutput;
use super::address::Address;
use super::machine::Interface;

#[derive(Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Info>,
}

#[derive(Deserialize)]
struct Info {
    local: Option<IpAddr>,
    prefixlen: u8,
}

/// Gives the interfaces the addresses that `ip` printed for them.
pub(crate) fn add_addresses(interfaces: &mut [Interface], output: &str) -> Result<(), BadOutput> {
    let links: Vec<Link> = serde_json::from_str(output).map_err(|error| BadOutput {
        tool: "ip -json address",
        reason: error.to_string(),
    })?;
    for interface in interfaces {
        let of_it = links.iter().filter(|link| link.ifname == interface.name);
        let addresses = of_it
            .flat_map(|link| &link.addr_info)
            .filter_map(|info| Address::new(info.local?, info.prefixlen));
        interface.addresses = addresses.collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_to_their_interfaces() {
        let output = r#"[
            {"ifindex": 1, "ifname": "lo", "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8}]},
            {"ifindex": 2, "ifname": "eth0", "flags": ["UP"], "mtu": 1500, "addr_info": [
                {"family": "inet", "local": "10.0.0.1", "prefixlen": 24, "broadcast": "10.0.0.255", "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
                {"family": "inet", "local": "10.0.0.1", "prefixlen": 33}]},
            {},
            {"ifname": "eth1", "addr_info": []}
        ]"#;
        let output = output.replace("{},", "");
        let mut interfaces = ["eth0", "eth1", "eth2"].map(|name| Interface {
            name: name.to_owned(),
            ..Interface::default()
        });
        add_addresses(&mut interfaces, &output).unwrap();
        let addresses = interfaces[0].addresses.iter().map(Address::to_string);
        assert_eq!(addresses.collect::<Vec<_>>(), ["10.0.0.1/24", "fe80::1/64"]);
        assert!(interfaces[1..].iter().all(|it| it.addresses.is_empty()));
        let error = add_addresses(&mut interfaces, "Option \"-json\" is unknown").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("`ip -json address` printed something")
        );
    }
}
