//! What Linux shows below `/sys/class`: network interfaces and RDMA devices.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

use super::machine::{Gid, Interface, PortState, RdmaDevice, RdmaPort};

/// Returns the interfaces below `root`, by name, without their addresses, which sysfs does not know.
pub(crate) fn interfaces(root: &Path) -> Vec<Interface> {
    let folder = root.join("class/net");
    let names = entries(&folder).into_iter().filter(|name| name != "lo");
    // Files among the folders are the bonding driver's.
    let names = names.filter(|name| folder.join(name).join("operstate").exists());
    let interface = |name: String| {
        let folder = folder.join(&name);
        // Drivers without the notion of a link say `unknown` while they are switched on; flag 1 is the switch.
        let is_on = number(&folder.join("flags")).is_some_and(|flags| flags & 1 == 1);
        let state = line(&folder.join("operstate")).unwrap_or_default();
        Interface {
            port: None,
            is_up: state == "up" || (state == "unknown" && is_on),
            mtu_bytes: number(&folder.join("mtu")),
            // Down, or without a speed, it is an error or -1.
            speed_mbit: number(&folder.join("speed")).filter(|speed| *speed > 0),
            addresses: Vec::new(),
            members: entries(&folder.join("brif")),
            name,
        }
    };
    names.map(interface).collect()
}

/// Returns the RDMA devices below `root`, by name.
pub(crate) fn rdma_devices(root: &Path) -> Vec<RdmaDevice> {
    let folder = root.join("class/infiniband");
    let device = |name: String| {
        let folder = folder.join(&name);
        let mut ports: Vec<RdmaPort> = entries(&folder.join("ports"))
            .into_iter()
            .filter_map(|number| {
                Some(rdma_port(
                    &folder.join("ports").join(&number),
                    number.parse().ok()?,
                ))
            })
            .collect();
        ports.sort_by_key(|port| port.number);
        let gids = ports.iter().flat_map(|port| &port.gids);
        let of_gid = gids.into_iter().find_map(|gid| gid.interface.clone());
        // InfiniBand's interface is named by the device alone.
        let of_device = || entries(&folder.join("device/net")).into_iter().next();
        RdmaDevice {
            name,
            interface: of_gid.or_else(of_device),
            ports,
        }
    };
    entries(&folder).into_iter().map(device).collect()
}

fn rdma_port(folder: &Path, number: u16) -> RdmaPort {
    let mut indices: Vec<u16> = entries(&folder.join("gids"))
        .iter()
        .filter_map(|index| index.parse().ok())
        .collect();
    indices.sort_unstable();
    let gid = |index: u16| {
        let gid: Ipv6Addr = line(&folder.join(format!("gids/{index}")))?.parse().ok()?;
        // An empty place of the table, or one with the prefix only.
        let is_empty = gid.is_unspecified() || gid.octets()[8..].iter().all(|byte| *byte == 0);
        (!is_empty).then(|| Gid {
            index,
            gid,
            kind: line(&folder.join(format!("gid_attrs/types/{index}"))),
            interface: line(&folder.join(format!("gid_attrs/ndevs/{index}"))),
        })
    };
    RdmaPort {
        number,
        state: PortState::parse(&line(&folder.join("state")).unwrap_or_default()),
        rate: line(&folder.join("rate")),
        link_layer: line(&folder.join("link_layer")),
        gids: indices.into_iter().filter_map(gid).collect(),
    }
}

/// Names in a folder, in order; none where there is no such folder.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// A file's only line; an attribute that cannot be read, or holds nothing, is one that does not apply.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number(path: &Path) -> Option<u32> {
    let text = line(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes the tree that `text` lists: a path and, behind the first blank, what is in it.
    fn tree(text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (path, content) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        root
    }

    const ROCE: &str = include_str!("fixtures/sys-roce.txt");

    #[test]
    fn interfaces_are_found() {
        let root = tree(ROCE);
        let found = interfaces(root.path());
        let names: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["br0", "eno1", "enp1s0f0np0", "enp1s0f1np1", "wg0"]);
        let by_name = |name: &str| found.iter().find(|it| it.name == name).unwrap();
        let fast = by_name("enp1s0f0np0");
        assert!(fast.is_up);
        assert_eq!(
            (fast.mtu_bytes, fast.speed_mbit),
            (Some(9000), Some(100_000))
        );
        let down = by_name("enp1s0f1np1");
        assert!(!down.is_up);
        assert_eq!(down.speed_mbit, None);
        assert!(by_name("wg0").is_up);
        assert_eq!(by_name("br0").members, ["eno1"]);
    }

    #[test]
    fn rdma_devices_are_found() {
        let root = tree(ROCE);
        let found = rdma_devices(root.path());
        let [first, second] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            (first.name.as_str(), first.interface.as_deref()),
            ("mlx5_0", Some("enp1s0f0np0"))
        );
        assert!(first.is_active() && !second.is_active());
        let port = &first.ports[0];
        assert_eq!(port.rate.as_deref(), Some("100 Gb/sec (4X EDR)"));
        assert_eq!(port.link_layer.as_deref(), Some("Ethernet"));
        let gids: Vec<String> = port
            .gids
            .iter()
            .map(|it| format!("{} {} {}", it.index, it.gid, it.kind.as_deref().unwrap()))
            .collect();
        assert_eq!(
            gids,
            [
                "0 fe80::1270:fdff:fe00:1 IB/RoCE v1",
                "1 fe80::1270:fdff:fe00:1 RoCE v2",
                "2 ::ffff:10.0.0.1 IB/RoCE v1",
                "3 ::ffff:10.0.0.1 RoCE v2",
            ]
        );
        assert_eq!(second.interface.as_deref(), Some("enp1s0f1np1"));
        assert_eq!(second.ports[0].state, PortState::Down);
        assert!(second.ports[0].gids.is_empty());
    }

    #[test]
    fn a_machine_without_rdma_has_none() {
        let root = tree("class/net/lo/operstate unknown");
        assert!(interfaces(root.path()).is_empty());
        assert!(rdma_devices(root.path()).is_empty());
    }
}
