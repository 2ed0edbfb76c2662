//! What carries the lanes.

use std::net::{IpAddr, Ipv4Addr};

use shoal_fabric::{Interfaces, Transport};

use super::*;

/// Links of a machine on loopback that has two networks.
fn two_networks() -> Config {
    let addresses = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last)));
    Config {
        interfaces: Interfaces::listed(&addresses),
        ..Config::default()
    }
}

#[test]
#[cfg(target_os = "linux")]
fn lanes_go_over_every_network_of_both_at_each_hop() {
    let nodes = [two_networks(), Config::default(), two_networks()].map(Served::linked);
    let here = Folder::new();
    let data = noise(40 * CHUNK + 5, 13);
    let file = here.file("big", &data);
    // One hop has more lanes than the next, the other way round, and one lane where there are two networks.
    for (first, lanes) in [(0, 1), (0, 3), (1, 3)] {
        let config = CopyConfig {
            lanes,
            links: two_networks(),
            ..config()
        };
        let order = [first, 1 - first, 2].map(|at| nodes[at].address.clone());
        let to = format!("{first}{lanes}");
        let summary = push(&config, from_ref(&file), &order, &to, &|_| {}).unwrap();
        let expected = (Transport::Tcp, 2 - first);
        assert_eq!((summary.transport, summary.cables), expected);
        for (node, report) in nodes.iter().zip(&summary.reports) {
            assert_eq!(report.error, None);
            assert!(fs::read(node.path(&to)).unwrap() == data);
        }
        let from = [RelPath::parse(&to).unwrap()];
        let back = here.path(&format!("back{to}"));
        let summary = pull(&config, &order[0], &from, &back, &|_| {}).unwrap();
        assert_eq!(summary.cables, 2 - first);
        assert!(fs::read(back).unwrap() == data);
    }
}

#[test]
fn what_may_not_carry_a_copy_does_not() {
    let (node, here) = (Served::new(), Folder::new());
    let file = here.file("a", b"a");
    let config = CopyConfig {
        carrier: Carrier::Rdma,
        links: Config {
            rdma: shoal_fabric::tcp::Rdma::Off,
            ..Config::default()
        },
        ..config()
    };
    let failed = push(&config, &[file], from_ref(&node.address), "", &|_| {});
    let failed = failed.unwrap_err().to_string();
    assert!(
        failed.contains("rdma: switched off at this end"),
        "{failed}"
    );
    assert_eq!(names(&node.path("")), [""; 0]);
}
