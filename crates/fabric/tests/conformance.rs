//! What a group does, whatever carries it: every test runs over every kind of link.

mod common;

use std::thread;
use std::time::Duration;

use common::mpi::{Tally, anywhere};
use common::{
    CABLES, Links, MIXED_APART, PATIENT, bits, devices, everywhere, groups, on_each, ranks_here,
    shares, tcp_groups, values,
};
use shoal_fabric::{FabricError, Group, Rank, Transport, solo};

const WORLDS: [usize; 5] = [1, 2, 3, 4, 5];
/// For tests in which a peer stays silent on purpose.
const HASTY: Duration = Duration::from_millis(600);

#[test]
fn a_group_says_what_carries_its_bytes() {
    everywhere(&WORLDS, |links, world| {
        let ranks = || (0..=world).map(|rank| Rank(u16::try_from(rank).expect("small")));
        for group in groups(links, world, PATIENT) {
            let own = group.rank();
            let expected = |peer: Rank| {
                (peer != own && peer.index() < world).then(|| match links {
                    Links::InProcess => Transport::InProcess,
                    Links::Tcp | Links::Striped => Transport::Tcp,
                    Links::Mixed if [own, peer].contains(&MIXED_APART) => Transport::Tcp,
                    Links::Mixed | Links::SharedMemory => Transport::SharedMemory,
                    Links::Rdma | Links::RdmaUnreliable => Transport::Rdma,
                    Links::Mpi => Transport::Mpi,
                })
            };
            for peer in ranks() {
                let found = group.transport(peer);
                assert_eq!(found, expected(peer), "{links:?}, {own} to {peer}");
                let cables = match (links, found) {
                    (_, None) => 0,
                    (Links::Striped, _) if cfg!(target_os = "linux") => CABLES.len(),
                    (Links::Rdma | Links::RdmaUnreliable, _) => devices(),
                    _ => 1,
                };
                assert_eq!(group.cables(peer), cables, "{links:?}, {own} to {peer}");
            }
        }
    });
}

#[test]
fn sums_are_taken_in_rank_order_and_agree_to_the_bit() {
    everywhere(&WORLDS, |links, world| {
        for len in [0, 1, 7, 4096, 8193, 100_003, 1 << 20] {
            let terms: Vec<Vec<f32>> = (0..world).map(|rank| values(rank, len)).collect();
            let fold = |ranks: &mut dyn Iterator<Item = usize>| {
                let mut sum = terms[ranks.next().expect("a rank")].clone();
                ranks.for_each(|rank| {
                    sum.iter_mut()
                        .zip(&terms[rank])
                        .for_each(|(sum, term)| *sum += term)
                });
                bits(&sum)
            };
            let expected = fold(&mut (0..world));
            if world > 2 && len > 7 {
                assert_ne!(
                    expected,
                    fold(&mut (0..world).rev()),
                    "the data must tell orders apart"
                );
            }
            let sums = on_each(groups(links, world, PATIENT), |group| {
                let mut data = terms[group.rank().index()].clone();
                group
                    .all_reduce_sum(&mut data)
                    .expect("all ranks take part");
                bits(&data)
            });
            assert!(
                sums.iter().all(|sum| *sum == expected),
                "{links:?}, {world} ranks, {len} values"
            );
        }
    });
}

#[test]
fn many_sums_follow_each_other() {
    everywhere(&[2, 3], |links, world| {
        let sums = on_each(groups(links, world, PATIENT), |group| {
            let mut sum = 0.0;
            for step in 0..500_u16 {
                let mut data = vec![
                    f32::from(step) + f32::from(group.rank().0);
                    1 + usize::from(step) * 7 % 2048
                ];
                group
                    .all_reduce_sum(&mut data)
                    .expect("all ranks take part");
                assert!(data.iter().all(|value| *value == data[0]));
                sum += data[0];
            }
            sum
        });
        let n = world as f32;
        let expected = 499.0 * 500.0 / 2.0 * n + 500.0 * n * (n - 1.0) / 2.0;
        assert_eq!(sums, vec![expected; ranks_here(links, world)]);
    });
}

