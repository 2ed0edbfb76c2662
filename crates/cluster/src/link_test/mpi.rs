//! The ranks of a test where `mpirun` has started them: no front, and no connection but MPI's.

use std::time::{Duration, Instant};

use shoal_fabric::{Rank, mpi};

use super::measure::{decode, encode};
use super::rank::{LinkRankError, Listener, Teller, together};
use super::report::Report;
use super::{Place, Plan};

/// Tests the links between this process and the others that `mpirun` started. Returns on rank 0 what was found, and where.
///
/// Rank 0 makes the plan, for so many ranks on its machine, and tells what happens.
///
/// # Errors
/// [`LinkRankError`] when the group did not form or fell apart, or this is the only rank.
pub fn run_over_mpi(
    join_timeout: Duration,
    silence_max: Duration,
    plan: impl FnOnce(usize) -> Plan,
    listener: &mut dyn Listener,
) -> Result<Option<(Report, Place)>, LinkRankError> {
    let joining = Instant::now();
    let mut group = mpi::world(join_timeout)?;
    let join_ms = joining.elapsed().as_secs_f64() * 1e3;
    group.set_timeout(silence_max);
    if group.world() == 1 {
        return Err(LinkRankError::Alone);
    }
    let (system, mut hosts) = (rustix::system::uname(), Vec::new());
    let host = system.nodename().to_bytes();
    group.all_gather(host, &mut hosts)?;
    let local_ranks = hosts.iter().filter(|other| *other == host).count();
    let is_root = group.rank() == Rank(0);
    let mut order = match is_root {
        true => encode(&plan(local_ranks)),
        false => Vec::new(),
    };
    group.broadcast(Rank(0), &mut order)?;
    let plan: Plan = decode(&order)?;
    let mut teller = Teller::new(is_root.then_some(listener), plan.verbose);
    let mut report = together(&mut group, &plan, &mut teller)?;
    report.join_ms = join_ms;
    let place = match local_ranks == group.world() {
        true => Place::ThisMachine,
        false => Place::Network,
    };
    Ok(is_root.then_some((report, place)))
}
