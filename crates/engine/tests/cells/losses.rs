//! What happens when a rank, a front or good sense is lost.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Cell, PATIENCE, attach, drain, greedy, reply};
use shoal_engine::client::{
    AttachError, CellState, Client, Event, Failure, Loss, RankReport, RankState, SubmitError,
};
use shoal_engine::step::Step;
use shoal_engine::wire::{self, Command, Notice, Phase};
use shoal_fabric::{Rank, Transport, tcp};
use shoal_kernels::{Cpu, CpuConfig, Isa};
use shoal_model::Model;

const PROMPT: &[u32] = &[3, 1, 4, 1, 5];

/// How rank 1 is lost.
enum Fate {
    /// It dies in a step, after it has computed so many.
    DiesAfter(usize),
    /// It dies while nothing runs.
    DiesIdle,
    /// It says nothing more while nothing runs, until the other end of this is gone.
    FallsSilent(mpsc::Receiver<()>),
    /// So in a step that computes.
    FallsSilentInStep(mpsc::Receiver<()>),
}

/// Rank 1 of a cell, played by the test.
fn mortal_member(rendezvous: SocketAddr, cell: &Cell, fate: Fate) -> JoinHandle<()> {
    let (world, key) = (cell.world, cell.key.clone());
    thread::spawn(move || {
        let cpu = Cpu::new(CpuConfig {
            isa: Isa::detect(),
            threads: 1,
            first_core: None,
        })
        .expect("a device");
        let mut group =
            tcp::join(rendezvous, Rank(1), world, key, Instant::now() + PATIENCE).expect("joined");
        assert_eq!(group.transport(Rank(0)), Some(Transport::SharedMemory));
        group.set_timeout(PATIENCE);
        let mut model = Model::load_member(cpu, &mut group).expect("loaded");
        let (mut computed, mut bytes) = (0, Vec::new());
        loop {
            group.broadcast(Rank(0), &mut bytes).expect("a step");
            match (Step::decode(&bytes).expect("one that makes sense"), &fate) {
                (Step::Run(_), Fate::DiesAfter(steps)) if computed == *steps => return,
                (Step::Idle, Fate::DiesIdle) => return,
                (Step::Idle, Fate::FallsSilent(until))
                | (Step::Run(_), Fate::FallsSilentInStep(until)) => {
                    return until.recv().unwrap_or_default();
                }
                (Step::Run(spans), _) => {
                    model
                        .forward(&spans, &mut group, &mut || {})
                        .expect("computed");
                    computed += 1;
                }
                (Step::Report, _) => {
                    let report = RankReport {
                        rank: Rank(1),
                        peak_memory_bytes: 0,
                        weight_bytes: 0,
                        kv_bytes: 0,
                        threads: 1,
                        isa: Isa::Scalar,
                        split: String::new(),
                    };
                    group
                        .all_gather(&wire::encode_report(&report), &mut Vec::new())
                        .expect("gathered");
                }
                (Step::Idle, _) => group.barrier().expect("met"),
                (Step::Shutdown, _) => panic!("it was to be lost before"),
            }
        }
    })
}

fn assert_rank_1_lost(end: &Event) {
    let Event::Failed(Failure::RankLost { rank: Rank(1), .. }) = end else {
        panic!("{end:?}")
    };
}

