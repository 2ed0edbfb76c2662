//! What is known to go wrong with links, seen before it does.

use serde::Serialize;

use super::cabling::Cabling;
use super::machine::{Machine, PortState, System};
use super::proposal::SPEED_WITHOUT_RDMA_MAX_GBIT;

/// Something that keeps a link from working, or from working well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trap {
    /// Where.
    pub machine: String,
    /// What was seen.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Returns what is wrong with the machines and the cables between them.
#[must_use]
pub fn traps(machines: &[Machine], cabling: &Cabling) -> Vec<Trap> {
    let mut found = Found(Vec::new());
    let bridged = |end: &super::End| {
        let name = end.interface.as_deref().unwrap_or_default();
        machines[end.machine].bridge_of(name).is_some()
    };
    if let Some(at) = cabling.on_loop(machines.len(), bridged) {
        found.add(
            &machines[at],
            "the cables make a loop, and bridges forward along it: every broadcast goes round for ever".to_owned(),
            "make \"Thunderbolt Bridge\" inactive in System Settings, Network, on each machine (until the next restart: \
             sudo ifconfig bridge0 down)",
        );
    }
    for machine in machines {
        found.of_thunderbolt(machine);
        found.of_rdma(machine);
        for reason in &machine.unknown {
            found.add(
                machine,
                reason.clone(),
                "without it the picture is incomplete; run the command by hand to see why",
            );
        }
    }
    found.0
}

struct Found(Vec<Trap>);

impl Found {
    fn add(&mut self, machine: &Machine, what: String, fix: &str) {
        self.0.push(Trap {
            machine: machine.name.clone(),
            what,
            fix: fix.to_owned(),
        });
    }

    /// Cables to other computers.
    fn of_thunderbolt(&mut self, machine: &Machine) {
        let cables = machine
            .thunderbolt
            .iter()
            .filter(|port| port.peer.is_some());
        for port in cables.clone() {
            let receptacle = port.receptacle;
            if let Some(speed) = port.speed_gbit
                && speed <= SPEED_WITHOUT_RDMA_MAX_GBIT
            {
                self.add(
                    machine,
                    format!("the cable at port {receptacle} runs at {speed} Gb/s, at which there is no RDMA"),
                    "use a Thunderbolt 5 cable between Thunderbolt 5 ports, or do without RDMA",
                );
            }
            let Some(name) = port.interface.as_deref() else {
                continue;
            };
            if machine
                .model
                .as_deref()
                .is_some_and(|it| it.starts_with("Mac Studio"))
                && name == "en2"
            {
                self.add(
                    machine,
                    format!("a cable is at port {receptacle} ({name}), next to Ethernet, where RDMA is known not to become active"),
                    "plug it into another port",
                );
            }
            match machine.interface(name) {
                Some(it) if it.addresses.iter().any(|it| it.lasting_v4().is_some()) => {}
                Some(it) if it.has_v4() => self.add(
                    machine,
                    format!("{name} has a self-assigned address only, which changes when the cable is pulled"),
                    "give it one of its own: shoal fabric discover --from the other machine's recording prints the commands",
                ),
                _ => self.add(
                    machine,
                    format!("{name} has no IPv4 address, so it has no GID that RDMA can use"),
                    "give it one: shoal fabric discover --from the other machine's recording prints the commands",
                ),
            }
            match machine.rdma_on(name) {
                Some(device) if !device.is_active() => {
                    let states = device
                        .ports
                        .iter()
                        .map(|port| port.state.name())
                        .collect::<Vec<_>>();
                    self.add(
                        machine,
                        format!("{} is not active ({}), although a cable is plugged in", device.name, states.join(", ")),
                        "enable RDMA on the machine at the other end too; then plug the cable in again, and if that does not \
                         help restart both",
                    );
                }
                None if machine.rdma_enabled == Some(true) => self.add(
                    machine,
                    format!("{name} has no RDMA device, although RDMA is enabled"),
                    "RDMA needs Thunderbolt 5 and macOS 26.2 or later; check both, then restart",
                ),
                _ => {}
            }
        }
        if machine.rdma_enabled == Some(false) && cables.count() > 0 {
            self.add(
                machine,
                "RDMA is disabled".to_owned(),
                "start into Recovery, run `rdma_ctl enable` in its Terminal, and restart; it cannot be done remotely",
            );
        }
    }

