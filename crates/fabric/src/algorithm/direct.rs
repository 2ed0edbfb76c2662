//! One round in which every sender reaches every receiver over the link between the two.

use crate::algorithm::blocks::Blocks;
use crate::frame::Kind;
use crate::transfer::{Destination, Traffic};

/// Every rank sends its block to all others.
pub(crate) struct Gather<B> {
    pub(crate) kind: Kind,
    pub(crate) own: usize,
    pub(crate) blocks: B,
}

impl<B: Blocks> Traffic for Gather<B> {
    fn rounds(&self) -> usize {
        1
    }

    fn kind(&self, _round: usize) -> Kind {
        self.kind
    }

    fn payload(&self, _round: usize, _peer: usize) -> Option<&[u8]> {
        Some(self.blocks.block(self.own))
    }

    fn destination(&mut self, _round: usize, peer: usize) -> Option<Destination<'_>> {
        Some(self.blocks.room(peer))
    }
}

/// Bytes go out to some peers.
pub(crate) struct Send<'a> {
    pub(crate) kind: Kind,
    /// All, if there is none.
    pub(crate) to: Option<usize>,
    pub(crate) data: &'a [u8],
}

impl Traffic for Send<'_> {
    fn rounds(&self) -> usize {
        1
    }

    fn kind(&self, _round: usize) -> Kind {
        self.kind
    }

    fn payload(&self, _round: usize, peer: usize) -> Option<&[u8]> {
        self.to.is_none_or(|to| to == peer).then_some(self.data)
    }

    fn destination(&mut self, _round: usize, _peer: usize) -> Option<Destination<'_>> {
        None
    }
}

/// Bytes come in from one peer.
pub(crate) struct Recv<'a> {
    pub(crate) kind: Kind,
    pub(crate) from: usize,
    pub(crate) data: &'a mut Vec<u8>,
}

impl Traffic for Recv<'_> {
    fn rounds(&self) -> usize {
        1
    }

    fn kind(&self, _round: usize) -> Kind {
        self.kind
    }

    fn payload(&self, _round: usize, _peer: usize) -> Option<&[u8]> {
        None
    }

    fn destination(&mut self, _round: usize, peer: usize) -> Option<Destination<'_>> {
        (peer == self.from).then_some(Destination::Vec(self.data))
    }
}

/// Every rank sends to each other what is meant for it.
pub(crate) struct AllToAll<'a, P> {
    pub(crate) parts: &'a [P],
    pub(crate) all: &'a mut [Vec<u8>],
}

impl<P: AsRef<[u8]>> Traffic for AllToAll<'_, P> {
    fn rounds(&self) -> usize {
        1
    }

    fn kind(&self, _round: usize) -> Kind {
        Kind::AllToAll
    }

    fn payload(&self, _round: usize, peer: usize) -> Option<&[u8]> {
        Some(self.parts[peer].as_ref())
    }

    fn destination(&mut self, _round: usize, peer: usize) -> Option<Destination<'_>> {
        Some(Destination::Vec(&mut self.all[peer]))
    }
}
