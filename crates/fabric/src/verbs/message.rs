//! The header of one message over an RDMA connection.

/// What stands before the bytes of a slot.
///
/// A completion of an unreliable connection proves little, so every message says by itself what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Says which connection it belongs to: devices use the numbers of queue pairs again, and one that ended may still send.
    pub(crate) tag: u32,
    /// Bytes of the stream that follow; the rest of the slot has no meaning.
    pub(crate) length: usize,
    /// Messages before this one.
    pub(crate) sequence: u64,
    /// Slots that the sender has emptied and posted again.
    pub(crate) credits: usize,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.credits as u32).to_le_bytes());
        let sum = checksum(&bytes[..20]);
        bytes[20..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the header of what arrived in a slot.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn decode(slot: &[u8]) -> Result<Self, String> {
        let Some((header, rest)) = slot.split_first_chunk::<HEADER_BYTES>() else {
            return Err("a message is shorter than its header".to_owned());
        };
        if header[20..] != checksum(&header[..20]).to_le_bytes() {
            return Err("a message arrived damaged".to_owned());
        }
        let word = |at: usize| {
            let bytes = header[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes)
        };
        let found = Self {
            tag: word(0),
            length: word(4) as usize,
            sequence: u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")),
            credits: word(16) as usize,
        };
        match found.length <= rest.len() {
            true => Ok(found),
            false => Err("a message claims to be longer than its slot".to_owned()),
        }
    }
}

/// FNV-1a: tells damage, not forgery.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

pub(crate) const HEADER_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(tag: u32, length in 0..1000_usize, sequence: u64, credits in 0..100_usize) {
            let header = Header { tag, length, sequence, credits };
            let mut slot = header.encode().to_vec();
            slot.resize(HEADER_BYTES + 1000, 7);
            prop_assert_eq!(Header::decode(&slot), Ok(header));
            slot.truncate(HEADER_BYTES + length);
            prop_assert_eq!(Header::decode(&slot), Ok(header));
            slot.pop();
            prop_assert!(Header::decode(&slot).is_err());
        }

        #[test]
        fn one_wrong_byte_is_noticed(at in 0..HEADER_BYTES, wrong in 1..=255_u8) {
            let mut slot = Header { tag: 3, length: 5, sequence: 9, credits: 2 }.encode();
            slot[at] ^= wrong;
            prop_assert!(Header::decode(&slot).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = Header::decode(&bytes);
        }
    }
}
