//! Groups whose bytes MPI carries, for sites where MPI starts the processes and knows the network.
//!
//! Only there with the feature `mpi`. Ranks and world are those that `mpirun` gave the processes. MPI keeps the order
//! between two ranks and loses nothing, so a link is a few messages under way each way, and its end an empty one. A rank
//! that waits looks and naps in turn; while it computes, a thread looks once a millisecond, so that what it sent goes on.
//!
//! MPI tells nobody that a rank has died: as a rule `mpirun` ends all the others at once, and where it does not, the
//! group's timeout is what tells. A rank that leaves its group in order is noticed as with every other link.

mod flow;
mod line;
mod links;
mod runtime;
mod slot;

use std::time::Duration;

use crate::error::FabricError;
use crate::group::Group;
use crate::handshake::PROTOCOL_VERSION;
use crate::pace::Pace;
use crate::rank::Rank;
use links::MpiLinks;

/// Forms the group of all ranks that `mpirun` started; each of them calls this, equally often. Starts MPI the first time.
///
/// One group at a time: the last one has to be dropped before. `timeout` bounds the wait for the others here, and is that
/// of the group. The process ends MPI when it exits, for which it then waits for the other ranks to drop their groups as
/// well, 30 s at most; MPI itself may wait longer.
///
/// # Errors
/// [`FabricError::Timeout`] naming a rank that did not come, [`FabricError::VersionMismatch`], [`FabricError::Invalid`]
/// while there is a group already or where another part of the program started MPI for one thread only, and
/// [`FabricError::Io`] with what MPI says.
pub fn world(timeout: Duration) -> Result<Group, FabricError> {
    let links = MpiLinks::open()?;
    let (rank, world) = (links.rank, links.world);
    let pace = Pace::of_machine(links.local_ranks);
    let mut group = Group::new(rank, world, Box::new(links), pace);
    group.set_timeout(timeout);
    let mut versions = Vec::new();
    group.all_gather(&PROTOCOL_VERSION.to_le_bytes(), &mut versions)?;
    for (index, version) in versions.iter().enumerate() {
        let theirs = version.first_chunk().copied().map(u16::from_le_bytes);
        if theirs != Some(PROTOCOL_VERSION) {
            return Err(FabricError::VersionMismatch {
                peer: Rank::at(index).to_string(),
                ours: PROTOCOL_VERSION,
                theirs: theirs.unwrap_or_default(),
            });
        }
    }
    Ok(group)
}
