//! What follows from the cabling: addresses, the commands that set them, and a hostfile.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use thiserror::Error;

use super::address::Address;
use super::cabling::{Cable, Cabling, End};
use super::free_networks::FreeNetworks;
use super::machine::Machine;
use super::network::{self, Place};
use crate::hostfile::{Backend, Devices, Host, Hostfile};

/// How to link machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The shape.
    pub layout: Layout,
    /// The machines in the order of their ranks.
    pub hostfile: Hostfile,
    /// What has to be run on each machine first, in the order in which the machines were given.
    pub commands: Vec<MachineCommands>,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// The shape of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A cable between every two machines.
    Mesh,
    /// Cables through all machines and back.
    Ring,
    /// A network with all machines on it.
    Network,
}

/// Over what machines are to be linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Thunderbolt cables between them.
    Thunderbolt,
    /// A network that all of them are on.
    Ethernet,
}

/// What has to be run on a machine, as its superuser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineCommands {
    /// Its name.
    pub machine: String,
    /// The words of each command.
    pub commands: Vec<Vec<String>>,
}

/// There is nothing to propose. Each message is one line that says what to do.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposalError {
    /// One machine only.
    #[error(
        "one machine has nobody to be linked with: run `shoal fabric discover --json > NAME.json` on the others and give \
         the files by --from"
    )]
    Alone,
    /// The same machine twice.
    #[error(
        "two recordings are of {0}: give one of each machine, or different host names to the machines"
    )]
    Twice(String),
    /// Neither mesh nor ring.
    #[error(
        "no Thunderbolt cable joins {one} and {other}, and the others do not make a ring through all machines: plug one in \
         and run this again, or use --over ethernet"
    )]
    Gap {
        /// A machine.
        one: String,
        /// One that it is not joined with.
        other: String,
    },
    /// A port that is no network interface.
    #[error(
        "port {receptacle} of {machine} has no network interface: add it in System Settings, Network, and run this again"
    )]
    NoInterface {
        /// Whose.
        machine: String,
        /// Number of the socket.
        receptacle: u16,
    },
    /// No network either.
    #[error(
        "no network has an address of every machine: put them on one, or cable them by Thunderbolt; `shoal fabric discover` \
         on each lists its addresses"
    )]
    NoNetwork,
    /// 192.168 is full.
    #[error(
        "every network from 192.168.0 to 192.168.255 is in use by some machine, and the cables need one: free one"
    )]
    NoAddresses,
}

/// An end of a cable that has a network interface, and its addresses once it has them.
struct Wire {
    machine: usize,
    interface: String,
    ip: Ipv4Addr,
}

impl Proposal {
    /// Says how to link the machines: over cables where they suffice, unless told otherwise.
    ///
    /// # Errors
    /// [`ProposalError`].
    pub fn of(
        machines: &[Machine],
        cabling: &Cabling,
        over: Option<Over>,
    ) -> Result<Self, ProposalError> {
        if machines.len() < 2 {
            return Err(ProposalError::Alone);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = machines.iter().find(|it| !names.insert(&it.name)) {
            return Err(ProposalError::Twice(twice.name.clone()));
        }
        let draft = Draft { machines, cabling };
        let suffices = || draft.ring_of_cables().is_ok() || cabling.gap(machines.len()).is_none();
        match over {
            Some(Over::Thunderbolt) => draft.over_cables(),
            None if suffices() => draft.over_cables(),
            None | Some(Over::Ethernet) => draft.over_network(),
        }
    }
}

/// A proposal in the making.
struct Draft<'a> {
    machines: &'a [Machine],
    cabling: &'a Cabling,
}