#[test]
fn a_member_that_dies_in_a_step_fails_every_stream_by_name() {
    let mut cell = Cell::new(3);
    let client = Client::new();
    let rendezvous = cell.start_root(&client).fabric.expect("several ranks");
    let mortal = mortal_member(rendezvous, &cell, Fate::DiesAfter(5));
    cell.start_member(2, rendezvous);
    client.wait_ready(Instant::now() + PATIENCE).expect("ready");

    // Three run, one waits.
    let streams: Vec<_> = (0..4)
        .map(|_| client.submit(greedy(PROMPT, 4000)).expect("taken"))
        .collect();
    for stream in streams {
        assert_rank_1_lost(&drain(stream).1);
    }
    mortal.join().expect("it died in peace");
    let loss = client.losses().recv_blocking().expect("told");
    assert_eq!(loss.rank, Rank(1));
    let status = client.status();
    assert_eq!(status.state, CellState::Lost(loss.clone()));
    assert_eq!(status.ranks[1].state, RankState::Lost);
    assert_eq!(
        (status.counters.failed_total, status.counters.losses_total),
        (4, 1)
    );
    let refused = client.submit(greedy(PROMPT, 1)).expect_err("not ready");
    let SubmitError::NotReady(reason) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.starts_with("rank 1 was lost: "), "{reason}");

    for end in cell.ends() {
        let error = end.expect_err("the group is over");
        assert!(
            error.to_string().contains("rank 1"),
            "all name the same rank: {error}"
        );
    }
    client.detach(loss);
    assert_eq!(
        client.losses().try_recv().ok(),
        None,
        "one loss is told once"
    );
}

#[test]
fn a_member_that_dies_while_nothing_runs_is_noticed() {
    let mut cell = Cell::new(2);
    let client = Client::new();
    let rendezvous = cell.start_root(&client).fabric.expect("several ranks");
    let mortal = mortal_member(rendezvous, &cell, Fate::DiesIdle);
    let loss = client.losses().recv_blocking().expect("told");
    assert_eq!(loss.rank, Rank(1));
    mortal.join().expect("it died in peace");
    assert_eq!(cell.ends().iter().filter(|end| end.is_err()).count(), 1);
}

#[test]
fn a_member_that_falls_silent_is_given_up_after_the_step_timeout() {
    for fate in [Fate::FallsSilent, Fate::FallsSilentInStep] {
        let mut cell = Cell::new(2);
        cell.step_timeout = Duration::from_millis(300);
        let client = Client::new();
        let rendezvous = cell.start_root(&client).fabric.expect("several ranks");
        let (release, until) = mpsc::channel();
        let fate = fate(until);
        let in_step = matches!(fate, Fate::FallsSilentInStep(_));
        let silent = mortal_member(rendezvous, &cell, fate);
        if in_step {
            client.wait_ready(Instant::now() + PATIENCE).expect("ready");
            assert_rank_1_lost(&drain(client.submit(greedy(PROMPT, 4)).expect("taken")).1);
        }
        // Rank 0 waits for it, and names it before the front loses patience with rank 0.
        let loss = client.losses().recv_blocking().expect("told");
        assert_eq!(loss.rank, Rank(1));
        assert!(loss.reason.contains("did not answer within"), "{loss}");
        drop(release);
        silent.join().expect("it is let go");
        assert!(cell.ends().iter().all(Result::is_err));
    }
}

#[test]
fn the_same_client_serves_the_re_formed_cell() {
    let mut lost = Cell::new(2);
    let client = Client::new();
    let rendezvous = lost.start_root(&client).fabric.expect("several ranks");
    let mortal = mortal_member(rendezvous, &lost, Fate::DiesAfter(3));
    client.wait_ready(Instant::now() + PATIENCE).expect("ready");
    assert_rank_1_lost(&drain(client.submit(greedy(PROMPT, 4000)).expect("taken")).1);
    mortal.join().expect("it died in peace");
    lost.ends();

    let mut formed = Cell::new(2);
    let rendezvous = formed.start_root(&client).fabric.expect("several ranks");
    // Whoever asks while it forms again hears whom it lost.
    let lost_rank = client.status().last_loss.map(|loss| loss.rank);
    assert_eq!(lost_rank, Some(Rank(1)));
    let Err(SubmitError::NotReady(why)) = client.submit(greedy(PROMPT, 1)) else {
        panic!("taken by a cell that is not there")
    };
    assert!(why.starts_with("rank 1 was lost: "), "{why}");
    assert!(why.contains("; the cell is forming again ("), "{why}");
    formed.start_member(1, rendezvous);
    client
        .wait_ready(Instant::now() + PATIENCE)
        .expect("ready again");
    assert_eq!(client.status().last_loss, None);
    assert_eq!(reply(&client, greedy(PROMPT, 5)).len(), 5);
    client.shutdown();
    formed.ends_well();
}