#[test]
fn gathering_brings_unequal_parts_to_all() {
    everywhere(&WORLDS, |links, world| {
        for scale in [0, 1, 1000, 400_000] {
            let part = |rank: usize| vec![u8::try_from(rank).expect("small") + 1; rank * scale];
            let expected: Vec<Vec<u8>> = (0..world).map(part).collect();
            let gathered = on_each(groups(links, world, PATIENT), |group| {
                // What was there before does not show through.
                let mut all = vec![vec![99; 5000]; 9];
                group
                    .all_gather(&part(group.rank().index()), &mut all)
                    .expect("all ranks take part");
                all
            });
            assert!(
                gathered.iter().all(|all| *all == expected),
                "{links:?}, {world} ranks, scale {scale}"
            );
        }
    });
}

#[test]
fn gathered_values_are_concatenated_in_rank_order() {
    everywhere(&WORLDS, |links, world| {
        for scale in [0, 3, 100_000] {
            let lens: Vec<usize> = (0..world).map(|rank| (world - rank) * scale).collect();
            let expected: Vec<f32> = (0..world)
                .flat_map(|rank| values(rank, lens[rank]))
                .collect();
            let gathered = on_each(groups(links, world, PATIENT), |group| {
                let mut out = vec![f32::NAN; lens.iter().sum()];
                let rank = group.rank().index();
                group
                    .all_gather_f32(&values(rank, lens[rank]), &lens, &mut out)
                    .expect("all ranks take part");
                out
            });
            assert!(
                gathered.iter().all(|out| *out == expected),
                "{links:?}, {world} ranks, scale {scale}"
            );
        }
    });
}

#[test]
fn a_broadcast_brings_the_bytes_of_any_root_to_all() {
    everywhere(&WORLDS, |links, world| {
        let message = |root: u16, len: usize| vec![u8::try_from(root).expect("small") + 1; len];
        let received = on_each(groups(links, world, PATIENT), |group| {
            let mut received = Vec::new();
            for root in 0..u16::try_from(world).expect("small") {
                for len in [0, 5, 3_000_000] {
                    let is_root = group.rank() == Rank(root);
                    let mut data = if is_root {
                        message(root, len)
                    } else {
                        vec![0; 77]
                    };
                    group
                        .broadcast(Rank(root), &mut data)
                        .expect("all ranks take part");
                    received.push(data == message(root, len));
                }
            }
            received
        });
        assert_eq!(
            received,
            vec![vec![true; 3 * world]; ranks_here(links, world)],
            "{links:?}, {world} ranks"
        );
    });
}

#[test]
fn messages_arrive_in_the_order_they_were_sent() {
    everywhere(&[2, 3, 4, 5], |links, world| {
        let world_end = u16::try_from(world).expect("small");
        on_each(groups(links, world, PATIENT), |group| {
            let own = group.rank();
            if own == Rank(0) {
                // The last sender first: the others' messages wait in their links.
                for from in (1..world_end).rev() {
                    for number in 0..50_u8 {
                        let mut data = Vec::new();
                        group.recv(Rank(from), &mut data).expect("it was sent");
                        assert_eq!(data, vec![number; usize::from(number) * 10]);
                    }
                    group.send(Rank(from), b"seen").expect("it waits");
                }
            } else {
                for number in 0..50_u8 {
                    group
                        .send(Rank(0), &vec![number; usize::from(number) * 10])
                        .expect("it will be received");
                }
                let mut data = Vec::new();
                group.recv(Rank(0), &mut data).expect("it was sent");
                assert_eq!(data, b"seen");
            }
        });
    });
}

#[test]
fn messages_larger_than_any_buffer_cross() {
    everywhere(&[2], |links, world| {
        on_each(groups(links, world, PATIENT), |group| {
            let mut data = values(0, 1 << 23);
            group
                .all_reduce_sum(&mut data)
                .expect("both ranks take part");
            assert_eq!(data[12_345], 2.0 * values(0, 12_346)[12_345]);
        });
    });
}

#[test]
fn nobody_passes_a_barrier_before_all_have_come() {
    everywhere(&WORLDS, |links, world| {
        let come = Tally::new();
        on_each(groups(links, world, PATIENT), |group| {
            for round in 1..=20 {
                come.add_one();
                group.barrier().expect("all ranks take part");
                assert!(come.count() >= round * world);
            }
        });
    });
}

