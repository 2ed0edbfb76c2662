//! What is told of a chunk beside its bytes, so that the end that has them knows whether they are the same.

use twox_hash::XxHash3_128;

pub(crate) type Hash = [u8; HASH_BYTES];

/// By what a chunk is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// BLAKE3: nobody finds other bytes that have it. For chunks that the other end may hold already.
    Hash(Hash),
    /// XXH3: damage is seen, for a fraction of the processor's time. For chunks that there is nothing to compare with: over
    /// a connection whose bytes are not authenticated, a hash would not keep anybody from changing both.
    Checksum([u8; CHECKSUM_BYTES]),
}

impl Seal {
    pub(crate) fn hash(bytes: &[u8]) -> Self {
        Self::Hash(*blake3::hash(bytes).as_bytes())
    }

    pub(crate) fn checksum(bytes: &[u8]) -> Self {
        Self::Checksum(XxHash3_128::oneshot(bytes).to_le_bytes())
    }

    /// Says whether these are the bytes that were sealed.
    pub(crate) fn fits(&self, bytes: &[u8]) -> bool {
        *self
            == match self {
                Self::Hash(_) => Self::hash(bytes),
                Self::Checksum(_) => Self::checksum(bytes),
            }
    }

    /// Returns its kind, and its bytes with zeros behind a shorter one.
    pub(crate) fn encode(&self) -> (u8, [u8; SEAL_BYTES]) {
        match self {
            Self::Hash(hash) => (HASH, *hash),
            Self::Checksum(checksum) => {
                let mut bytes = [0; SEAL_BYTES];
                bytes[..CHECKSUM_BYTES].copy_from_slice(checksum);
                (CHECKSUM, bytes)
            }
        }
    }

    /// Takes what [`encode`](Self::encode) gave, and nothing else.
    pub(crate) fn decode(kind: u8, bytes: [u8; SEAL_BYTES]) -> Option<Self> {
        let seal = match kind {
            HASH => Self::Hash(bytes),
            CHECKSUM => Self::Checksum(*bytes.first_chunk().expect("it is shorter")),
            _ => return None,
        };
        (seal.encode() == (kind, bytes)).then_some(seal)
    }
}

pub(crate) const SEAL_BYTES: usize = HASH_BYTES;
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 16;
const HASH: u8 = 0;
const CHECKSUM: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        (0..1_u32 << 16).map(|at| ((at * at) >> 7) as u8).collect()
    }

    #[test]
    fn seals_fit_the_bytes_they_were_made_of_only() {
        let bytes = bytes();
        for seal in [Seal::hash(&bytes), Seal::checksum(&bytes)] {
            assert!(seal.fits(&bytes));
            let (kind, encoded) = seal.encode();
            assert_eq!(Seal::decode(kind, encoded), Some(seal));
            for at in [0, 54_321, 65_535] {
                let mut other = bytes.clone();
                other[at] ^= 1;
                assert!(!seal.fits(&other), "{seal:?}, byte {at}");
            }
            assert!(!seal.fits(&bytes[1..]), "{seal:?}");
        }
        assert_eq!(Seal::decode(2, [0; SEAL_BYTES]), None);
    }

    /// The ends of a copy may be machines of different kinds. What is expected was computed by xxHash's own library.
    #[test]
    fn a_checksum_is_the_same_on_every_machine() {
        let expected = 0x8fb5_f3ff_0075_8131_9487_61d0_3686_761a_u128;
        let expected = Seal::Checksum(expected.to_le_bytes());
        assert_eq!(Seal::checksum(&bytes()), expected);
    }
}
