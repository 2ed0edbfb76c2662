//! Which cable joins which machines.

use serde::Serialize;

use super::machine::{Machine, ThunderboltPort};

/// The Thunderbolt cables between machines. Machines go by their place in the list that it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cabling {
    /// Cables with a known machine at both ends, in the order of the first end's machine and port.
    pub cables: Vec<Cable>,
    /// Ends of cables that lead to a machine which is not in the list, and what that one calls itself.
    pub loose: Vec<(End, String)>,
}

/// A cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cable {
    /// Where it ends; the machine listed first comes first.
    pub ends: [End; 2],
    /// What the two ends agreed on; the smaller where they say different things.
    pub speed_gbit: Option<u32>,
}

/// An end of a cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// Which machine.
    pub machine: usize,
    /// Number of its socket.
    pub receptacle: u16,
    /// The socket's network interface.
    pub interface: Option<String>,
}

impl Cabling {
    /// Joins what the machines say.
    #[must_use]
    pub fn of(machines: &[Machine]) -> Self {
        let ports = || {
            machines
                .iter()
                .enumerate()
                .flat_map(|(at, it)| it.thunderbolt.iter().map(move |port| (at, port)))
        };
        let mut cabling = Self::default();
        for (here, port) in ports() {
            let Some(peer) = &port.peer else {
                continue;
            };
            match ports().find(|(_, other)| other.domain == peer.domain) {
                Some((there, other)) if there != here => {
                    let mut cable = Cable {
                        ends: [end(here, port), end(there, other)],
                        speed_gbit: port.speed_gbit.into_iter().chain(other.speed_gbit).min(),
                    };
                    cable.ends.sort_by_key(|end| end.machine);
                    // Usually both ends tell of it; one does for a while after it was plugged in.
                    if !cabling.cables.contains(&cable) {
                        cabling.cables.push(cable);
                    }
                }
                Some(_) => {}
                None => cabling.loose.push((end(here, port), peer.name.clone())),
            }
        }
        cabling
            .cables
            .sort_by_key(|it| it.ends.each_ref().map(|end| (end.machine, end.receptacle)));
        cabling
    }

    /// Returns the cables between two machines, in the same order whichever comes first.
    #[must_use]
    pub fn between(&self, one: usize, other: usize) -> Vec<&Cable> {
        let (low, high) = (one.min(other), one.max(other));
        let joins = |it: &&Cable| it.ends[0].machine == low && it.ends[1].machine == high;
        self.cables.iter().filter(joins).collect()
    }

    /// Returns the first two of `world` machines that no cable joins; `None` for a full mesh.
    #[must_use]
    pub fn gap(&self, world: usize) -> Option<(usize, usize)> {
        let mut pairs = (0..world).flat_map(|low| (low + 1..world).map(move |high| (low, high)));
        pairs.find(|(low, high)| self.between(*low, *high).is_empty())
    }

    /// Returns the order in which cables lead through all of `world` machines and back, beginning with the first; two
    /// machines need one cable only.
    #[must_use]
    pub fn ring(&self, world: usize) -> Option<Vec<usize>> {
        let mut way = vec![0];
        let mut steps = 0;
        (world > 1 && self.walk(world, &mut way, &mut steps)).then_some(way)
    }

    /// Goes on from the end of `way`, trying one machine after the other.
    fn walk(&self, world: usize, way: &mut Vec<usize>, steps: &mut u32) -> bool {
        let last = *way.last().expect("it begins with a machine");
        if way.len() == world {
            return !self.between(last, 0).is_empty();
        }
        *steps += 1;
        for next in 1..world {
            if *steps < STEPS_MAX && !way.contains(&next) && !self.between(last, next).is_empty() {
                way.push(next);
                if self.walk(world, way, steps) {
                    return true;
                }
                way.pop();
            }
        }
        false
    }

    /// Returns a machine on a loop of those cables that `counts` lets through.
    pub(crate) fn on_loop(&self, world: usize, counts: impl Fn(&End) -> bool) -> Option<usize> {
        let mut group: Vec<usize> = (0..world).collect();
        for cable in self
            .cables
            .iter()
            .filter(|cable| cable.ends.iter().all(&counts))
        {
            let [one, other] = cable.ends.each_ref().map(|end| group[end.machine]);
            if one == other {
                return Some(cable.ends[0].machine);
            }
            group
                .iter_mut()
                .filter(|it| **it == other)
                .for_each(|it| *it = one);
        }
        None
    }
}

fn end(machine: usize, port: &ThunderboltPort) -> End {
    End {
        machine,
        receptacle: port.receptacle,
        interface: port.interface.clone(),
    }
}

