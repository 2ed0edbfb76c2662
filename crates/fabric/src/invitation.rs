//! What ranks and the rendezvous say to each other.

use std::net::SocketAddr;

use crate::key::KEY_BYTES;
use crate::rank::Rank;

/// A rank asks for its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) rank: Rank,
    /// How many ranks it was started for.
    pub(crate) world: usize,
    /// Where the ranks above it can connect.
    pub(crate) listens: SocketAddr,
}

impl Join {
    pub(crate) fn encode(&self) -> Vec<u8> {
        format!("{} {} {}", self.rank.0, self.world, self.listens).into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let fields = || {
            let mut words = str::from_utf8(bytes).ok()?.split(' ');
            let rank = Rank(words.next()?.parse().ok()?);
            let world = words.next()?.parse().ok()?;
            let listens = words.next()?.parse().ok()?;
            words.next().is_none().then_some(Self {
                rank,
                world,
                listens,
            })
        };
        fields().ok_or_else(|| "its request to join is malformed".to_owned())
    }
}

/// The rendezvous answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The rank gets no place.
    Refused(String),
    /// All ranks are there.
    Table {
        /// Tells this group from others of the same key.
        group: [u8; KEY_BYTES],
        /// Where ranks 1 to N-1 listen.
        addresses: Vec<SocketAddr>,
    },
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Refused(reason) => [&[REFUSED], reason.as_bytes()].concat(),
            Self::Table { group, addresses } => {
                let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
                [&[TABLE], &group[..], addresses.join(" ").as_bytes()].concat()
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let table = |bytes: &[u8]| {
            let (group, addresses) = bytes.split_first_chunk()?;
            let addresses = str::from_utf8(addresses)
                .ok()?
                .split(' ')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .ok()?;
            Some(Self::Table {
                group: *group,
                addresses,
            })
        };
        let reply = match bytes {
            [REFUSED, reason @ ..] => {
                Some(Self::Refused(String::from_utf8_lossy(reason).into_owned()))
            }
            [TABLE, rest @ ..] => table(rest),
            _ => None,
        };
        reply.ok_or_else(|| "its answer to a joining rank is malformed".to_owned())
    }
}

const REFUSED: u8 = 0;
const TABLE: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            if let Ok(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
            if let Ok(join) = Join::decode(&bytes) {
                prop_assert_eq!(Join::decode(&join.encode()), Ok(join));
            }
        }
    }

    #[test]
    fn addresses_of_both_families_survive() {
        let v4: SocketAddr = "10.1.2.3:4".parse().expect("an address");
        let v6: SocketAddr = "[fe80::1%3]:5".parse().expect("an address");
        let join = Join {
            rank: Rank(3),
            world: 4,
            listens: v6,
        };
        assert_eq!(Join::decode(&join.encode()), Ok(join));
        let table = Reply::Table {
            group: [7; KEY_BYTES],
            addresses: vec![v4, v6],
        };
        assert_eq!(Reply::decode(&table.encode()), Ok(table));
    }
}
