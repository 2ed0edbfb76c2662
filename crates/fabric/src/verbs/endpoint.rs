//! What two ranks tell each other about their ends of a connection between RDMA devices.

use std::net::Ipv4Addr;

use super::abi;

/// One end, as the other must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) kind: Kind,
    /// Of the queue pair.
    pub(crate) number: u32,
    /// Of the first packet.
    pub(crate) psn: u32,
    pub(crate) ip: Ipv4Addr,
    pub(crate) lid: u16,
    /// Largest packet, as verbs count them.
    pub(crate) mtu: u32,
    pub(crate) shape: Shape,
}

/// Whether a connection repeats what got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// RC: InfiniBand and RoCE have it.
    Reliable,
    /// UC: all that Thunderbolt has.
    Unreliable,
}

/// How the memory of a connection is divided; both ends have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) slot_bytes: usize,
    /// In each direction.
    pub(crate) slots: usize,
}

impl Shape {
    /// What this end would take.
    pub(crate) const OURS: Self = Self {
        slot_bytes: 4 * FRAME_BYTES,
        slots: 64,
    };

    /// Returns the largest that both ends can have.
    pub(crate) fn of_both(self, other: Self) -> Self {
        Self {
            slot_bytes: self.slot_bytes.min(other.slot_bytes),
            slots: self.slots.min(other.slots),
        }
    }

    /// Returns how deep a queue is in frames.
    pub(crate) fn frames(self) -> usize {
        self.slots * (self.slot_bytes / FRAME_BYTES)
    }

    fn encode(self, into: &mut Vec<u8>) {
        into.extend((self.slot_bytes as u32).to_le_bytes());
        into.extend((self.slots as u32).to_le_bytes());
    }

    /// At least two slots: the last credit is kept for giving credit.
    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let shape = Self {
            slot_bytes: u32::from_le_bytes(take(bytes)?) as usize,
            slots: u32::from_le_bytes(take(bytes)?) as usize,
        };
        let is_possible = shape.slot_bytes >= FRAME_BYTES
            && shape.slot_bytes.is_multiple_of(FRAME_BYTES)
            && shape.slot_bytes <= Self::OURS.slot_bytes
            && (4..=Self::OURS.slots).contains(&shape.slots);
        is_possible.then_some(shape)
    }
}

impl Endpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![match self.kind {
            Kind::Reliable => 1,
            Kind::Unreliable => 2,
        }];
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.psn.to_le_bytes());
        bytes.extend(self.ip.octets());
        bytes.extend(self.lid.to_le_bytes());
        bytes.push(self.mtu as u8);
        self.shape.encode(&mut bytes);
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let endpoint = Self {
            kind: match take(bytes)? {
                [1] => Kind::Reliable,
                [2] => Kind::Unreliable,
                _ => return None,
            },
            number: u32::from_le_bytes(take(bytes)?),
            psn: u32::from_le_bytes(take(bytes)?),
            ip: Ipv4Addr::from(take::<4>(bytes)?),
            lid: u16::from_le_bytes(take(bytes)?),
            mtu: u32::from(u8::from_le_bytes(take(bytes)?)),
            shape: Shape::decode(bytes)?,
        };
        let is_possible = (abi::MTU_256..=abi::MTU_4096).contains(&endpoint.mtu);
        (is_possible && bytes.is_empty()).then_some(endpoint)
    }
}

/// What one end could use, before anything has been chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// Of all devices.
    pub(crate) ips: Vec<Ipv4Addr>,
    /// Whether this end wants a connection as over Thunderbolt.
    pub(crate) unreliable: bool,
    pub(crate) shape: Shape,
}

impl Candidates {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.unreliable)];
        self.shape.encode(&mut bytes);
        bytes.extend(self.ips.iter().flat_map(Ipv4Addr::octets));
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let unreliable = take(bytes)? != [0];
        let shape = Shape::decode(bytes)?;
        let (ips, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| Self {
            ips: ips.iter().map(|ip| Ipv4Addr::from(*ip)).collect(),
            unreliable,
            shape,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// Over Thunderbolt, both sides of a message take the same number of these.
pub(crate) const FRAME_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(number: u32, psn: u32, ip: u32) -> Endpoint {
        Endpoint {
            kind: Kind::Unreliable,
            number,
            psn,
            ip: Ipv4Addr::from_bits(ip),
            lid: 7,
            mtu: 3,
            shape: Shape::OURS,
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_is_read_as_it_was_written(number: u32, psn: u32, ip: u32) {
            let endpoint = endpoint(number, psn, ip);
            let bytes = endpoint.encode();
            prop_assert_eq!(Endpoint::decode(&bytes), Some(endpoint));
            prop_assert_eq!(Endpoint::decode(&bytes[1..]), None);
            prop_assert_eq!(Endpoint::decode(&[&bytes[..], &[0]].concat()), None);
        }

        #[test]
        fn candidates_are_read_as_they_were_written(ips: Vec<u32>, unreliable: bool) {
            let ips = ips.into_iter().map(Ipv4Addr::from_bits).collect();
            let candidates = Candidates { ips, unreliable, shape: Shape::OURS };
            prop_assert_eq!(Candidates::decode(&candidates.encode()), Some(candidates));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = (Endpoint::decode(&bytes), Candidates::decode(&bytes));
        }
    }

    #[test]
    fn shapes_that_nobody_can_have_are_refused() {
        for (slot_bytes, slots) in [(0, 64), (4095, 64), (4096, 3), (4096, 65), (1 << 20, 64)] {
            let shape = Shape { slot_bytes, slots };
            let bytes = Endpoint {
                shape,
                ..endpoint(1, 2, 3)
            }
            .encode();
            assert_eq!(Endpoint::decode(&bytes), None, "{shape:?}");
        }
    }

    /// Apple's bound of a queue is 4095 frames.
    #[test]
    fn a_queue_is_not_deeper_than_thunderbolt_allows() {
        assert!(Shape::OURS.frames() <= 4095);
    }
}
