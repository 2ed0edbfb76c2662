//! What the collectives compute: every test runs over every kind of link, in both topologies, with 2 to 8 ranks.

mod common;

use std::time::Duration;

use common::mpi::Tally;
use common::{Links, PATIENT, bits, everywhere, groups, on_each, values};
use half::{bf16, f16};
use shoal_fabric::{Element, Exchange, FabricError, Group, Rank, Reduce, Topology};

const WORLDS: [usize; 7] = [2, 3, 4, 5, 6, 7, 8];
/// None, fewer than ranks, odd, and long enough for every algorithm and for several pieces.
const LENS: [usize; 6] = [0, 1, 3, 1001, 8191, 150_001];
const OPS: [Reduce; 3] = [Reduce::Sum, Reduce::Max, Reduce::Min];

/// Runs `check` for both topologies, where they differ.
fn in_both_topologies(check: impl Fn(Links, usize, Topology)) {
    everywhere(&WORLDS, |links, world| {
        check(links, world, Topology::Mesh);
        check(links, world, Topology::Ring);
    });
}

fn groups_in(topology: Topology, links: Links, world: usize) -> Vec<Group> {
    let mut groups = groups(links, world, PATIENT);
    groups
        .iter_mut()
        .for_each(|group| group.set_topology(topology));
    groups
}

/// What a reduction is by definition: one value after the other, in rank order, rounded at the end.
fn reduced<E: Element>(
    op: Reduce,
    terms: &[Vec<E>],
    wide: impl Fn(E) -> f32,
    round: impl Fn(f32) -> E,
) -> Vec<E> {
    let value = |index: usize| {
        let values = terms.iter().map(|term| wide(term[index]));
        let value = values.reduce(|a, b| match op {
            Reduce::Sum => a + b,
            // Unlike `f32::max`, with a rule for zeros of both signs.
            Reduce::Max if a > b => a,
            Reduce::Min if a < b => a,
            Reduce::Max | Reduce::Min => b,
        });
        round(value.expect("a rank"))
    };
    (0..terms[0].len()).map(value).collect()
}

/// Checks all operations on one kind of value; bits decide.
fn check_reductions<E: Element>(
    groups: Vec<Group>,
    world: usize,
    context: &str,
    wide: impl Fn(E) -> f32 + Copy,
    round: impl Fn(f32) -> E + Copy + Sync,
) {
    assert!(groups.is_sorted_by_key(Group::rank));
    assert!(groups.iter().all(|group| group.world() == world));
    let of_rank = |rank: usize, len| values(rank, len).into_iter().map(round).collect();
    let cases: Vec<_> = LENS
        .into_iter()
        .flat_map(|len| OPS.map(|op| (len, op)))
        .map(|(len, op)| {
            let terms: Vec<Vec<E>> = (0..world).map(|rank| of_rank(rank, len)).collect();
            let expected = reduced(op, &terms, wide, round);
            (len, op, terms, expected)
        })
        .collect();
    on_each(groups, |group| {
        let own = group.rank().index();
        for (len, op, terms, expected) in &cases {
            let mut data = terms[own].clone();
            group
                .all_reduce(*op, &mut data)
                .expect("all ranks take part");
            let same = bytemuck::cast_slice::<E, u8>(&data) == bytemuck::cast_slice(expected);
            assert!(same, "all_reduce {op:?} of {len}, {context}, rank {own}");

            let mut data = terms[own].clone();
            let part = group
                .reduce_scatter(*op, &mut data)
                .expect("all ranks take part");
            let due = &expected[own * len / world..(own + 1) * len / world];
            let same = bytemuck::cast_slice::<E, u8>(part) == bytemuck::cast_slice(due);
            assert!(
                same,
                "reduce_scatter {op:?} of {len}, {context}, rank {own}"
            );
        }
    });
}

#[test]
fn f32_is_reduced_in_rank_order() {
    in_both_topologies(|links, world, topology| {
        let context = format!("f32, {links:?}, {world} ranks, {topology:?}");
        check_reductions::<f32>(
            groups_in(topology, links, world),
            world,
            &context,
            |value| value,
            |value| value,
        );
    });
}

#[test]
fn f16_is_reduced_in_rank_order_and_rounded_once() {
    in_both_topologies(|links, world, topology| {
        let context = format!("f16, {links:?}, {world} ranks, {topology:?}");
        // The largest terms are infinite, and so are sums of them, or not a number.
        check_reductions::<f16>(
            groups_in(topology, links, world),
            world,
            &context,
            f16::to_f32,
            f16::from_f32,
        );
    });
}

