//! RDMA devices as macOS's `ibv_devices` and `ibv_devinfo` print them.

use super::machine::{Gid, PortState, RdmaDevice, RdmaPort};

/// Returns the names that `ibv_devices` lists.
pub(crate) fn devices(output: &str) -> Vec<String> {
    let rows = output.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, guid) = (words.next()?, words.next()?);
        // The two lines of the heading have no number there.
        let is_guid = guid.len() == 16 && guid.bytes().all(|it| it.is_ascii_hexdigit());
        is_guid.then(|| name.to_owned())
    });
    rows.collect()
}

/// Returns the devices that `ibv_devinfo` (with `-v` also their addresses) describes.
pub(crate) fn describe(output: &str) -> Vec<RdmaDevice> {
    let mut devices: Vec<RdmaDevice> = Vec::new();
    for line in output.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        if key == "hca_id" {
            devices.push(device(value));
            continue;
        }
        let Some(device) = devices.last_mut() else {
            continue;
        };
        if key == "port" {
            device.ports.push(RdmaPort {
                number: value.parse().unwrap_or(1),
                state: PortState::Unknown,
                rate: None,
                link_layer: None,
                gids: Vec::new(),
            });
            continue;
        }
        let Some(port) = device.ports.last_mut() else {
            continue;
        };
        match key {
            "state" => port.state = PortState::parse(value),
            "link_layer" => port.link_layer = Some(value.to_owned()),
            // Width comes first: "8X (8)", then "10.0 Gbps (4)".
            "active_width" | "active_speed" => {
                let value = value.split(" (").next().unwrap_or(value);
                let before = port
                    .rate
                    .take()
                    .map_or_else(String::new, |rate| rate + " × ");
                port.rate = Some(before + value);
            }
            key => port.gids.extend(gid(key, value)),
        }
    }
    devices
}

/// A device without ports; macOS names it after its interface.
pub(crate) fn device(name: &str) -> RdmaDevice {
    RdmaDevice {
        name: name.to_owned(),
        interface: name.strip_prefix("rdma_").map(str::to_owned),
        ports: Vec::new(),
    }
}

/// `GID[  1]: ::ffff:192.168.0.1, RoCE v2`; the part behind the comma is not always there.
fn gid(key: &str, value: &str) -> Option<Gid> {
    let index = key.strip_prefix("GID[")?.strip_suffix(']')?;
    let (gid, kind) = match value.split_once(',') {
        Some((gid, kind)) => (gid, Some(kind.trim().to_owned())),
        None => (value, None),
    };
    Some(Gid {
        index: index.trim().parse().ok()?,
        gid: gid.trim().parse().ok()?,
        kind,
        interface: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed() {
        let output = "    device          \t   node GUID\n    ------          \t----------------\n    \
                      rdma_en2        \te0c5797d9c8fac05\n    rdma_en4        \te2c5797d9c8fac05\n";
        assert_eq!(devices(output), ["rdma_en2", "rdma_en4"]);
        let heading: String = output.lines().take(2).collect();
        assert!(devices(&heading).is_empty());
    }

    #[test]
    fn devices_are_described() {
        let devices = describe(include_str!("fixtures/mac1-devinfo.txt"));
        let seen = devices
            .iter()
            .map(|it| (it.name.as_str(), it.interface.as_deref(), it.is_active()));
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [
                ("rdma_en2", Some("en2"), false),
                ("rdma_en3", Some("en3"), true),
                ("rdma_en4", Some("en4"), false),
            ]
        );
        let port = &devices[1].ports[0];
        assert_eq!(port.rate.as_deref(), Some("8X × 10.0 Gbps"));
        assert_eq!(port.link_layer.as_deref(), Some("Thunderbolt"));
        let gids = port
            .gids
            .iter()
            .map(|it| format!("{} {}", it.index, it.gid));
        assert_eq!(
            gids.collect::<Vec<_>>(),
            ["0 fe80::3498:1bff:fe4a:9544", "1 ::ffff:192.168.0.1"]
        );
    }

    #[test]
    fn nothing_is_described_where_there_is_nothing() {
        for output in [
            "",
            "No IB devices found\n",
            "state: PORT_ACTIVE (4)\nport: 1",
        ] {
            assert!(describe(output).is_empty());
        }
    }
}
