//! Which links the collectives of a group use, chosen by what carries the bytes of each two ranks.

use std::time::Instant;

use tracing::info;

use crate::algorithm::Topology;
use crate::error::FabricError;
use crate::group::Group;
use crate::link::Transport;
use crate::rank::Rank;

impl Group {
    /// Keeps collectives to the ring where only its links are better than TCP. The ranks tell each other what they have, so
    /// that all choose the same.
    ///
    /// # Errors
    /// When another rank ends or is silent until `deadline`.
    pub(crate) fn choose_topology(mut self, deadline: Instant) -> Result<Self, FabricError> {
        if self.world() <= 3 {
            return Ok(self);
        }
        let usual = self.timeout();
        self.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let own: Vec<u8> = (0..self.world())
            .map(|peer| u8::from(self.is_beyond_tcp(peer)))
            .collect();
        let mut all = Vec::new();
        self.all_gather(&own, &mut all)?;
        let topology = choose(&all);
        if topology == Topology::Ring {
            info!(rank = %self.rank(), "collectives go round the ring: other links than those of neighbours are TCP");
        }
        self.set_topology(topology);
        self.set_timeout(usual);
        Ok(self)
    }

    fn is_beyond_tcp(&self, peer: usize) -> bool {
        let transport = self.transport(Rank::at(peer));
        transport.is_some_and(|transport| transport != Transport::Tcp)
    }
}

/// Chooses by whether each rank's link to each other is better than TCP.
fn choose(better: &[Vec<u8>]) -> Topology {
    let world = better.len();
    let is_better = |one: usize, other: usize| better[one].get(other) == Some(&1);
    let is_ring = (0..world).all(|rank| is_better(rank, (rank + 1) % world));
    let mut pairs = (0..world).flat_map(|one| (0..one).map(move |other| (one, other)));
    match is_ring && pairs.any(|(one, other)| !is_better(one, other)) {
        true => Topology::Ring,
        false => Topology::Mesh,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::link::{Interest, Links};
    use crate::memory;
    use crate::pace::Pace;

    /// Links inside the process, some of which say that they are RDMA and the others that they are TCP.
    struct Cabled<L> {
        inner: L,
        cables: Vec<usize>,
    }

    impl<L: Links> Links for Cabled<L> {
        fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            self.inner.write(peer, parts)
        }

        fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
            self.inner.read(peer, into)
        }

        fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
            self.inner.wait(interests, timeout)
        }

        fn transport(&self, peer: usize) -> Option<Transport> {
            match self.cables.contains(&peer) {
                true => Some(Transport::Rdma),
                false => self.inner.transport(peer).map(|_| Transport::Tcp),
            }
        }
    }

    fn check(world: usize, cables: &[(usize, usize)], expected: Topology) {
        let ranks = memory::mesh(world).into_iter().enumerate();
        let chosen: Vec<Topology> = thread::scope(|scope| {
            let running: Vec<_> = ranks
                .map(|(own, inner)| {
                    let ends = cables.iter().filter_map(|cable| match *cable {
                        (one, other) if one == own => Some(other),
                        (one, other) if other == own => Some(one),
                        _ => None,
                    });
                    let cables = ends.collect();
                    let links = Box::new(Cabled { inner, cables });
                    let pace = Pace::of_machine(world);
                    let group = Group::new(Rank::at(own), world, links, pace);
                    let deadline = Instant::now() + Duration::from_secs(60);
                    scope.spawn(move || group.choose_topology(deadline))
                })
                .collect();
            let groups = running
                .into_iter()
                .map(|rank| rank.join().expect("no panic"));
            let groups: Result<Vec<Group>, _> = groups.collect();
            let groups = groups.expect("all take part");
            groups.iter().map(Group::topology).collect()
        });
        assert_eq!(chosen, vec![expected; world], "{cables:?}");
    }

    #[test]
    fn cables_round_make_a_ring() {
        check(4, &[(0, 1), (1, 2), (2, 3), (3, 0)], Topology::Ring);
        check(
            5,
            &[(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (1, 3)],
            Topology::Ring,
        );
    }

    #[test]
    fn any_other_cables_leave_the_mesh() {
        check(4, &[], Topology::Mesh);
        check(4, &[(0, 1), (1, 2), (2, 3)], Topology::Mesh);
        let every = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)];
        check(4, &every, Topology::Mesh);
        check(4, &[(0, 2), (2, 1), (1, 3), (3, 0)], Topology::Mesh);
    }
}
