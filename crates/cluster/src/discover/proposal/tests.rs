use super::*;
use crate::discover::cabling::tests::{MESH_OF_3, RING_OF_5, macs};
use crate::discover::network::tests::linux;
use crate::discover::{Interface, PortState, RdmaDevice, RdmaPort};

fn propose(machines: &[Machine], over: Option<Over>) -> Result<Proposal, ProposalError> {
    let proposal = Proposal::of(machines, &Cabling::of(machines), over);
    if let Ok(Proposal { hostfile, .. }) = &proposal {
        // What is proposed has to be what the reader accepts.
        let matrix = hostfile.matrix().unwrap();
        match hostfile.backend.unwrap() {
            Backend::Jaccl => matrix.check_mesh(&[]).unwrap(),
            Backend::JacclRing => matrix.check_ring(&[]).unwrap(),
            _ => assert!(hostfile.hosts.iter().all(|host| !host.ips.is_empty())),
        }
        assert_eq!(&Hostfile::parse(&hostfile.to_text()).unwrap(), hostfile);
    }
    proposal
}

fn lines(proposal: &Proposal, at: usize) -> Vec<String> {
    let commands = proposal.commands[at].commands.iter();
    commands.map(|words| words.join(" ")).collect()
}

/// Each host as `name addresses devices`.
fn hosts(proposal: &Proposal) -> Vec<String> {
    let hosts = proposal.hostfile.hosts.iter();
    let line = |host: &Host| {
        let ips: Vec<String> = host.ips.iter().map(IpAddr::to_string).collect();
        let rdma = serde_json::to_string(&host.rdma).unwrap();
        format!("{} {} {}", host.ssh, ips.join(","), rdma.replace('"', ""))
    };
    hosts.map(line).collect()
}

#[test]
fn a_mesh_gets_rdma_between_all() {
    let proposal = propose(&macs(3, &MESH_OF_3), None).unwrap();
    assert_eq!(
        (proposal.layout, proposal.hostfile.backend),
        (Layout::Mesh, Some(Backend::Jaccl))
    );
    assert_eq!(
        hosts(&proposal),
        [
            "mac0 192.168.1.10 [null,rdma_en2,rdma_en3]",
            "mac1 192.168.1.11 [rdma_en2,null,rdma_en3]",
            "mac2 192.168.1.12 [rdma_en2,rdma_en3,null]",
        ]
    );
    assert_eq!(
        lines(&proposal, 1),
        [
            "ifconfig en2 inet 192.168.0.2 netmask 255.255.255.252",
            "route change 192.168.0.1 -interface en2",
            "ifconfig en3 inet 192.168.0.9 netmask 255.255.255.252",
            "route change 192.168.0.10 -interface en3",
        ]
    );
    assert!(proposal.notes.is_empty());
}

#[test]
fn five_make_a_ring() {
    let proposal = propose(&macs(5, &RING_OF_5), None).unwrap();
    assert_eq!(
        (proposal.layout, proposal.hostfile.backend),
        (Layout::Ring, Some(Backend::JacclRing))
    );
    assert_eq!(
        hosts(&proposal),
        [
            "mac0 192.168.1.10 [null,rdma_en2,null,null,rdma_en4]",
            "mac1 192.168.1.11 [rdma_en2,null,rdma_en4,null,null]",
            "mac3 192.168.1.13 [null,rdma_en2,null,rdma_en4,null]",
            "mac4 192.168.1.14 [null,null,rdma_en4,null,rdma_en2]",
            "mac2 192.168.1.12 [rdma_en2,null,null,rdma_en4,null]",
        ]
    );
}

#[test]
fn slow_cables_or_disabled_rdma_make_a_ring_of_tcp() {
    let slow = |mut machines: Vec<Machine>| {
        machines[0]
            .thunderbolt
            .iter_mut()
            .for_each(|port| port.speed_gbit = Some(40));
        machines
    };
    let disabled = |mut machines: Vec<Machine>| {
        machines[1].rdma_enabled = Some(false);
        machines
    };
    for machines in [slow(macs(3, &MESH_OF_3)), disabled(macs(3, &MESH_OF_3))] {
        let proposal = propose(&machines, Some(Over::Thunderbolt)).unwrap();
        assert_eq!(proposal.hostfile.backend, Some(Backend::Ring));
        // Each address is that of the cable to the host before.
        assert_eq!(
            hosts(&proposal),
            [
                "mac0 192.168.0.9 []",
                "mac1 192.168.0.2 []",
                "mac2 192.168.0.6 []"
            ]
        );
        assert_eq!(proposal.notes, [RING_NOTE]);
    }
    let pair = propose(&slow(macs(2, &[[0, 1, 1, 1]])), None).unwrap();
    assert_eq!(hosts(&pair), ["mac0 192.168.0.1 []", "mac1 192.168.0.2 []"]);
    assert!(pair.notes.is_empty());
}

#[test]
fn cables_are_used_side_by_side_where_every_pair_has_them() {
    let two = [[0, 1, 1, 2], [0, 2, 1, 1]];
    let proposal = propose(&macs(2, &two), None).unwrap();
    assert_eq!(
        hosts(&proposal),
        [
            "mac0 192.168.1.10 [null,[rdma_en2,rdma_en3]]",
            "mac1 192.168.1.11 [[rdma_en3,rdma_en2],null]",
        ]
    );
    let uneven = [MESH_OF_3.as_slice(), &[[0, 3, 1, 3]]].concat();
    let proposal = propose(&macs(3, &uneven), None).unwrap();
    assert_eq!(
        hosts(&proposal)[0],
        "mac0 192.168.1.10 [null,rdma_en2,rdma_en3]"
    );
}

