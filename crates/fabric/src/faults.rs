//! Tests: ranks that follow the protocol for a while, and then do not. Rank 1 is played by hand, on bare links.

use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::algorithm::THRESHOLDS;
use crate::cables::Cables;
use crate::error::FabricError;
use crate::frame::{Abort, HEADER_BYTES, Header, Kind};
use crate::ground::Road;
use crate::group::Group;
use crate::link::{Interest, Links};
use crate::memory;
use crate::pace::Pace;
use crate::rank::Rank;
use crate::segment::{self, Offer};
use crate::shared::Pipes;
use crate::socket::TcpLinks;

/// Runs `villain` as rank 1 and `work` as every other rank, over each kind of links; returns what the others got.
fn beside(
    world: usize,
    villain: impl Fn(Box<dyn Links>) + Sync,
    work: impl Fn(&mut Group) -> Result<(), FabricError> + Sync,
) -> Vec<Result<(), FabricError>> {
    let memory = memory::mesh(world)
        .into_iter()
        .map(|links| Box::new(links) as Box<dyn Links>);
    let boxed = |links| Box::new(links) as Box<dyn Links>;
    let plain = sockets(world, || [Road::Tcp, Road::Tcp])
        .into_iter()
        .map(boxed);
    let striped = striped_sockets(world).into_iter().map(boxed);
    let shared = sockets_and_memory(world).into_iter().map(boxed);
    let mut results = Vec::new();
    for links in [
        memory.collect::<Vec<_>>(),
        plain.collect(),
        striped.collect(),
        shared.collect(),
    ] {
        let (villain, work) = (&villain, &work);
        thread::scope(|scope| {
            let mut running = Vec::new();
            for (rank, links) in links.into_iter().enumerate() {
                if rank == 1 {
                    scope.spawn(move || villain(links));
                    continue;
                }
                running.push(scope.spawn(move || {
                    let mut group =
                        Group::new(Rank::at(rank), world, links, Pace::of_machine(world));
                    group.set_timeout(Duration::from_secs(60));
                    work(&mut group)
                }));
            }
            results.extend(
                running
                    .into_iter()
                    .map(|handle| handle.join().expect("no rank panics")),
            );
        });
    }
    results
}

/// Connects each two of `world`, with `roads` for the lower and the higher rank.
pub(crate) fn sockets(world: usize, roads: impl Fn() -> [Road; 2]) -> Vec<TcpLinks> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let mut lines: Vec<Vec<_>> = (0..world)
        .map(|_| (0..world).map(|_| None).collect())
        .collect();
    for (high, low) in (0..world).flat_map(|high| (0..high).map(move |low| (high, low))) {
        let [of_low, of_high] = roads();
        let stream = TcpStream::connect(address).expect("listening");
        lines[high][low] = Some((stream, of_high));
        let (stream, _) = listener.accept().expect("connected above");
        lines[low][high] = Some((stream, of_low));
    }
    let links = |lines| TcpLinks::new(lines).expect("fresh sockets");
    lines.into_iter().map(links).collect()
}

/// Each link goes over three connections, the second of which carries nothing.
pub(crate) fn striped_sockets(world: usize) -> Vec<TcpLinks> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    sockets(world, || {
        let pairs = [(); 2].map(|()| {
            let ours = TcpStream::connect(address).expect("listening");
            (listener.accept().expect("connected above").0, ours)
        });
        let (low, high): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        [low, high].map(|further| {
            Road::Striped(Cables {
                further,
                weights: vec![2, 0, 1],
                addresses: Vec::new(),
                left_out: Vec::new(),
            })
        })
    })
}

pub(crate) fn sockets_and_memory(world: usize) -> Vec<TcpLinks> {
    sockets(world, || {
        let offer = Offer::new().expect("shared memory");
        let (opened, proof) = segment::open(offer.name()).expect("it was just offered");
        let created = offer.conclude(&proof).expect("the proof is right");
        [
            Pipes::of_creator(created.expect("it was opened")),
            Pipes::of_opener(opened),
        ]
        .map(|pipes| Road::Shared(Box::new(pipes)))
    })
}

fn frame(kind: Kind, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small");
    [
        &Header {
            kind,
            sequence,
            length,
        }
        .encode()[..],
        payload,
    ]
    .concat()
}

fn write(links: &mut dyn Links, peer: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match links
            .write(peer, &[IoSlice::new(bytes)])
            .expect("the peer is there")
        {
            0 => links
                .wait(&[Interest::write(peer)], SOON)
                .expect("it can wait"),
            count => bytes = &bytes[count..],
        }
    }
}

fn read(links: &mut dyn Links, peer: usize, size: usize) -> Vec<u8> {
    let (mut bytes, deadline) = (Vec::new(), Instant::now() + SOON);
    while bytes.len() < size {
        assert!(Instant::now() < deadline, "the peer says too little");
        let mut buffer = vec![0; size - bytes.len()];
        match links.read(peer, &mut buffer).expect("the peer is there") {
            None => links
                .wait(&[Interest::read(peer)], SOON)
                .expect("it can wait"),
            Some(0) => panic!("the peer left after {} bytes", bytes.len()),
            Some(count) => bytes.extend(&buffer[..count]),
        }
    }
    bytes
}

