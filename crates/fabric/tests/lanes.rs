//! Lanes over every kind of link that carries them.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use common::{CABLES, Links, PATIENT, config, devices, kinds};
use shoal_fabric::channel::Channel;
use shoal_fabric::lane::{Lane, Lanes};
use shoal_fabric::{Key, Rank, Transport};

/// More than is under way on any lane, and no multiple of anything.
const LONG: usize = (5 << 20) + 13;
/// More than any lane takes that nobody reads.
const FULL: usize = 64 << 20;

/// Both ends of the same lanes.
fn pair(links: Links) -> [Lanes; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound").to_string();
    let (key, soon) = (Key::from_token("fish"), Instant::now() + PATIENT);
    let config = |rank| config(links, Rank(rank));
    thread::scope(|scope| {
        let leading = scope.spawn(|| {
            let channel = Channel::connect(&address, &key, soon).expect("same key");
            Lanes::lead(channel, &config(0), &key, soon).expect("they agree")
        });
        let (stream, _) = listener.accept().expect("connected to above");
        let channel = Channel::accept(stream, &key, soon).expect("same key");
        let follows = Lanes::follow(channel, &config(1), &key, soon).expect("they agree");
        [leading.join().expect("no panic"), follows]
    })
}

/// Does `work` with both ends of a fresh lane, over each kind, either way round.
fn with_each(work: impl Fn(Links, Lane, Lane)) {
    for links in kinds() {
        if !matches!(
            links,
            Links::Tcp | Links::Striped | Links::Rdma | Links::RdmaUnreliable
        ) {
            continue;
        }
        for turn in [false, true] {
            let mut ends = pair(*links).map(|mut lanes| lanes.lanes.remove(0));
            if turn {
                ends.reverse();
            }
            let [one, other] = ends;
            work(*links, one, other);
        }
    }
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(LONG).collect()
}

#[test]
fn both_ends_know_what_carries_them() {
    for links in kinds() {
        let expected = match links {
            Links::Tcp => (Transport::Tcp, 1),
            Links::Striped if cfg!(target_os = "linux") => (Transport::Tcp, CABLES.len()),
            Links::Rdma | Links::RdmaUnreliable => (Transport::Rdma, devices()),
            _ => continue,
        };
        for lanes in pair(*links) {
            let cables = lanes.lanes.iter().map(Lane::cables).sum();
            let found = (lanes.transport(), cables);
            assert_eq!(found, expected, "{links:?}: {}", lanes.carrier);
        }
    }
}

#[test]
fn bytes_cross_both_ways_and_the_last_of_them_come_before_the_end() {
    with_each(|links, mut one, mut other| {
        let (there, back) = (noise(1), noise(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                one.write_all(&there).expect("it is read");
                let mut read = vec![0; LONG];
                one.read_exact(&mut read).expect("it is written");
                assert!(read == back, "{links:?}");
                // Pieces of every size up to several slots.
                let mut rest = &there[..];
                for bytes in (0..).map(|at| at * 37 % 50_000) {
                    let (piece, behind) = rest.split_at(rest.len().min(bytes));
                    one.write_all(piece).expect("it is read");
                    rest = behind;
                    if rest.is_empty() {
                        break;
                    }
                }
                one.finish();
            });
            scope.spawn(|| {
                let mut read = vec![0; LONG];
                other.read_exact(&mut read).expect("it is written");
                assert!(read == there, "{links:?}");
                other.write_all(&back).expect("it is read");
                read.clear();
                other.read_to_end(&mut read).expect("it ends in order");
                assert!(read == there, "{links:?}");
            });
        });
    });
}

#[test]
fn who_waits_returns_when_the_lane_is_closed() {
    with_each(|_, mut one, _other| {
        let closer = one.closer().expect("a file is free");
        thread::scope(|scope| {
            let reading = scope.spawn(|| one.read(&mut [0]));
            closer.close();
            let read = reading.join().expect("no panic");
            assert!(read.is_err() || read.is_ok_and(|count| count == 0));
        });
    });
    // Nobody reads, so that it is full at some time, before or after it is closed.
    with_each(|_, mut one, _other| {
        let closer = one.closer().expect("a file is free");
        thread::scope(|scope| {
            let writing = scope.spawn(|| one.write_all(&vec![7; FULL]));
            closer.close();
            assert!(writing.join().expect("no panic").is_err());
        });
    });
}

#[test]
fn an_end_that_has_gone_is_noticed_by_who_waits_for_it() {
    with_each(|_, mut one, other| {
        thread::scope(|scope| {
            let writing = scope.spawn(|| one.write_all(&vec![7; FULL]));
            other.close();
            assert!(writing.join().expect("no panic").is_err());
        });
    });
    with_each(|links, mut one, mut other| {
        other.write_all(b"some").expect("there is room");
        other.close();
        let mut read = Vec::new();
        // In order or not: it ends.
        let _may_be_torn = one.read_to_end(&mut read);
        assert!(b"some".starts_with(&read), "{links:?}");
    });
}