#[test]
fn bf16_is_reduced_in_rank_order_and_rounded_once() {
    in_both_topologies(|links, world, topology| {
        let context = format!("bf16, {links:?}, {world} ranks, {topology:?}");
        check_reductions::<bf16>(
            groups_in(topology, links, world),
            world,
            &context,
            bf16::to_f32,
            bf16::from_f32,
        );
    });
}

/// Of the terms of all ranks, each rounded, the sum in rank order, rounded: by definition, with a division for each value.
fn summed_as_integers(terms: &[Vec<f32>]) -> Vec<f32> {
    let rounded = |values: &[f32]| -> Vec<f32> {
        let round = |block: &[f32]| {
            let largest = block.iter().fold(0_f32, |max, value| max.max(value.abs()));
            let steps = 127.0 / largest;
            let round = |value: &f32| {
                // An integer has one zero.
                ((value * steps).round_ties_even() + 0.0) * (largest / 127.0)
            };
            block.iter().map(round).collect::<Vec<f32>>()
        };
        values.chunks(32).flat_map(round).collect()
    };
    let terms: Vec<Vec<f32>> = terms.iter().map(|term| rounded(term)).collect();
    let sum = |index: usize| terms.iter().map(|term| term[index]).sum();
    rounded(&(0..terms[0].len()).map(sum).collect::<Vec<f32>>())
}

#[test]
fn sums_of_eight_bits_are_the_same_everywhere() {
    in_both_topologies(|links, world, topology| {
        let cases: Vec<_> = [1, 33, 1001, 150_001]
            .into_iter()
            .map(|len| {
                let terms: Vec<Vec<f32>> = (0..world).map(|rank| values(rank, len)).collect();
                let expected = summed_as_integers(&terms);
                (terms, expected)
            })
            .collect();
        on_each(groups_in(topology, links, world), |group| {
            group.set_exchange(Exchange::Q8);
            let own = group.rank().index();
            for (terms, expected) in &cases {
                let mut data = terms[own].clone();
                group
                    .all_reduce_sum(&mut data)
                    .expect("all ranks take part");
                let (len, same) = (data.len(), bits(&data) == bits(expected));
                assert!(same, "{len} values, {links:?}, {world} ranks, {topology:?}");
            }
        });
    });
}

/// Whatever still read a region after a collective would find there what spoils every sum.
#[test]
fn a_region_may_change_once_a_collective_has_returned() {
    in_both_topologies(|links, world, topology| {
        let terms = |len: usize| (0..world).map(move |rank| values(rank, len)).collect();
        let cases: Vec<(Vec<Vec<f32>>, Vec<f32>)> = LENS
            .into_iter()
            .map(terms)
            .map(|terms: Vec<Vec<f32>>| {
                let sums = reduced(Reduce::Sum, &terms, |value| value, |value| value);
                (terms, sums)
            })
            .collect();
        on_each(groups_in(topology, links, world), |group| {
            let (own, last) = (group.rank().index(), world - 1);
            let mut region = group.region(LENS[5] + 3).expect("there is memory");
            let mut came = Vec::new();
            for start in 0..3 {
                for (terms, sums) in &cases {
                    let data = &mut region[start..][..sums.len()];
                    data.copy_from_slice(&terms[own]);
                    group.all_reduce_sum(data).expect("all ranks take part");
                    let same = bits(data) == bits(sums);
                    data.fill(f32::NAN);
                    let len = sums.len();
                    assert!(same, "{len} values, {links:?}, {world} ranks, {topology:?}");

                    data.copy_from_slice(&terms[own]);
                    if own == 0 {
                        let to = Rank(u16::try_from(last).expect("small"));
                        let bytes = bytemuck::cast_slice(data);
                        group.send(to, bytes).expect("it is received");
                        data.fill(f32::NAN);
                    } else if own == last {
                        group.recv(Rank(0), &mut came).expect("it is sent");
                        let due: &[u8] = bytemuck::cast_slice(&terms[0]);
                        assert!(came == due, "{len} values, {links:?}, {world} ranks");
                    }
                }
            }
        });
    });
}

