//! Where ranks run, from the flags that name machines.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result, bail};
use shoal_cluster::Placement;
use shoal_cluster::hostfile::{Host, Hostfile};

use crate::cli::{DEFAULT_PORT, MachineArgs};

/// Puts the flags into the cluster's words; `None` where they name no machine.
pub(crate) fn of(args: &MachineArgs) -> Result<Option<Placement>> {
    let Some(token_file) = &args.token_file else {
        return Ok(None);
    };
    let addresses = match &args.hostfile {
        Some(path) => peers(&Hostfile::read(path)?, path)?,
        None => args.peer.clone(),
    };
    distinct(&addresses)?;
    Ok(Some(Placement::Peers {
        addresses,
        token_file: std::path::absolute(token_file)?,
    }))
}

/// Refuses a node that is named twice.
pub(crate) fn distinct(addresses: &[String]) -> Result<()> {
    let repeats = |at: &usize| addresses[..*at].contains(&addresses[*at]);
    if let Some(twice) = (1..addresses.len()).find(repeats) {
        bail!("{} is named twice; name each node once", addresses[twice]);
    }
    Ok(())
}

/// The nodes of a hostfile: all its hosts but the first, which is rank 0 and has to be this machine.
fn peers(hostfile: &Hostfile, path: &Path) -> Result<Vec<String>> {
    let (first, others) = hostfile
        .hosts
        .split_first()
        .context("a hostfile names somebody")?;
    if others.is_empty() {
        bail!(
            "{} names one host; add the machines that run `shoal node`",
            path.display()
        );
    }
    // Behind an address translator a machine knows none of its addresses, so only a better candidate is a contradiction.
    if !is_here(first)
        && let Some(rank) = others.iter().position(is_here)
    {
        bail!(
            "{} says that this machine is rank {} ({}): run this on rank 0 ({}), or list this machine first",
            path.display(),
            rank + 1,
            others[rank].ssh,
            first.ssh
        );
    }
    Ok(others
        .iter()
        .map(|host| host.address(DEFAULT_PORT))
        .collect())
}

/// Whether a host of the file is, by its name or an address, this machine.
fn is_here(host: &Host) -> bool {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let short = |name: &str| name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    if let Ok(ip) = host.host().parse() {
        return is_own(ip) || host.ips.iter().copied().any(is_own);
    }
    host.host() == "localhost"
        || short(host.host()) == short(&name)
        || host.ips.iter().copied().any(is_own)
}

/// Only its own addresses can be bound by a machine.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_hosts(text: &str) -> Result<Vec<String>, String> {
        let hostfile = Hostfile::parse(text).unwrap();
        peers(&hostfile, Path::new("hosts.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn all_but_the_first_are_nodes() {
        let hosts = r#"[{"ssh": "127.0.0.1"}, {"ssh": "me@mac2.local"}, {"ssh": "mac3", "ips": ["fd00::3"]}]"#;
        assert_eq!(
            of_hosts(hosts).unwrap(),
            ["mac2.local:7070", "[fd00::3]:7070"]
        );
    }

    #[test]
    fn a_machine_that_cannot_say_who_it_is_counts_as_the_first() {
        let hosts = r#"[{"ssh": "203.0.113.1"}, {"ssh": "203.0.113.2"}]"#;
        assert_eq!(of_hosts(hosts).unwrap(), ["203.0.113.2:7070"]);
    }

    #[test]
    fn another_rank_than_the_first_is_told_where_to_go() {
        let hosts = r#"[{"ssh": "203.0.113.1"}, {"ssh": "b", "ips": ["127.0.0.1"]}]"#;
        assert_eq!(
            of_hosts(hosts).unwrap_err(),
            "hosts.json says that this machine is rank 1 (b): run this on rank 0 (203.0.113.1), or list this machine first"
        );
    }

    #[test]
    fn a_node_that_is_named_twice_is_refused() {
        let distinct = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&it| it.to_owned()).collect();
            distinct(&names).map_err(|error| error.to_string())
        };
        distinct(&["a:1", "b:1", "a:2"]).unwrap();
        assert_eq!(
            distinct(&["a:1", "b:1", "a:1"]).unwrap_err(),
            "a:1 is named twice; name each node once"
        );
    }

    #[test]
    fn one_host_is_no_group() {
        assert_eq!(
            of_hosts(r#"[{"ssh": "127.0.0.1"}]"#).unwrap_err(),
            "hosts.json names one host; add the machines that run `shoal node`"
        );
    }
}