/// What each survivor says when `lost` leaves and the others do `work`.
fn without(
    links: Links,
    world: usize,
    lost: usize,
    work: impl Fn(&mut Group) -> Result<(), FabricError> + Sync,
) {
    let mut groups = groups(links, world, PATIENT);
    groups.retain(|group| group.rank().index() != lost);
    let outcomes = on_each(groups, |group| {
        let first = work(group).expect_err("a rank is missing");
        let second = group.barrier().expect_err("the group is over");
        (first, second)
    });
    let expected = Some(Rank(u16::try_from(lost).expect("small")));
    for (first, second) in outcomes {
        assert!(
            matches!(first, FabricError::RankLost { .. }),
            "{links:?}: {first}"
        );
        assert_eq!(
            (first.lost_rank(), second.lost_rank()),
            (expected, expected),
            "{links:?}: {first}; {second}"
        );
    }
}

#[test]
fn every_survivor_names_the_rank_that_died() {
    everywhere(&[2, 3, 4, 5], |links, world| {
        for lost in 0..world {
            for len in [16, 1 << 18] {
                without(links, world, lost, |group| {
                    group.all_reduce_sum(&mut vec![1.0; len])
                });
            }
            without(links, world, lost, |group| {
                group.all_gather(b"mine", &mut Vec::new())
            });
            without(links, world, lost, Group::barrier);
        }
    });
}

#[test]
fn a_survivor_that_waits_for_another_survivor_names_the_rank_that_died() {
    everywhere(&[3], |links, world| {
        without(links, world, 1, |group| match group.rank() {
            Rank(0) => group.recv(Rank(1), &mut Vec::new()),
            _ => group.recv(Rank(0), &mut Vec::new()),
        });
    });
}

#[test]
fn a_rank_that_left_after_its_part_is_no_loss() {
    everywhere(&[3, 4], |links, world| {
        let groups = groups(links, world, PATIENT);
        let outcomes: Vec<Result<(), FabricError>> = thread::scope(|scope| {
            let run = |mut group: Group| {
                for _ in 0..20 {
                    group.all_reduce_sum(&mut [1.0; 512])?;
                }
                group.barrier()
                // Here the group is dropped, while others may still be at the barrier.
            };
            let running: Vec<_> = groups
                .into_iter()
                .map(|group| scope.spawn(move || run(group)))
                .collect();
            running
                .into_iter()
                .map(|handle| handle.join().expect("no rank panics"))
                .collect()
        });
        assert!(
            outcomes.iter().all(Result::is_ok),
            "{links:?}: {outcomes:?}"
        );
    });
}

#[test]
fn a_rank_that_stalls_is_named_by_all() {
    everywhere(&[2, 3, 4], |links, world| {
        for len in [16, 1 << 20] {
            let stalled = Rank(1);
            let groups = groups(links, world, HASTY);
            let survivors = groups
                .iter()
                .filter(|group| group.rank() != stalled)
                .count();
            let outcomes = on_each(groups, |group| {
                // It keeps its links open, and says nothing.
                (group.rank() != stalled).then(|| {
                    group
                        .all_reduce_sum(&mut vec![1.0; len])
                        .expect_err("a rank stalls")
                })
            });
            let errors: Vec<FabricError> = outcomes.into_iter().flatten().collect();
            assert_eq!(errors.len(), survivors);
            assert!(
                errors
                    .iter()
                    .all(|error| error.lost_rank() == Some(stalled)),
                "{links:?}: {errors:?}"
            );
            let timed_out = errors
                .iter()
                .any(|error| matches!(error, FabricError::Timeout { .. }));
            assert!(anywhere(timed_out), "{links:?}: {errors:?}");
            let names_cable = |error: &FabricError| {
                let is_timeout = matches!(error, FabricError::Timeout { .. });
                !is_timeout || error.to_string().contains(" over the cable from 127.0.0.")
            };
            let is_striped = matches!(links, Links::Striped) && cfg!(target_os = "linux");
            assert!(!is_striped || errors.iter().all(names_cable), "{errors:?}");
        }
    });
}

