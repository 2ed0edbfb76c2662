//! How a group forms over TCP, and who is kept out of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::tcp::{self, Config, Rendezvous};
use shoal_fabric::{FabricError, Group, Interfaces, Key, Rank};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn key() -> Key {
    Key::from_token("a token of the test")
}

fn open(world: usize) -> (Rendezvous, SocketAddr) {
    let rendezvous = Rendezvous::bind("127.0.0.1:0".parse().expect("an address"), world, key())
        .expect("a free port");
    let address = rendezvous.local_addr();
    (rendezvous, address)
}

fn join(address: SocketAddr, rank: u16, world: usize) -> Result<Group, FabricError> {
    tcp::join(address, Rank(rank), world, key(), soon())
}

/// Forms a group of two in spite of what `disturbance` does before the real rank 1 comes; it holds what it returns.
fn forms_in_spite_of<T>(disturbance: impl FnOnce(SocketAddr) -> T + Send) {
    let (rendezvous, address) = open(2);
    thread::scope(|scope| {
        let root = scope.spawn(move || rendezvous.accept(soon()));
        let _held = disturbance(address);
        let mut member = join(address, 1, 2).expect("the real rank gets in");
        let mut root = root.join().expect("no panic").expect("the group forms");
        scope.spawn(move || root.barrier().expect("both are here"));
        member.barrier().expect("both are here");
    });
}

#[test]
fn a_wrong_token_is_refused_in_words_and_stops_nobody() {
    forms_in_spite_of(|address| {
        let error = tcp::join(address, Rank(1), 2, Key::from_token("another"), soon())
            .err()
            .expect("refused");
        assert!(matches!(error, FabricError::WrongToken { .. }));
        let expected = format!(
            "the node at {address} refused the token: check that both machines use the same --token-file"
        );
        assert_eq!(error.to_string(), expected);
    });
}

#[test]
fn another_version_is_told_to_both_ends() {
    forms_in_spite_of(|address| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"shoalfab\x0d\x00").expect("it reads");
        let mut greeting = [0; 10];
        stream
            .read_exact(&mut greeting)
            .expect("it says its own version");
        assert_eq!(greeting, *b"shoalfab\x0c\x00");
        assert_eq!(stream.read(&mut greeting).expect("it hangs up"), 0);
    });

    let (rendezvous, address) = open(2);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(b"shoalfab\x0d\x00").expect("it reads");
    let outcome = rendezvous.accept(Instant::now() + Duration::from_millis(1000));
    let peer = stream.local_addr().expect("connected");
    assert_eq!(
        outcome.err().expect("refused").to_string(),
        format!(
            "the shoal at {peer} speaks protocol version 13 and this one version 12: install the same release on both machines"
        )
    );
}

#[test]
fn garbage_stops_nobody() {
    forms_in_spite_of(|address| {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 4096],
            &[0xff; 100_000],
            b"shoalfab\x0c\x00 and then this",
        ] {
            let mut stream = TcpStream::connect(address).expect("it listens");
            // It may hang up in the middle, which is as good.
            let _outcome = stream.write_all(garbage);
        }
    });
}

#[test]
fn half_open_connections_stop_nobody() {
    forms_in_spite_of(|address| {
        let silent = (0..20).map(|_| TcpStream::connect(address).expect("it listens"));
        let mut held: Vec<TcpStream> = silent.collect();
        held[0].write_all(b"shoal").expect("it listens");
        held
    });
}

#[test]
fn another_world_size_is_refused_in_words() {
    forms_in_spite_of(|address| {
        let error = join(address, 1, 3).err().expect("refused");
        let expected = format!(
            "the cell at {address} refused this rank: the cell has 2 ranks and rank 1 was started for 3"
        );
        assert_eq!(error.to_string(), expected);
    });
}