/// Machines have a handful of ports, so a ring is found at once or not at all; this bounds what a strange file can cost.
const STEPS_MAX: u32 = 100_000;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::discover::mac::tests::mac1;
    use crate::discover::{Interface, Neighbour, PortState, RdmaDevice, RdmaPort, System};

    /// Mac minis `mac0` … with ports 1 to 4 on `en2` to `en5`, cabled as given: machine, receptacle, machine, receptacle.
    pub(crate) fn macs(world: usize, cables: &[[usize; 4]]) -> Vec<Machine> {
        let domain = |machine: usize, port: usize| format!("{machine}-{port}");
        let port = |machine: usize, number: usize| {
            let peer = cables
                .iter()
                .find_map(|[a, p, b, q]| match (machine, number) {
                    it if it == (*a, *p) => Some((*b, *q)),
                    it if it == (*b, *q) => Some((*a, *p)),
                    _ => None,
                });
            ThunderboltPort {
                receptacle: number as u16,
                interface: Some(format!("en{}", number + 1)),
                domain: domain(machine, number),
                is_connected: peer.is_some(),
                speed_gbit: peer.map(|_| 80),
                peer: peer.map(|(machine, port)| Neighbour {
                    name: format!("mac{machine}"),
                    domain: domain(machine, port),
                }),
            }
        };
        let interface = |machine: usize, number: usize| Interface {
            name: format!("en{number}"),
            is_up: true,
            addresses: match number {
                0 => vec![format!("192.168.1.{}/24", machine + 10).parse().unwrap()],
                _ => Vec::new(),
            },
            ..Interface::default()
        };
        let rdma = |number: usize| RdmaDevice {
            name: format!("rdma_en{number}"),
            interface: Some(format!("en{number}")),
            ports: vec![RdmaPort {
                number: 1,
                state: PortState::Active,
                rate: None,
                link_layer: None,
                gids: Vec::new(),
            }],
        };
        let mac = |machine: usize| Machine {
            name: format!("mac{machine}"),
            system: System::Macos,
            model: Some("Mac mini".to_owned()),
            interfaces: [0, 2, 3, 4, 5]
                .map(|number| interface(machine, number))
                .into(),
            rdma: (2..6).map(rdma).collect(),
            rdma_enabled: Some(true),
            thunderbolt: (1..5).map(|number| port(machine, number)).collect(),
            unknown: Vec::new(),
        };
        (0..world).map(mac).collect()
    }

    /// The cabling that Apple's technote shows for three.
    pub(crate) const MESH_OF_3: [[usize; 4]; 3] = [[0, 1, 1, 1], [0, 2, 2, 1], [1, 2, 2, 2]];
    /// And its ring of five.
    pub(crate) const RING_OF_5: [[usize; 4]; 5] = [
        [0, 1, 1, 1],
        [0, 3, 2, 1],
        [1, 3, 3, 1],
        [3, 3, 4, 3],
        [4, 1, 2, 3],
    ];

    #[test]
    fn both_ends_make_one_cable() {
        let machines = macs(3, &MESH_OF_3);
        let cabling = Cabling::of(&machines);
        assert_eq!(cabling.cables.len(), 3);
        let ends = cabling.between(2, 1)[0].ends.each_ref();
        let seen = ends.map(|end| (end.machine, end.interface.as_deref().unwrap()));
        assert_eq!(seen, [(1, "en3"), (2, "en3")]);
        assert_eq!(cabling.gap(3), None);
        assert_eq!(cabling.ring(3), Some(vec![0, 1, 2]));
    }

    #[test]
    fn one_end_is_enough_and_the_slower_speed_counts() {
        let mut machines = macs(2, &[[0, 1, 1, 2]]);
        machines[0].thunderbolt[0].peer = None;
        machines[1].thunderbolt[1].speed_gbit = Some(40);
        let cabling = Cabling::of(&machines);
        assert_eq!(cabling.cables.len(), 1);
        assert_eq!(cabling.cables[0].speed_gbit, Some(40));
        assert_eq!(cabling.ring(2), Some(vec![0, 1]));
    }

    #[test]
    fn a_cable_to_a_stranger_is_loose() {
        let cabling = Cabling::of(&[mac1()]);
        assert!(cabling.cables.is_empty());
        let (end, name) = &cabling.loose[0];
        assert_eq!(
            (end.interface.as_deref(), name.as_str()),
            (Some("en3"), "Mac mini")
        );
    }

    #[test]
    fn a_ring_is_found_where_there_is_no_mesh() {
        let cabling = Cabling::of(&macs(5, &RING_OF_5));
        assert_eq!(cabling.gap(5), Some((0, 3)));
        assert_eq!(cabling.ring(5), Some(vec![0, 1, 3, 4, 2]));
        let chain = Cabling::of(&macs(3, &MESH_OF_3[..2]));
        assert_eq!((chain.gap(3), chain.ring(3)), (Some((1, 2)), None));
        assert_eq!(chain.ring(1), None);
    }

    #[test]
    fn loops_are_found() {
        let world = |cables: &[[usize; 4]]| Cabling::of(&macs(3, cables)).on_loop(3, |_| true);
        assert_eq!(world(&MESH_OF_3[..2]), None);
        assert_eq!(world(&MESH_OF_3), Some(1));
        assert_eq!(world(&[[0, 1, 1, 1], [0, 2, 1, 2]]), Some(0));
        let not_en3 = |end: &End| end.interface.as_deref() != Some("en3");
        assert_eq!(Cabling::of(&macs(3, &MESH_OF_3)).on_loop(3, not_en3), None);
    }
}