#[test]
fn every_part_of_an_all_to_all_comes_to_its_rank() {
    in_both_topologies(|links, world, topology| {
        for scale in [0, 1, 1000, 60_000] {
            // Unlike lengths, none among them.
            let part = |from: usize, to: usize| {
                let mark = u8::try_from(from * world + to).expect("small");
                vec![mark; (from + 2 * to) % 5 * scale]
            };
            on_each(groups_in(topology, links, world), |group| {
                let own = group.rank().index();
                let parts: Vec<Vec<u8>> = (0..world).map(|to| part(own, to)).collect();
                // What was there before does not show through.
                let mut all = vec![vec![99; 5000]; 11];
                for _ in 0..2 {
                    group
                        .all_to_all(&parts, &mut all)
                        .expect("all ranks take part");
                    let due: Vec<Vec<u8>> = (0..world).map(|from| part(from, own)).collect();
                    assert!(
                        all == due,
                        "{links:?}, {world} ranks, {topology:?}, scale {scale}, rank {own}"
                    );
                }
            });
        }
    });
}

#[test]
fn the_ring_gathers_and_broadcasts_as_the_mesh_does() {
    everywhere(&WORLDS, |links, world| {
        let part = |rank: usize, len: usize| vec![u8::try_from(rank).expect("small") + 1; len];
        let due: Vec<Vec<u8>> = (0..world).map(|rank| part(rank, rank * 40_000)).collect();
        let lens: Vec<usize> = (0..world).map(|rank| (world - rank) * 3001).collect();
        let row: Vec<f32> = (0..world)
            .flat_map(|rank| values(rank, lens[rank]))
            .collect();
        on_each(groups_in(Topology::Ring, links, world), |group| {
            let own = group.rank().index();
            let mut all = Vec::new();
            group
                .all_gather(&due[own], &mut all)
                .expect("all ranks take part");
            assert!(all == due, "{links:?}, {world} ranks, rank {own}");
            let mut out = vec![f32::NAN; row.len()];
            group
                .all_gather_f32(&values(own, lens[own]), &lens, &mut out)
                .expect("all ranks take part");
            assert!(out == row, "{links:?}, {world} ranks, rank {own}");
            for root in 0..world {
                for len in [0, 7, 300_000] {
                    let mut data = match root == own {
                        true => part(root, len),
                        false => vec![0; 77],
                    };
                    let root = Rank(u16::try_from(root).expect("small"));
                    group
                        .broadcast(root, &mut data)
                        .expect("all ranks take part");
                    assert!(
                        data == part(root.index(), len),
                        "{links:?}, {world} ranks, {root} to rank {own}"
                    );
                }
            }
        });
    });
}

#[test]
fn nobody_passes_the_barrier_of_a_ring_before_all_have_come() {
    everywhere(&WORLDS, |links, world| {
        let come = Tally::new();
        on_each(groups_in(Topology::Ring, links, world), |group| {
            for round in 1..=20 {
                come.add_one();
                group.barrier().expect("all ranks take part");
                assert!(come.count() >= round * world);
            }
        });
    });
}

#[test]
fn a_ring_names_the_rank_that_died() {
    everywhere(&[4, 5, 6], |links, world| {
        for lost in 0..world {
            for len in [16, 1 << 18] {
                let mut groups = groups_in(Topology::Ring, links, world);
                groups.retain(|group| group.rank().index() != lost);
                let errors = on_each(groups, |group| {
                    group
                        .all_reduce_sum(&mut vec![1.0; len])
                        .expect_err("a rank is missing")
                });
                let expected = Some(Rank(u16::try_from(lost).expect("small")));
                for error in errors {
                    assert_eq!(error.lost_rank(), expected, "{links:?}: {error}");
                }
            }
        }
    });
}

/// Its neighbours wait for it, and others for them: who is named has to be at the end of all that.
#[test]
fn a_ring_names_the_rank_that_stalls() {
    everywhere(&[5], |links, world| {
        for still in [0, 3] {
            let groups = groups_in(Topology::Ring, links, world).into_iter();
            let (stalled, mut groups): (Vec<Group>, Vec<Group>) =
                groups.partition(|group| group.rank().index() == still);
            for group in &mut groups {
                group.set_timeout(Duration::from_secs(1));
            }
            let errors = on_each(groups, |group| {
                group
                    .all_reduce_sum(&mut vec![1.0; 1 << 18])
                    .expect_err("a rank is missing")
            });
            drop(stalled);
            let expected = Some(Rank(u16::try_from(still).expect("small")));
            for error in errors {
                assert_eq!(error.lost_rank(), expected, "{links:?}: {error}");
            }
        }
    });
}

#[test]
fn an_all_to_all_wants_a_part_for_each_rank() {
    everywhere(&[2, 4], |links, world| {
        on_each(groups(links, world, PATIENT), |group| {
            let outcome = group.all_to_all(&vec![b"too few"; world - 1], &mut Vec::new());
            assert!(matches!(outcome, Err(FabricError::Invalid(_))));
            group.barrier().expect("the group goes on");
        });
    });
}