    /// Devices of other systems than macOS, where every device has its wire.
    fn of_rdma(&mut self, machine: &Machine) {
        if machine.system == System::Macos {
            return;
        }
        for device in &machine.rdma {
            for port in device
                .ports
                .iter()
                .filter(|port| port.state != PortState::Active)
            {
                self.add(
                    machine,
                    format!("port {} of {} is not active ({})", port.number, device.name, port.state.name()),
                    "plug in its cable and switch its interface on (ip link set NAME up), or leave it unused",
                );
            }
            let is_ethernet = device
                .ports
                .iter()
                .any(|port| port.link_layer.as_deref() == Some("Ethernet"));
            let interface = device
                .interface
                .as_deref()
                .and_then(|name| machine.interface(name));
            if let Some(interface) = interface
                && device.is_active()
                && is_ethernet
                && !interface.has_v4()
                // Without `ip` nobody knows.
                && machine.unknown.is_empty()
            {
                self.add(
                    machine,
                    format!("{}, the interface of {}, has no IPv4 address", interface.name, device.name),
                    "give it one (ip address add A.B.C.D/24 dev NAME), so that it has a GID that can be routed",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::cabling::tests::{MESH_OF_3, macs};
    use crate::discover::mac::tests::mac1;
    use crate::discover::network::tests::linux;
    use crate::discover::{Interface, RdmaDevice, RdmaPort};

    fn seen(machines: &[Machine]) -> Vec<String> {
        let traps = traps(machines, &Cabling::of(machines));
        assert!(traps.iter().all(|trap| trap.fix.len() > 20));
        traps
            .into_iter()
            .map(|trap| format!("{}: {}", trap.machine, trap.what))
            .collect()
    }

    /// Two machines with a cable that has all it needs.
    fn pair() -> Vec<Machine> {
        let mut machines = macs(2, &[[0, 1, 1, 1]]);
        for (at, machine) in machines.iter_mut().enumerate() {
            machine.interfaces[1].addresses =
                vec![format!("10.9.0.{}/30", at + 1).parse().unwrap()];
        }
        machines
    }

    #[test]
    fn a_good_cable_is_no_trap() {
        assert!(seen(&pair()).is_empty());
        assert!(seen(&[mac1()]).is_empty());
        assert!(seen(&macs(2, &[])).is_empty());
    }

    #[test]
    fn bridges_in_a_loop_flood() {
        let mut machines = macs(3, &MESH_OF_3);
        let bridge = Interface {
            name: "bridge0".to_owned(),
            is_up: true,
            members: ["en2", "en3", "en4"].map(str::to_owned).into(),
            ..Interface::default()
        };
        machines
            .iter_mut()
            .for_each(|it| it.interfaces.push(bridge.clone()));
        let floods =
            |machines: &[Machine]| seen(machines).iter().any(|it| it.contains("make a loop"));
        assert!(floods(&machines));
        machines[2].interfaces.last_mut().unwrap().is_up = false;
        assert!(!floods(&machines));
    }

    #[test]
    fn a_slow_cable_has_no_rdma() {
        let mut machines = pair();
        machines[0].thunderbolt[0].speed_gbit = Some(40);
        assert_eq!(
            seen(&machines),
            ["mac0: the cable at port 1 runs at 40 Gb/s, at which there is no RDMA"]
        );
    }

    #[test]
    fn the_port_next_to_ethernet_is_named_on_a_mac_studio() {
        let mut machines = pair();
        machines[1].model = Some("Mac Studio".to_owned());
        let [trap] = &seen(&machines)[..] else {
            panic!("one trap")
        };
        assert!(
            trap.starts_with("mac1: a cable is at port 1 (en2), next to Ethernet"),
            "{trap}"
        );
    }

    #[test]
    fn addresses_are_wanted() {
        let mut machines = pair();
        machines[0].interfaces[1].addresses.clear();
        machines[1].interfaces[1].addresses = vec!["169.254.3.4/16".parse().unwrap()];
        assert_eq!(
            seen(&machines),
            [
                "mac0: en2 has no IPv4 address, so it has no GID that RDMA can use",
                "mac1: en2 has a self-assigned address only, which changes when the cable is pulled",
            ]
        );
    }

    #[test]
    fn idle_devices_and_disabled_rdma_are_told() {
        let mut machines = pair();
        machines[0].rdma[0].ports[0].state = PortState::Down;
        machines[1].rdma.clear();
        assert_eq!(
            seen(&machines),
            [
                "mac0: rdma_en2 is not active (down), although a cable is plugged in",
                "mac1: en2 has no RDMA device, although RDMA is enabled",
            ]
        );
        machines[1].rdma_enabled = Some(false);
        assert_eq!(seen(&machines)[1], "mac1: RDMA is disabled");
    }

    #[test]
    fn linux_devices_are_looked_at() {
        let mut machine = linux("box", &[("eth0", 100_000, "fe80::1/64")]);
        let device = |name: &str, state| RdmaDevice {
            name: name.to_owned(),
            interface: Some("eth0".to_owned()),
            ports: vec![RdmaPort {
                number: 1,
                state,
                rate: None,
                link_layer: Some("Ethernet".to_owned()),
                gids: Vec::new(),
            }],
        };
        machine.rdma = vec![
            device("mlx5_0", PortState::Active),
            device("mlx5_1", PortState::Down),
        ];
        assert_eq!(
            seen(&[machine.clone()]),
            [
                "box: eth0, the interface of mlx5_0, has no IPv4 address",
                "box: port 1 of mlx5_1 is not active (down)",
            ]
        );
        machine.unknown.push("`ip`: gone".to_owned());
        assert_eq!(seen(&[machine]).len(), 2);
    }
}
