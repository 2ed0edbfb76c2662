//! Bytes that neighbours pass on, both ways round, each way half as far as all around.

use crate::algorithm::Place;
use crate::algorithm::blocks::Blocks;
use crate::frame::Kind;
use crate::transfer::{Destination, Traffic};

/// Every rank's block goes to all others.
///
/// In round t, everybody passes on to the right what began t ranks to the left, and the other way.
pub(crate) struct Gather<B> {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) blocks: B,
}

impl<B: Blocks> Traffic for Gather<B> {
    fn rounds(&self) -> usize {
        self.place.reach().0
    }

    fn kind(&self, _round: usize) -> Kind {
        self.kind
    }

    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]> {
        let (right, left) = self.place.reach();
        if peer == self.place.right(1) && round < right {
            Some(self.blocks.block(self.place.left(round)))
        } else if peer == self.place.left(1) && round < left {
            Some(self.blocks.block(self.place.right(round)))
        } else {
            None
        }
    }

    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>> {
        let (right, left) = self.place.reach();
        if peer == self.place.left(1) && round < right {
            Some(self.blocks.room(self.place.left(round + 1)))
        } else if peer == self.place.right(1) && round < left {
            Some(self.blocks.room(self.place.right(round + 1)))
        } else {
            None
        }
    }
}

/// The bytes of one rank go to all others: they come in the first round and go on in the second.
pub(crate) struct Broadcast<'a> {
    pub(crate) place: Place,
    pub(crate) root: usize,
    pub(crate) data: &'a mut Vec<u8>,
}

impl Broadcast<'_> {
    /// Returns how far to the right of the root this rank is.
    fn distance(&self) -> usize {
        (self.place.own + self.place.world - self.root) % self.place.world
    }

    /// Says whether the bytes come from the left, on their way to the right.
    fn goes_right(&self) -> bool {
        self.distance() <= self.place.reach().0
    }
}

impl Traffic for Broadcast<'_> {
    fn rounds(&self) -> usize {
        2
    }

    fn kind(&self, _round: usize) -> Kind {
        Kind::Broadcast
    }

    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]> {
        let (right, left) = self.place.reach();
        let distance = self.distance();
        let (to_right, to_left) = match distance {
            0 => (true, true),
            _ if self.goes_right() => (distance < right, false),
            _ => (false, self.place.world - distance < left),
        };
        let goes = round == 1
            && (to_right && peer == self.place.right(1) || to_left && peer == self.place.left(1));
        goes.then_some(self.data)
    }

    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>> {
        let from = match self.distance() {
            0 => return None,
            _ if self.goes_right() => self.place.left(1),
            _ => self.place.right(1),
        };
        (round == 0 && peer == from).then_some(Destination::Vec(self.data))
    }
}

/// Everybody hears from both neighbours, as often as it takes word to come half round.
pub(crate) struct Barrier(pub(crate) Place);

impl Barrier {
    fn is_neighbour(&self, peer: usize) -> bool {
        [self.0.left(1), self.0.right(1)].contains(&peer)
    }
}

impl Traffic for Barrier {
    fn rounds(&self) -> usize {
        self.0.reach().0
    }

    fn kind(&self, _round: usize) -> Kind {
        Kind::Barrier
    }

    fn payload(&self, _round: usize, peer: usize) -> Option<&[u8]> {
        self.is_neighbour(peer).then_some(&[])
    }

    fn destination(&mut self, _round: usize, peer: usize) -> Option<Destination<'_>> {
        self.is_neighbour(peer)
            .then_some(Destination::Slice(&mut []))
    }
}

/// Every rank's parts go to those they are meant for.
///
/// What goes `steps` far in one direction is passed on in as many hops. A round is one hop of the parts of all ranks that
/// go equally far; hop by hop, those that are there already drop out.
pub(crate) struct AllToAll<'a, P> {
    pub(crate) place: Place,
    pub(crate) parts: &'a [P],
    pub(crate) all: &'a mut [Vec<u8>],
    /// What is on its way: by direction, by whether the hop is odd, by how far it goes.
    pub(crate) transit: &'a mut [Vec<u8>],
}

impl<P> AllToAll<'_, P> {
    /// Returns how many buffers are needed for what is on its way.
    pub(crate) fn transit_len(place: Place) -> usize {
        4 * (place.reach().0 + 1)
    }

    /// Returns which hop a round is, counted from 0, and how far its parts go.
    fn hop(&self, mut round: usize) -> (usize, usize) {
        let far = self.place.reach().0;
        let mut hop = 0;
        while round >= far - hop {
            round -= far - hop;
            hop += 1;
        }
        (hop, hop + 1 + round)
    }

    /// Returns where a part that goes `steps` far is after `hop` hops.
    fn transit(&self, is_right: bool, hop: usize, steps: usize) -> usize {
        let directions = 2 * usize::from(is_right) + hop % 2;
        directions * (self.place.reach().0 + 1) + steps
    }
}

impl<P: AsRef<[u8]>> Traffic for AllToAll<'_, P> {
    fn rounds(&self) -> usize {
        let far = self.place.reach().0;
        far * (far + 1) / 2
    }

    fn kind(&self, _round: usize) -> Kind {
        Kind::AllToAll
    }

    fn payload(&self, round: usize, peer: usize) -> Option<&[u8]> {
        let (hop, steps) = self.hop(round);
        let (right, left) = self.place.reach();
        let (is_right, to) = if peer == self.place.right(1) && steps <= right {
            (true, self.place.right(steps))
        } else if peer == self.place.left(1) && steps <= left {
            (false, self.place.left(steps))
        } else {
            return None;
        };
        Some(match hop {
            0 => self.parts[to].as_ref(),
            _ => &self.transit[self.transit(is_right, hop, steps)],
        })
    }

    fn destination(&mut self, round: usize, peer: usize) -> Option<Destination<'_>> {
        let (hop, steps) = self.hop(round);
        let (right, left) = self.place.reach();
        let (is_right, from) = if peer == self.place.left(1) && steps <= right {
            (true, self.place.left(steps))
        } else if peer == self.place.right(1) && steps <= left {
            (false, self.place.right(steps))
        } else {
            return None;
        };
        Some(Destination::Vec(if hop + 1 == steps {
            &mut self.all[from]
        } else {
            let transit = self.transit(is_right, hop + 1, steps);
            &mut self.transit[transit]
        }))
    }
}
