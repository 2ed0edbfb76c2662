//! A Mac put together from what its tools print.

use super::BadOutput;
use super::machine::{Machine, RdmaDevice, System};
use super::{hardware_ports, ibv, ifconfig, thunderbolt};

/// What each tool printed; `None` for one that is not there or failed.
#[derive(Default)]
pub(crate) struct Printed {
    /// `system_profiler SPThunderboltDataType -json`
    pub(crate) thunderbolt: Option<String>,
    /// `networksetup -listallhardwareports`
    pub(crate) hardware_ports: Option<String>,
    /// `ifconfig -a`
    pub(crate) ifconfig: Option<String>,
    /// `ibv_devices`
    pub(crate) ibv_devices: Option<String>,
    /// `ibv_devinfo -v`
    pub(crate) ibv_devinfo: Option<String>,
    /// `rdma_ctl status`
    pub(crate) rdma_status: Option<String>,
}

/// Joins what the tools printed; `unknown` is what could not be asked.
pub(crate) fn machine(name: String, printed: &Printed, mut unknown: Vec<String>) -> Machine {
    let text = |printed: &Option<String>| printed.clone().unwrap_or_default();
    let ports = hardware_ports::parse(&text(&printed.hardware_ports));
    let mut interfaces = ifconfig::parse(&text(&printed.ifconfig));
    for interface in &mut interfaces {
        let named = ports.iter().find(|(device, _)| *device == interface.name);
        interface.port = named.map(|(_, port)| port.clone());
    }
    let empty = || Ok((None, Vec::new()));
    let found = printed
        .thunderbolt
        .as_deref()
        .map_or_else(empty, thunderbolt::parse);
    let (model, mut thunderbolt) = found.unwrap_or_else(|error: BadOutput| {
        unknown.push(error.to_string());
        (None, Vec::new())
    });
    for port in &mut thunderbolt {
        let socket = format!("Thunderbolt {}", port.receptacle);
        let named = ports.iter().find(|(_, port)| *port == socket);
        port.interface = named.map(|(device, _)| device.clone());
    }
    Machine {
        name,
        system: System::Macos,
        model,
        interfaces,
        rdma: rdma(&text(&printed.ibv_devices), &text(&printed.ibv_devinfo)),
        rdma_enabled: printed.rdma_status.as_deref().and_then(is_enabled),
        thunderbolt,
        unknown,
    }
}

/// Every device that is listed, described or not.
fn rdma(listed: &str, described: &str) -> Vec<RdmaDevice> {
    let mut devices = ibv::describe(described);
    for name in ibv::devices(listed) {
        if devices.iter().all(|device| device.name != name) {
            devices.push(ibv::device(&name));
        }
    }
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    devices
}

fn is_enabled(status: &str) -> Option<bool> {
    let words = status.split(|it: char| !it.is_ascii_alphanumeric());
    let mut answers = words.filter_map(|word| match word.to_ascii_lowercase().as_str() {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    });
    answers.next()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::discover::PortState;

    /// A Mac mini of three ports, the second of which leads to `mac2`.
    pub(crate) fn mac1() -> Machine {
        let text = |text: &str| Some(text.to_owned());
        let printed = Printed {
            thunderbolt: text(include_str!("fixtures/mac1-thunderbolt.json")),
            hardware_ports: text(include_str!("fixtures/mac1-hardwareports.txt")),
            ifconfig: text(include_str!("fixtures/mac1-ifconfig.txt")),
            ibv_devices: text(
                "    rdma_en2 \t e0c5797d9c8fac05\n    rdma_en9 \t e9c5797d9c8fac05\n",
            ),
            ibv_devinfo: text(include_str!("fixtures/mac1-devinfo.txt")),
            rdma_status: text("enabled\n"),
        };
        machine("mac1.local".to_owned(), &printed, Vec::new())
    }

    #[test]
    fn what_the_tools_print_becomes_a_machine() {
        let mac = mac1();
        assert_eq!(mac.model.as_deref(), Some("Mac mini"));
        assert_eq!(mac.rdma_enabled, Some(true));
        assert_eq!(mac.thunderbolt[1].interface.as_deref(), Some("en3"));
        assert_eq!(
            mac.interface("en3").unwrap().port.as_deref(),
            Some("Thunderbolt 2")
        );
        assert_eq!(
            mac.rdma_on("en3").unwrap().ports[0].state,
            PortState::Active
        );
        assert_eq!(mac.bridge_of("en3").unwrap().name, "bridge0");
        assert!(mac.rdma_on("en9").unwrap().ports.is_empty());
        let text = serde_json::to_string(&mac).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), mac);
    }

    #[test]
    fn what_is_not_there_is_not_known() {
        let printed = Printed {
            thunderbolt: Some("error".to_owned()),
            ..Printed::default()
        };
        let mac = machine(
            "mac".to_owned(),
            &printed,
            vec!["`ifconfig`: gone".to_owned()],
        );
        assert_eq!(mac.unknown.len(), 2, "{:?}", mac.unknown);
        assert_eq!(mac.rdma_enabled, None);
        assert_eq!(is_enabled("RDMA is disabled."), Some(false));
    }
}