#[test]
fn networks_in_use_are_avoided_and_addresses_that_fit_are_kept() {
    let mut machines = macs(2, &[[0, 1, 1, 1], [0, 2, 1, 2]]);
    machines[0].interfaces[0].addresses = vec!["192.168.0.7/24".parse().unwrap()];
    for (at, machine) in machines.iter_mut().enumerate() {
        machine.interfaces[1].addresses = vec![format!("192.168.1.{}/30", at + 1).parse().unwrap()];
    }
    let proposal = propose(&machines, None).unwrap();
    assert_eq!(
        lines(&proposal, 0),
        [
            "ifconfig en3 inet 192.168.2.1 netmask 255.255.255.252",
            "route change 192.168.2.2 -interface en3",
        ]
    );
    // The same network on two interfaces says nothing about which cable is meant.
    machines[0].interfaces[2].addresses = vec!["192.168.1.9/30".parse().unwrap()];
    machines[0].interfaces[2]
        .addresses
        .push("192.168.1.2/30".parse().unwrap());
    let proposal = propose(&machines, None).unwrap();
    assert_eq!(lines(&proposal, 0).len(), 4);
}

#[test]
fn bridges_are_closed_once() {
    let mut machines = macs(3, &MESH_OF_3);
    machines[0].interfaces.push(Interface {
        name: "bridge0".to_owned(),
        is_up: true,
        members: ["en2", "en3"].map(str::to_owned).into(),
        ..Interface::default()
    });
    let proposal = propose(&machines, None).unwrap();
    let lines = lines(&proposal, 0);
    assert_eq!(lines[0], "ifconfig bridge0 down");
    assert_eq!(lines.len(), 5);
}

#[test]
fn machines_without_another_network_lack_a_coordinator() {
    let mut machines = macs(3, &MESH_OF_3);
    machines
        .iter_mut()
        .for_each(|it| it.interfaces[0].is_up = false);
    assert_eq!(propose(&machines, None).unwrap().notes, [COORDINATOR_NOTE]);
    let mut pair = macs(2, &[[0, 1, 1, 1]]);
    pair[0].interfaces[0].is_up = false;
    let proposal = propose(&pair, None).unwrap();
    assert_eq!(
        hosts(&proposal),
        [
            "mac0 192.168.0.1 [null,rdma_en2]",
            "mac1 192.168.0.2 [rdma_en2,null]"
        ]
    );
    assert!(proposal.notes.is_empty());
}

#[test]
fn a_chain_is_no_layout() {
    let chain = macs(3, &MESH_OF_3[..2]);
    let error = propose(&chain, Some(Over::Thunderbolt)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no Thunderbolt cable joins mac1 and mac2, and the others do not make a ring through all machines: plug one in and \
         run this again, or use --over ethernet"
    );
    let proposal = propose(&chain, None).unwrap();
    assert_eq!(
        (proposal.layout, proposal.hostfile.backend),
        (Layout::Network, Some(Backend::Ring))
    );
    assert_eq!(hosts(&proposal)[2], "mac2 192.168.1.12 []");
    assert!(proposal.commands.iter().all(|it| it.commands.is_empty()));
}

#[test]
fn rdma_over_ethernet_is_found() {
    let machine = |name: &str, address: &str| {
        let mut machine = linux(
            name,
            &[
                ("eno1", 1000, "192.168.1.1/24"),
                ("roce0", 100_000, address),
            ],
        );
        machine.rdma.push(RdmaDevice {
            name: "mlx5_0".to_owned(),
            interface: Some("roce0".to_owned()),
            ports: vec![RdmaPort {
                number: 1,
                state: PortState::Active,
                rate: None,
                link_layer: Some("Ethernet".to_owned()),
                gids: Vec::new(),
            }],
        });
        machine
    };
    let mut machines = [machine("one", "10.0.0.1/24"), machine("two", "10.0.0.2/24")];
    let proposal = propose(&machines, None).unwrap();
    assert_eq!(proposal.hostfile.backend, Some(Backend::Jaccl));
    assert_eq!(
        hosts(&proposal),
        ["one 10.0.0.1 [null,mlx5_0]", "two 10.0.0.2 [mlx5_0,null]"]
    );
    machines[1].rdma[0].ports[0].state = PortState::Down;
    assert_eq!(
        propose(&machines, None).unwrap().hostfile.backend,
        Some(Backend::Ring)
    );
}

#[test]
fn what_cannot_be_proposed_is_told() {
    let pair = macs(2, &[[0, 1, 1, 1]]);
    assert_eq!(propose(&pair[..1], None).unwrap_err(), ProposalError::Alone);
    let same = [pair[0].clone(), pair[0].clone()];
    assert_eq!(
        propose(&same, None).unwrap_err(),
        ProposalError::Twice("mac0".to_owned())
    );
    let mut portless = pair;
    portless[1].thunderbolt[0].interface = None;
    let wanted = ProposalError::NoInterface {
        machine: "mac1".to_owned(),
        receptacle: 1,
    };
    assert_eq!(propose(&portless, None).unwrap_err(), wanted);
    let apart = [
        linux("one", &[("eth0", 1000, "10.0.0.1/24")]),
        linux("two", &[("eth0", 1000, "10.0.1.2/24")]),
    ];
    assert_eq!(propose(&apart, None).unwrap_err(), ProposalError::NoNetwork);
}
