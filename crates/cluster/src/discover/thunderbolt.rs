//! Thunderbolt ports as macOS's `system_profiler SPThunderboltDataType -json` prints them.

use serde::Deserialize;

use super::BadOutput;
use super::machine::{Neighbour, ThunderboltPort};

#[derive(Deserialize)]
struct Printed {
    #[serde(rename = "SPThunderboltDataType", default)]
    buses: Vec<Bus>,
}

/// A bus is a port of the machine.
#[derive(Deserialize)]
struct Bus {
    #[serde(rename = "_items", default)]
    attached: Vec<Attached>,
    device_name_key: Option<String>,
    domain_uuid_key: Option<String>,
    receptacle_1_tag: Option<Receptacle>,
}

#[derive(Deserialize)]
struct Receptacle {
    current_speed_key: Option<String>,
    receptacle_id_key: Option<String>,
    receptacle_status_key: Option<String>,
}

/// What is plugged in; only a computer has a domain of its own.
#[derive(Deserialize)]
struct Attached {
    #[serde(rename = "_name", default)]
    name: String,
    domain_uuid_key: Option<String>,
}

/// Returns what kind of machine it is, and its ports by receptacle, without their interfaces.
pub(crate) fn parse(output: &str) -> Result<(Option<String>, Vec<ThunderboltPort>), BadOutput> {
    let printed: Printed = serde_json::from_str(output).map_err(|error| BadOutput {
        tool: "system_profiler SPThunderboltDataType -json",
        reason: error.to_string(),
    })?;
    let model = printed
        .buses
        .iter()
        .find_map(|bus| bus.device_name_key.clone());
    // A Mac without Thunderbolt, or a bus without a socket, has nothing to cable.
    let mut ports: Vec<ThunderboltPort> = printed.buses.into_iter().filter_map(port).collect();
    ports.sort_by_key(|port| port.receptacle);
    Ok((model, ports))
}

fn port(bus: Bus) -> Option<ThunderboltPort> {
    let receptacle = bus.receptacle_1_tag?;
    let is_connected = receptacle.receptacle_status_key.as_deref() == Some("receptacle_connected");
    let peer = bus.attached.into_iter().find_map(|attached| {
        Some(Neighbour {
            name: attached.name,
            domain: attached.domain_uuid_key?,
        })
    });
    Some(ThunderboltPort {
        receptacle: receptacle.receptacle_id_key?.parse().ok()?,
        interface: None,
        domain: bus.domain_uuid_key?,
        is_connected: is_connected || peer.is_some(),
        // With nothing plugged in it is what the port could do, "Up to 120 Gb/s".
        speed_gbit: receptacle.current_speed_key.as_deref().and_then(gbit),
        peer,
    })
}

/// `80 Gb/s`, an agreed speed.
fn gbit(text: &str) -> Option<u32> {
    text.strip_suffix("Gb/s")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_what_is_plugged_in_are_found() {
        let (model, ports) = parse(include_str!("fixtures/mac1-thunderbolt.json")).unwrap();
        assert_eq!(model.as_deref(), Some("Mac mini"));
        let seen = ports.iter().map(|port| {
            let peer = port.peer.as_ref().map(|peer| peer.name.as_str());
            (port.receptacle, port.is_connected, port.speed_gbit, peer)
        });
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [
                (1, false, None, None),
                (2, true, Some(80), Some("Mac mini")),
                (3, true, Some(40), None),
            ]
        );
        let peer = ports[1].peer.as_ref().unwrap();
        assert_eq!(peer.domain, "0B000000-0000-4000-8000-000000000002");
    }

    #[test]
    fn a_mac_without_thunderbolt_has_no_ports() {
        for output in [r#"{"SPThunderboltDataType": []}"#, "{}"] {
            assert!(parse(output).unwrap().1.is_empty());
        }
        let bus = r#"{"SPThunderboltDataType": [{"_name": "thunderbolt_bus", "_items": [{}]}]}"#;
        assert!(parse(bus).unwrap().1.is_empty());
        assert!(parse("Thunderbolt:").is_err());
    }
}