const SOON: Duration = Duration::from_secs(60);

fn all_lost_rank_1(results: &[Result<(), FabricError>]) {
    for result in results {
        let error = result.as_ref().expect_err("rank 1 is gone");
        assert!(
            matches!(error, FabricError::RankLost { rank: Rank(1), .. }),
            "{error}"
        );
    }
}

/// What rank 0 has lent to rank 2 by then, and has taken back, lies before the word of who was lost.
#[cfg(target_os = "linux")]
#[test]
fn who_comes_after_the_end_learns_who_was_lost_behind_what_was_lent() {
    const LEN: usize = 150_000;
    let mut groups = sockets_and_memory(3).into_iter().enumerate();
    let mut next = || {
        let (rank, links) = groups.next().expect("three ranks");
        Group::new(Rank::at(rank), 3, Box::new(links), Pace::of_machine(3))
    };
    let [mut first, mut lost, mut late] = [next(), next(), next()];
    let sum = |group: &mut Group, times: usize| {
        let mut region = group.region(LEN).expect("memory");
        (0..times).try_for_each(|_| group.all_reduce_sum(&mut region))
    };
    thread::scope(|scope| {
        scope.spawn(move || sum(&mut lost, 1).expect("all are there"));
        let leaving = scope.spawn(move || sum(&mut first, 2));
        let mut region = late.region(LEN).expect("memory");
        late.all_reduce_sum(&mut region).expect("all are there");
        let first = leaving.join().expect("no panic");
        let second = late.all_reduce_sum(&mut region);
        all_lost_rank_1(&[first, second]);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn who_waits_for_a_reader_of_what_it_lent_hears_the_others() {
    let error = lent_in_vain(3, SOON);
    all_lost_rank_1(&[Err(error)]);
}

#[cfg(target_os = "linux")]
#[test]
fn who_waits_for_a_reader_of_what_it_lent_gives_up_in_time() {
    let error = lent_in_vain(2, Duration::from_millis(300));
    let names_it = matches!(error, FabricError::Timeout { rank: Rank(1), .. });
    assert!(names_it, "{error}");
}

/// Rank 0 lends to rank 1 and learns this: rank 1 does not read it, and rank 2, if there is one, says so.
#[cfg(target_os = "linux")]
fn lent_in_vain(world: usize, timeout: Duration) -> FabricError {
    let links = sockets_and_memory(world).into_iter().enumerate();
    let mut groups = links.map(|(rank, links)| {
        let mut group = Group::new(
            Rank::at(rank),
            world,
            Box::new(links),
            Pace::of_machine(world),
        );
        group.set_timeout(timeout);
        group
    });
    let mut first = groups.next().expect("rank 0");
    let mut lost = groups.next().expect("rank 1");
    let region = first.region(150_000).expect("memory");
    let (met, all_met) = mpsc::channel();
    let (over, is_over) = mpsc::channel::<()>();
    // After the second one all have opened what is lent. Nobody who has failed is waited for.
    let meet = |group: &mut Group, met: mpsc::Sender<()>| {
        (0..2).for_each(|_| group.barrier().expect("all are there"));
        met.send(()).expect("it is awaited");
    };
    let knows = groups.next();
    thread::scope(move |scope| {
        let of_lost = met.clone();
        scope.spawn(move || {
            meet(&mut lost, of_lost);
            let _all_is_over = is_over.recv();
        });
        if let Some(mut knows) = knows {
            let of_knows = met.clone();
            scope.spawn(move || {
                meet(&mut knows, of_knows);
                assert_eq!(all_met.iter().take(3).count(), 3);
                knows.abort(Rank(1), "as a test");
            });
        }
        meet(&mut first, met);
        let error = first.send(Rank(1), bytemuck::cast_slice(&region));
        drop(over);
        error.expect_err("nobody reads it")
    })
}

#[test]
fn death_in_the_middle_of_a_frame_is_named_by_all() {
    // The longer data is cut into chunks, and those into pieces, of which the first is shown.
    for len in [999, 999_999] {
        let (kind, values) = if len == 999 {
            (Kind::Reduce, len)
        } else {
            (Kind::ReducePart, THRESHOLDS.piece_len::<f32>(2))
        };
        let whole = frame(kind, 0, &vec![0; 4 * values]);
        for part in [HEADER_BYTES - 1, HEADER_BYTES, whole.len() / 2] {
            let die = |mut links: Box<dyn Links>| {
                for peer in [0, 2] {
                    write(links.as_mut(), peer, &whole[..part]);
                }
            };
            all_lost_rank_1(&beside(3, die, |group| {
                group.all_reduce_sum(&mut vec![1.0; len])
            }));
        }
    }
}

#[test]
fn a_survivor_learns_of_a_death_behind_half_a_frame() {
    const BYTES: usize = 8 << 20;
    // Rank 1 dies while rank 0 has half of a broadcast out to rank 2 as well.
    let die_reading = |mut links: Box<dyn Links>| drop(read(links.as_mut(), 0, BYTES / 4));
    let results = beside(3, die_reading, |group| {
        // Rank 2 needs rank 0 only, so it may get all that it waits for here.
        group.broadcast(Rank(0), &mut vec![7; BYTES])?;
        // Rank 0 asks for more of rank 1, and rank 2 of rank 0.
        let from = if group.rank() == Rank(0) {
            Rank(1)
        } else {
            Rank(0)
        };
        group.recv(from, &mut Vec::new())
    });
    all_lost_rank_1(&results);
}

#[test]
fn an_abort_in_place_of_any_frame_names_its_rank() {
    let abort = Abort {
        is_silence: false,
        rank: Rank(2),
        reason: "as a test".to_owned(),
    };
    let tell = |mut links: Box<dyn Links>| {
        let bytes = frame(Kind::Abort, 77, &abort.encode());
        // In two pieces, so that the first is not enough to go by.
        write(links.as_mut(), 0, &bytes[..HEADER_BYTES + 1]);
        write(links.as_mut(), 0, &bytes[HEADER_BYTES + 1..]);
        read(links.as_mut(), 0, HEADER_BYTES);
    };
    for result in beside(2, tell, Group::barrier) {
        assert_eq!(
            result.expect_err("it is over").to_string(),
            "rank 2 was lost: as a test"
        );
    }
}

#[test]
fn an_abort_of_a_rank_that_owes_nothing_is_heard() {
    let abort = Abort {
        is_silence: false,
        rank: Rank(1),
        reason: "as a test".to_owned(),
    };
    let tell = |mut links: Box<dyn Links>| {
        // Behind an early message, in one piece with it.
        let message = frame(Kind::Message, 0, &[3; 1000]);
        let both = [message, frame(Kind::Abort, 1, &abort.encode())].concat();
        for peer in [0, 2] {
            // Rank 0 may have told rank 2 already, and both may have left.
            let _written = links.write(peer, &[IoSlice::new(&both)]);
        }
        for peer in [0, 2] {
            // Stays until they have.
            while !matches!(links.read(peer, &mut [0; 64]), Ok(Some(0)) | Err(_)) {
                links
                    .wait(&[Interest::read(peer)], SOON)
                    .expect("it can wait");
            }
        }
    };
    for takes_message in [false, true] {
        let results = beside(3, tell, |group| {
            if takes_message {
                group.recv(Rank(1), &mut Vec::new())?;
            }
            // Ranks 0 and 2 wait for each other.
            group.recv(Rank(2 - group.rank().0), &mut Vec::new())
        });
        all_lost_rank_1(&results);
    }
}

#[test]
fn what_is_not_due_names_the_rank_that_sent_it() {
    let cases: [(&str, Vec<u8>); 7] = [
        (
            "it sent Gather number 0 where Reduce number 0 is due",
            frame(Kind::Gather, 0, &[0; 8]),
        ),
        (
            "it sent Reduce number 5 where Reduce number 0 is due",
            frame(Kind::Reduce, 5, &[0; 8]),
        ),
        (
            "it sent 4 bytes in Reduce number 0 where 8 are due",
            frame(Kind::Reduce, 0, &[0; 4]),
        ),
        (
            "a frame began with bytes [47, 45]",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ),
        ("a frame is of unknown kind 200", {
            let header = [&b"Sh\xc8"[..], &[0; 9]].concat();
            let check = crc32fast::hash(&header).to_le_bytes();
            [&header[..], &check].concat()
        }),
        ("the header of a frame is not as it was sent", {
            let mut bytes = frame(Kind::Reduce, 0, &[0; 8]);
            bytes[4] ^= 1;
            bytes
        }),
        (
            "its last message names no rank",
            frame(Kind::Abort, 0, &[1]),
        ),
    ];
    for (reason, bytes) in cases {
        let say = |mut links: Box<dyn Links>| {
            write(links.as_mut(), 0, &bytes);
            // Its own frame, and then that it is blamed.
            read(links.as_mut(), 0, HEADER_BYTES + 8 + HEADER_BYTES);
        };
        for result in beside(2, say, |group| group.all_reduce_sum(&mut [1.0, 2.0])) {
            let error = result.expect_err("not due");
            assert_eq!(error.lost_rank(), Some(Rank(1)));
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("rank 1 broke the protocol: {reason}")),
                "{error}"
            );
        }
    }
}

#[test]
fn an_announced_length_takes_no_memory_before_the_bytes_come() {
    let announce = |mut links: Box<dyn Links>| {
        let header = Header {
            kind: Kind::Message,
            sequence: 0,
            length: 1 << 30,
        };
        write(links.as_mut(), 0, &header.encode());
        write(links.as_mut(), 0, &[1; 1000]);
    };
    let results = beside(2, announce, |group| {
        let mut data = Vec::new();
        let outcome = group.recv(Rank(1), &mut data);
        assert!(
            data.capacity() <= 2 << 20,
            "{} bytes reserved",
            data.capacity()
        );
        outcome
    });
    all_lost_rank_1(&results);
}