#[test]
fn a_rank_that_is_there_already_is_refused() {
    let (rendezvous, address) = open(3);
    thread::scope(|scope| {
        let root = scope.spawn(move || rendezvous.accept(soon()));
        // Two claim the same place, in whatever order; exactly one gets it.
        let claims = [(); 2].map(|()| scope.spawn(move || join(address, 1, 3)));
        // The refused one ends by itself, before the group is complete.
        while !claims.iter().any(|claim| claim.is_finished()) {
            thread::yield_now();
        }
        let last = join(address, 2, 3);
        let (mut joined, mut refused) = (Vec::new(), Vec::new());
        for claim in claims {
            match claim.join().expect("no panic") {
                Ok(group) => joined.push(group),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let reason = format!(
            "the cell at {address} refused this rank: rank 1 is there already: start every rank once"
        );
        assert_eq!((joined.len(), refused), (1, vec![reason]));
        assert!(last.is_ok() && root.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_cable_that_cannot_be_had_is_left_out() {
    let (rendezvous, address) = open(2);
    // An address that is nobody's, and so not this machine's either.
    let cables = ["127.0.0.1", "192.0.2.1"].map(|ip| ip.parse().expect("an address"));
    let config = Config {
        shared_memory: false,
        interfaces: Interfaces::listed(&cables),
        ..Config::default()
    };
    let rendezvous = rendezvous.with(config.clone());
    thread::scope(|scope| {
        let root = scope.spawn(move || rendezvous.accept(soon()));
        let member = tcp::join_with(config, address, Rank(1), 2, key(), soon());
        let mut member = member.expect("the group forms");
        let mut root = root.join().expect("no panic").expect("the group forms");
        assert_eq!((root.cables(Rank(1)), member.cables(Rank(0))), (1, 1));
        scope.spawn(move || root.barrier().expect("both are here"));
        member.barrier().expect("both are here");
    });
}

#[test]
fn where_tcp_is_not_allowed_both_ends_say_why() {
    let (rendezvous, address) = open(2);
    let without = |tcp| Config {
        shared_memory: false,
        tcp,
        ..Config::default()
    };
    let rendezvous = rendezvous.with(without(true));
    thread::scope(|scope| {
        let root = scope.spawn(move || rendezvous.accept(soon()));
        let member = tcp::join_with(without(false), address, Rank(1), 2, key(), soon());
        let root = root.join().expect("no panic");
        for outcome in [root, member] {
            let error = outcome.err().expect("nothing carries the bytes");
            assert!(matches!(error, FabricError::NoTransport { .. }), "{error}");
            assert!(
                error.to_string().contains("switched off at this end"),
                "{error}"
            );
        }
    });
}

#[test]
fn a_rank_that_is_not_in_the_world_does_not_start() {
    let address = "127.0.0.1:9".parse().expect("an address");
    for (rank, world) in [(0, 2), (2, 2), (1, 0), (1, 1 << 20)] {
        assert!(matches!(
            join(address, rank, world).err(),
            Some(FabricError::Invalid(_))
        ));
    }
    assert!(matches!(
        Rendezvous::bind(address, 0, key()).err(),
        Some(FabricError::Invalid(_))
    ));
}

#[test]
fn a_missing_rank_is_named_at_the_deadline() {
    let (rendezvous, address) = open(3);
    let deadline = Instant::now() + Duration::from_millis(1500);
    thread::scope(|scope| {
        let member = scope.spawn(move || tcp::join(address, Rank(1), 3, key(), soon()));
        let error = rendezvous
            .accept(deadline)
            .err()
            .expect("rank 2 is missing");
        assert!(matches!(error, FabricError::Timeout { .. }));
        assert_eq!(error.lost_rank(), Some(Rank(2)));
        let error = member
            .join()
            .expect("no panic")
            .err()
            .expect("the rendezvous is over");
        assert_eq!(error.lost_rank(), Some(Rank(0)), "{error}");
    });
}

#[test]
fn an_address_where_nobody_listens_is_unreachable() {
    let (rendezvous, address) = open(2);
    drop(rendezvous);
    let error = join(address, 1, 2).err().expect("nobody listens");
    assert!(matches!(error, FabricError::Unreachable { .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot reach {address}: ")),
        "{error}"
    );
}