impl Draft<'_> {
    fn over_cables(&self) -> Result<Proposal, ProposalError> {
        let world = self.machines.len();
        let all: Vec<(usize, usize)> = (0..world)
            .flat_map(|one| (one + 1..world).map(move |other| (one, other)))
            .collect();
        let is_mesh = self.cabling.gap(world).is_none();
        if is_mesh && self.has_rdma(&all) {
            return self.cabled(Layout::Mesh, Backend::Jaccl, (0..world).collect(), &all);
        }
        let order = self.ring_of_cables()?;
        let neighbours: Vec<(usize, usize)> = (0..world)
            .map(|at| (order[at], order[(at + 1) % world]))
            .take(if world == 2 { 1 } else { world })
            .collect();
        let backend = match self.has_rdma(&neighbours) {
            true => Backend::JacclRing,
            false => Backend::Ring,
        };
        let layout = if is_mesh { Layout::Mesh } else { Layout::Ring };
        self.cabled(layout, backend, order, &neighbours)
    }

    fn ring_of_cables(&self) -> Result<Vec<usize>, ProposalError> {
        let world = self.machines.len();
        self.cabling.ring(world).ok_or_else(|| {
            let (one, other) = self.cabling.gap(world).unwrap_or((0, 1));
            ProposalError::Gap {
                one: self.machines[one].name.clone(),
                other: self.machines[other].name.clone(),
            }
        })
    }

    /// Whether each of these pairs can talk by RDMA on all of its cables.
    fn has_rdma(&self, pairs: &[(usize, usize)]) -> bool {
        let end_has = |end: &End| {
            let machine = &self.machines[end.machine];
            let device = end.interface.as_deref().and_then(|it| machine.rdma_on(it));
            device.is_some() && machine.rdma_enabled != Some(false)
        };
        let mut cables = pairs
            .iter()
            .flat_map(|(one, other)| self.cabling.between(*one, *other));
        cables.all(|cable| is_fast(cable) && cable.ends.iter().all(end_has))
    }

    fn cabled(
        &self,
        layout: Layout,
        backend: Backend,
        order: Vec<usize>,
        pairs: &[(usize, usize)],
    ) -> Result<Proposal, ProposalError> {
        // Several cables are used side by side where every pair has them.
        let side_by_side = pairs
            .iter()
            .map(|(one, other)| self.cabling.between(*one, *other).len());
        let side_by_side = side_by_side.min().unwrap_or(1);
        let mut commands: Vec<Vec<Vec<String>>> = vec![Vec::new(); self.machines.len()];
        let mut free = FreeNetworks::beside(self.machines);
        let mut wires: Vec<[Wire; 2]> = Vec::new();
        for (one, other) in pairs {
            for cable in self
                .cabling
                .between(*one, *other)
                .into_iter()
                .take(side_by_side)
            {
                let [low, high] = [&cable.ends[0], &cable.ends[1]];
                let interfaces = [self.interface(low)?, self.interface(high)?];
                let ips = match self.kept(cable) {
                    Some(ips) => ips,
                    None => {
                        let ips = free.next().ok_or(ProposalError::NoAddresses)?;
                        for ((end, own), peer) in
                            [low, high].into_iter().zip(ips).zip([ips[1], ips[0]])
                        {
                            let interface = self.interface(end)?;
                            commands[end.machine].extend(set_address(&interface, own, peer));
                        }
                        ips
                    }
                };
                let [from, to] = interfaces;
                let wire = |end: &End, interface, ip| Wire {
                    machine: end.machine,
                    interface,
                    ip,
                };
                wires.push([wire(low, from, ips[0]), wire(high, to, ips[1])]);
            }
        }
        self.close_bridges(&wires, &mut commands);
        let notes = match backend {
            Backend::Ring if self.machines.len() > 2 => vec![RING_NOTE.to_owned()],
            _ => Vec::new(),
        };
        let mut proposal = Proposal {
            layout,
            hostfile: self.hostfile(backend, &order, &wires),
            commands: self.named(commands),
            notes,
        };
        if backend != Backend::Ring && proposal.hostfile.hosts[0].ips.is_empty() {
            proposal.notes.push(COORDINATOR_NOTE.to_owned());
        }
        Ok(proposal)
    }

    fn hostfile(&self, backend: Backend, order: &[usize], wires: &[[Wire; 2]]) -> Hostfile {
        let world = order.len();
        // A wire as `from` sees it, if it leads to `to`.
        let own = |from: usize, to: usize| {
            let wires =
                wires
                    .iter()
                    .filter_map(move |[one, other]| match (one.machine, other.machine) {
                        it if it == (from, to) => Some(one),
                        it if it == (to, from) => Some(other),
                        _ => None,
                    });
            wires.collect::<Vec<_>>()
        };
        let is_cabled = |at: usize, name: &str| {
            let ends = wires.iter().flatten();
            ends.into_iter()
                .any(|wire| wire.machine == at && wire.interface == name)
        };
        let lan = network::shared(self.machines, |at, it| {
            !is_cabled(at, &it.name) && it.members.is_empty()
        });
        let ips = |rank: usize| -> Vec<IpAddr> {
            let at = order[rank];
            match (&lan, backend) {
                (_, Backend::Ring) => {
                    let before = order[(rank + world - 1) % world];
                    own(at, before).iter().map(|wire| wire.ip.into()).collect()
                }
                (Some(places), _) => vec![places[at].address.ip()],
                (None, _) if world == 2 => own(at, order[1 - rank])
                    .iter()
                    .take(1)
                    .map(|wire| wire.ip.into())
                    .collect(),
                (None, _) => Vec::new(),
            }
        };
        let rdma = |rank: usize| -> Vec<Devices> {
            let (at, machine) = (order[rank], &self.machines[order[rank]]);
            let names = |to: usize| {
                own(at, to)
                    .into_iter()
                    .filter_map(|wire| Some(&machine.rdma_on(&wire.interface)?.name))
                    .collect()
            };
            match backend {
                Backend::Ring => Vec::new(),
                _ => order.iter().map(|to| names(*to)).collect(),
            }
        };
        let host = |rank: usize| Host {
            ssh: self.machines[order[rank]].name.clone(),
            ips: ips(rank),
            rdma: rdma(rank),
        };
        Hostfile {
            backend: Some(backend),
            envs: Vec::new(),
            hosts: (0..world).map(host).collect(),
        }
    }

    fn over_network(&self) -> Result<Proposal, ProposalError> {
        let places = network::shared(self.machines, |at, it| !self.is_cable(at, &it.name))
            .ok_or(ProposalError::NoNetwork)?;
        let device = |at: usize, place: &Place| {
            let device = self.machines[at].rdma_on(&place.interface)?;
            device.is_active().then(|| device.name.clone())
        };
        let devices: Option<Vec<String>> = places
            .iter()
            .enumerate()
            .map(|(at, it)| device(at, it))
            .collect();
        let world = places.len();
        let row = |own: usize| match &devices {
            None => Vec::new(),
            Some(names) => (0..world)
                .map(|to| {
                    (to != own)
                        .then(|| names[own].clone())
                        .into_iter()
                        .collect()
                })
                .collect(),
        };
        let host = |(at, place): (usize, &Place)| Host {
            ssh: self.machines[at].name.clone(),
            ips: vec![place.address.ip()],
            rdma: row(at),
        };
        Ok(Proposal {
            layout: Layout::Network,
            hostfile: Hostfile {
                backend: Some(if devices.is_some() {
                    Backend::Jaccl
                } else {
                    Backend::Ring
                }),
                envs: Vec::new(),
                hosts: places.iter().enumerate().map(host).collect(),
            },
            commands: self.named(vec![Vec::new(); world]),
            notes: Vec::new(),
        })
    }

    fn is_cable(&self, at: usize, name: &str) -> bool {
        let mut ports = self.machines[at].thunderbolt.iter();
        ports.any(|port| port.interface.as_deref() == Some(name))
    }

    fn interface(&self, end: &End) -> Result<String, ProposalError> {
        end.interface
            .clone()
            .ok_or_else(|| ProposalError::NoInterface {
                machine: self.machines[end.machine].name.clone(),
                receptacle: end.receptacle,
            })
    }

    /// The addresses that a cable has already, if they are of a network of its own.
    fn kept(&self, cable: &Cable) -> Option<[Ipv4Addr; 2]> {
        let addresses = |end: &End| -> &[Address] {
            let name = end.interface.as_deref().unwrap_or_default();
            self.machines[end.machine]
                .interface(name)
                .map_or(&[], |it| &it.addresses)
        };
        let alone = |end: &End, address: &Address| {
            let all = self.machines[end.machine]
                .interfaces
                .iter()
                .flat_map(|it| &it.addresses);
            all.filter(|it| it.shares_network(address)).count() == 1
        };
        let [low, high] = cable.ends.each_ref();
        addresses(low).iter().find_map(|one| {
            let other = addresses(high)
                .iter()
                .find(|it| it.shares_network(one) && it.ip() != one.ip())?;
            let ips = [one.lasting_v4()?, other.lasting_v4()?];
            (alone(low, one) && alone(high, other)).then_some(ips)
        })
    }

    /// A bridge over cables floods when they make a loop, and takes packets from interfaces with addresses of their own.
    fn close_bridges(&self, wires: &[[Wire; 2]], commands: &mut [Vec<Vec<String>>]) {
        for wire in wires.iter().flatten() {
            let Some(bridge) = self.machines[wire.machine].bridge_of(&wire.interface) else {
                continue;
            };
            let down = words(&["ifconfig", &bridge.name, "down"]);
            if !commands[wire.machine].contains(&down) {
                commands[wire.machine].insert(0, down);
            }
        }
    }

    fn named(&self, commands: Vec<Vec<Vec<String>>>) -> Vec<MachineCommands> {
        let names = self.machines.iter().map(|machine| machine.name.clone());
        let named = names
            .zip(commands)
            .map(|(machine, commands)| MachineCommands { machine, commands });
        named.collect()
    }
}

/// Whether RDMA is possible at the speed of this cable.
pub(crate) fn is_fast(cable: &Cable) -> bool {
    cable
        .speed_gbit
        .is_none_or(|speed| speed > SPEED_WITHOUT_RDMA_MAX_GBIT)
}

/// Up to Thunderbolt 4 there is no RDMA, even where it says that it is enabled.
pub(crate) const SPEED_WITHOUT_RDMA_MAX_GBIT: u32 = 40;

const RING_NOTE: &str = "this file suits a program whose ranks talk to their neighbours only; ranks of Shoal talk to all others \
    over TCP, so let it use --over ethernet, or cable every two machines";
const COORDINATOR_NOTE: &str = "the machines share no network beside the cables, so no host has \"ips\": put them on one and run \
    this again, or add rank 0's address by which all others reach it";

fn set_address(interface: &str, own: Ipv4Addr, peer: Ipv4Addr) -> [Vec<String>; 2] {
    let (own, peer) = (own.to_string(), peer.to_string());
    [
        words(&[
            "ifconfig",
            interface,
            "inet",
            &own,
            "netmask",
            "255.255.255.252",
        ]),
        words(&["route", "change", &peer, "-interface", interface]),
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests;
