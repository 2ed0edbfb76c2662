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
}

/// Whether a connection repeats what got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// RC: InfiniBand and RoCE have it.
    Reliable,
    /// UC: all that Thunderbolt has.
    Unreliable,
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
}

impl Candidates {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.unreliable)];
        bytes.extend(self.ips.iter().flat_map(Ipv4Addr::octets));
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let unreliable = take(bytes)? != [0];
        let (ips, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| Self {
            ips: ips.iter().map(|ip| Ipv4Addr::from(*ip)).collect(),
            unreliable,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// Over Thunderbolt, both sides of a message take the same number of these.
const FRAME_BYTES: usize = 4096;
const SLOT_FRAMES: usize = 4;
/// One message.
pub(crate) const SLOT_BYTES: usize = SLOT_FRAMES * FRAME_BYTES;
/// In each direction. All of this is part of the protocol's version.
pub(crate) const SLOTS: usize = 64;
/// How deep a queue is, as Thunderbolt counts it.
pub(crate) const QUEUE_FRAMES: usize = SLOTS * SLOT_FRAMES;

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
            let candidates = Candidates { ips, unreliable };
            prop_assert_eq!(Candidates::decode(&candidates.encode()), Some(candidates));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = (Endpoint::decode(&bytes), Candidates::decode(&bytes));
        }
    }

    /// Apple's bound of a queue is 4095 frames.
    #[test]
    fn a_queue_is_not_deeper_than_thunderbolt_allows() {
        const { assert!(QUEUE_FRAMES <= 4095) };
    }
}
