//! What is of its own about groups over MPI. `cargo xtask mpi` runs it, with two ranks.

mod common;

use std::time::Duration;

use common::PATIENT;
use common::mpi::{group, is_here, meet};
use shoal_fabric::{FabricError, Rank, mpi};

/// Says aloud that a test is skipped where no ranks are.
fn has_ranks() -> bool {
    if !is_here() {
        eprintln!("SKIPPED: ranks over MPI are started by `cargo xtask mpi`");
    }
    is_here()
}

#[test]
fn there_is_one_group_at_a_time() {
    if !has_ranks() {
        return;
    }
    let first = group(PATIENT);
    let second = mpi::world(PATIENT);
    assert!(matches!(second.err(), Some(FabricError::Invalid(_))));
    drop(first);
    group(PATIENT).barrier().expect("all ranks take part");
}

#[test]
fn what_was_sent_arrives_although_its_sender_only_computes() {
    if !has_ranks() {
        return;
    }
    let mut group = group(PATIENT);
    // Longer than what MPI sends before it knows who receives, and short enough to be handed over at once.
    let message = [7; 200_000];
    if group.rank() == Rank(0) {
        group.send(Rank(1), &message).expect("it will be received");
    } else {
        let mut received = Vec::new();
        group.recv(Rank(0), &mut received).expect("it was sent");
        assert!(received == message);
    }
    // Without a call of MPI.
    meet();
}

#[test]
fn a_rank_that_does_not_come_is_named_and_learns_it() {
    if !has_ranks() {
        return;
    }
    meet();
    if common::mpi::rank() == Rank(0) {
        let alone = mpi::world(Duration::from_millis(300)).err();
        assert!(
            matches!(alone, Some(FabricError::Timeout { rank: Rank(1), .. })),
            "{alone:?}"
        );
        meet();
    } else {
        meet();
        let late = mpi::world(PATIENT).and_then(|mut group| group.barrier());
        let lost = late.err().and_then(|error| error.lost_rank());
        assert_eq!(lost, Some(Rank(1)));
    }
}
