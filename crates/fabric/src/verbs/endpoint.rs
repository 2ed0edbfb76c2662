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

/// One address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The place of the device among those of this end.
    pub(crate) device: u8,
    pub(crate) ip: Ipv4Addr,
    /// How many leading bits of it are those of its network; all where nobody knows.
    pub(crate) prefix: u8,
    /// Of the device's port; 0 if it is not known.
    pub(crate) speed_mbps: u32,
}

impl Candidate {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.device, self.prefix];
        bytes.extend(self.ip.octets());
        bytes.extend(self.speed_mbps.to_le_bytes());
        bytes
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let [device, prefix] = take(bytes)?;
        Some(Self {
            device,
            prefix,
            ip: Ipv4Addr::from(take::<4>(bytes)?),
            speed_mbps: u32::from_le_bytes(take(bytes)?),
        })
    }
}

/// What one end could use, before anything has been chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// Of all devices.
    pub(crate) all: Vec<Candidate>,
    /// Whether this end wants a connection as over Thunderbolt.
    pub(crate) unreliable: bool,
}

impl Candidates {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.unreliable)];
        bytes.extend(self.all.iter().flat_map(Candidate::encode));
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let unreliable = take(bytes)? != [0];
        let mut all = Vec::new();
        while !bytes.is_empty() {
            all.push(Candidate::decode(bytes)?);
        }
        Some(Self { all, unreliable })
    }
}

/// One of the connections that an end proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// The place of the other end's address among its candidates.
    pub(crate) place: u8,
    /// Of the slower of the two ports; 0 if it is not known.
    pub(crate) speed_mbps: u32,
    pub(crate) endpoint: Endpoint,
}

impl Proposal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.place];
        bytes.extend(self.speed_mbps.to_le_bytes());
        bytes.extend(self.endpoint.encode());
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let [place] = take(&mut bytes)?;
        Some(Self {
            place,
            speed_mbps: u32::from_le_bytes(take(&mut bytes)?),
            endpoint: Endpoint::decode(bytes)?,
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
        fn candidates_are_read_as_they_were_written(
            all: Vec<(u8, u32, u8, u32)>,
            unreliable: bool,
        ) {
            let all = all.into_iter().map(|(device, ip, prefix, speed_mbps)| Candidate {
                device,
                ip: Ipv4Addr::from_bits(ip),
                prefix,
                speed_mbps,
            });
            let candidates = Candidates { all: all.collect(), unreliable };
            prop_assert_eq!(Candidates::decode(&candidates.encode()), Some(candidates));
        }

        #[test]
        fn a_proposal_is_read_as_it_was_written(place: u8, speed_mbps: u32, number: u32) {
            let proposal = Proposal { place, speed_mbps, endpoint: endpoint(number, 5, 6) };
            prop_assert_eq!(Proposal::decode(&proposal.encode()), Some(proposal));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = (
                Endpoint::decode(&bytes),
                Candidates::decode(&bytes),
                Proposal::decode(&bytes),
            );
        }
    }

    /// Apple's bound of a queue is 4095 frames.
    #[test]
    fn a_queue_is_not_deeper_than_thunderbolt_allows() {
        const { assert!(QUEUE_FRAMES <= 4095) };
    }
}