#[test]
fn a_second_front_is_sent_away() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    let second = Client::new();
    let error = second
        .attach(&cell.socket(), Instant::now() + PATIENCE)
        .expect_err("there is one");
    assert!(matches!(error, AttachError::Busy), "{error:?}");
    let error = client
        .attach(&cell.socket(), Instant::now() + PATIENCE)
        .expect_err("attached");
    assert!(matches!(error, AttachError::Attached), "{error:?}");
    assert_eq!(
        reply(&client, greedy(PROMPT, 2)).len(),
        2,
        "the first one is unharmed"
    );
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_front_of_another_version_is_told_so() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    client.detach(Loss {
        rank: Rank(0),
        reason: "left".to_owned(),
    });
    let mut stream = UnixStream::connect(cell.socket()).expect("it listens");
    let mut frame = Vec::new();
    Command::Hello {
        version: wire::VERSION + 1,
    }
    .encode(&mut frame);
    stream.write_all(&frame).expect("sent");
    wire::read_frame(&mut stream, &mut frame).expect("an answer");
    // A greeting that goes on after the version, as that release would see it.
    assert_eq!(
        &frame[..8],
        [&[0], &b"shoal"[..], &wire::VERSION.to_le_bytes()].concat()
    );
    assert_eq!(stream.read(&mut [0; 1]).expect("hung up"), 0);

    attach(&client, &cell);
    assert_eq!(reply(&client, greedy(PROMPT, 2)).len(), 2);
    client.shutdown();
    cell.ends_well();
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    client.detach(Loss {
        rank: Rank(0),
        reason: "left".to_owned(),
    });
    let mut hello = Vec::new();
    Command::Hello {
        version: wire::VERSION,
    }
    .encode(&mut hello);
    let mut nonsense_later = hello.clone();
    nonsense_later.extend([3, 0, 0, 0, 77, 77, 77]);
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[255; 64],
        &hello[..5],
        &nonsense_later,
    ] {
        let mut stream = UnixStream::connect(cell.socket()).expect("it listens");
        stream.write_all(garbage).expect("sent");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("said all");
        // Until it has hung up, whatever it says.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    attach(&client, &cell);
    assert_eq!(reply(&client, greedy(PROMPT, 2)).len(), 2);
    client.shutdown();
    cell.ends_well();
}

#[test]
fn a_rank_0_with_nothing_to_do_says_that_it_is_alive() {
    let mut cell = Cell::new(1);
    let client = cell.start_all();
    client.detach(Loss {
        rank: Rank(0),
        reason: "left".to_owned(),
    });
    let mut stream = loop {
        let mut stream = UnixStream::connect(cell.socket()).expect("it listens");
        say_hello(&mut stream);
        match notice(&mut stream) {
            Notice::Hello(_) => break stream,
            Notice::Busy => {} // not rid of the other front yet
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(
        notice(&mut stream),
        Notice::Phase(Phase::Ready(_))
    ));
    for _ in 0..2 {
        assert_eq!(notice(&mut stream), Notice::Alive);
    }
    drop(stream);
    attach(&client, &cell);
    client.shutdown();
    cell.ends_well();
}

fn say_hello(stream: &mut UnixStream) {
    let mut frame = Vec::new();
    Command::Hello {
        version: wire::VERSION,
    }
    .encode(&mut frame);
    stream.write_all(&frame).expect("sent");
}

fn notice(stream: &mut UnixStream) -> Notice {
    let mut frame = Vec::new();
    wire::read_frame(stream, &mut frame).expect("a notice");
    Notice::decode(&frame).expect("one that makes sense")
}
