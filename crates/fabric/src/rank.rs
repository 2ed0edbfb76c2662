//! The number of one member of a group.

use std::fmt;

/// One member of a running group, 0 to N-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank(pub u16);

impl Rank {
    /// Returns the rank as an index into per-rank tables.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Returns the rank of an index into a per-rank table; worlds are bounded by [`WORLD_MAX`].
    pub(crate) fn at(index: usize) -> Self {
        Self(u16::try_from(index).expect("indices are below the world, which fits 16 bits"))
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// The largest world a group may have: every rank holds a link to every other.
pub const WORLD_MAX: usize = 1024;