#[test]
fn a_rank_that_everybody_gave_up_learns_it() {
    everywhere(&[2, 3], |links, world| {
        let over = Tally::new();
        let lost = on_each(groups(links, world, HASTY), |group| {
            if group.rank() == Rank(1) {
                over.meet(world);
                // What the others sent before they gave up is still there, and so may be enough for the first.
                group
                    .barrier()
                    .and_then(|()| group.barrier())
                    .expect_err("the group is over")
                    .lost_rank()
            } else {
                let error = group.barrier().expect_err("a rank stalls");
                over.meet(world);
                error.lost_rank()
            }
        });
        assert_eq!(lost, vec![Some(Rank(1)); ranks_here(links, world)]);
    });
}

#[test]
fn an_abort_reaches_all_with_its_reason() {
    everywhere(&[2, 3, 4], |links, world| {
        let errors = on_each(groups(links, world, PATIENT), |group| {
            if group.rank() == Rank(0) {
                group.abort(Rank(1), "its process ended");
            }
            group
                .all_reduce_sum(&mut vec![1.0; 100_000])
                .expect_err("the group is over")
        });
        for error in errors {
            assert_eq!(
                error.to_string(),
                "rank 1 was lost: its process ended",
                "{links:?}"
            );
        }
    });
}

#[test]
fn ranks_that_disagree_are_told_apart() {
    everywhere(&[2], |links, world| {
        let errors = on_each(groups(links, world, PATIENT), |group| match group.rank() {
            Rank(0) => group.all_reduce_sum(&mut [1.0; 3]),
            _ => group.all_reduce_sum(&mut [1.0; 4]),
        });
        assert!(errors.iter().flatten().next().is_none());
        let protocol =
            |error: &FabricError| matches!(error, FabricError::Protocol { rank: Some(_), .. });
        let told = errors
            .iter()
            .any(|result| result.as_ref().is_err_and(protocol));
        assert!(anywhere(told), "{links:?}: {errors:?}");

        let errors = on_each(groups(links, world, PATIENT), |group| match group.rank() {
            Rank(0) => group.barrier(),
            _ => group.all_gather(b"x", &mut Vec::new()),
        });
        let told = errors
            .iter()
            .any(|result| result.as_ref().is_err_and(protocol));
        assert!(anywhere(told), "{links:?}: {errors:?}");
    });
}

#[test]
fn wrong_arguments_are_refused_and_do_no_harm() {
    everywhere(&[2], |links, world| {
        on_each(groups(links, world, PATIENT), |group| {
            let own = group.rank();
            let invalid =
                |result: Result<(), FabricError>| matches!(result, Err(FabricError::Invalid(_)));
            assert!(invalid(group.send(own, b"to myself")));
            assert!(invalid(group.recv(Rank(2), &mut Vec::new())));
            assert!(invalid(group.broadcast(Rank(7), &mut Vec::new())));
            assert!(invalid(group.all_gather_f32(
                &[1.0],
                &[1, 1],
                &mut [0.0; 3]
            )));
            assert!(invalid(group.all_gather_f32(&[1.0], &[1], &mut [0.0])));
            group.barrier().expect("the group goes on");
        });
    });
}

#[test]
fn one_rank_alone_needs_nobody() {
    let mut group = solo();
    assert_eq!((group.rank(), group.world()), (Rank(0), 1));
    let mut data = [1.5, 2.5];
    group.all_reduce_sum(&mut data).expect("nobody to wait for");
    assert_eq!(data, [1.5, 2.5]);
    group.barrier().expect("nobody to wait for");
}

#[test]
fn groups_form_over_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("SKIPPED groups_form_over_ipv6: this machine has no IPv6 loopback");
        return;
    }
    let groups = tcp_groups("[::1]:0", |_| shares(false), 3, PATIENT);
    let sums = on_each(groups, |group| {
        let mut data = [1.0];
        group
            .all_reduce_sum(&mut data)
            .expect("all ranks take part");
        data[0]
    });
    assert_eq!(sums, [3.0; 3]);
}
