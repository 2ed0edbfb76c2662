//! The unit in which links carry data: a fixed header and a payload.
//!
//! ```text
//! 0      2      3      4          8          12         16
//! │ magic│ kind │  0   │ sequence │ length   │ check    │ payload, `length` bytes …
//! ```
//! All numbers are little-endian. `sequence` counts the frames of one direction of one link, so that two ranks that
//! disagree about what comes next notice it at once. `check` is the CRC-32 (IEEE 802.3) of the bytes before it. Values are
//! not checked: TCP does that, shared memory needs none, and the link test compares every byte. Reading is a pure function
//! over bytes; input never panics.

use crate::rank::Rank;

/// What a frame is part of; both ends must be in the same operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// All values of one rank, to be reduced by the receiver.
    Reduce = 1,
    /// A piece of values on its way through a reduction.
    ReducePart = 2,
    /// A piece of the result.
    ReduceDone = 3,
    /// One rank's part of an all-gather.
    Gather = 4,
    /// The root's bytes.
    Broadcast = 5,
    /// Bytes from one rank to one other.
    Message = 6,
    /// Presence at a barrier.
    Barrier = 7,
    /// The group is over; the payload is an [`Abort`]. May come in place of any other frame.
    Abort = 8,
    /// One rank's part for one other of an all-to-all.
    AllToAll = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    const ALL: [Self; 9] = [
        Self::Reduce,
        Self::ReducePart,
        Self::ReduceDone,
        Self::Gather,
        Self::Broadcast,
        Self::Message,
        Self::Barrier,
        Self::Abort,
        Self::AllToAll,
    ];
}

/// The fixed first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is part of.
    pub kind: Kind,
    /// Number of the frame in its direction of the link, counted from 0, wrapping.
    pub sequence: u32,
    /// Length of the payload in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub length: u32,
}

impl Header {
    /// Returns the header as it goes over the link.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        let check = crc32fast::hash(&bytes[..12]);
        bytes[12..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` means that more bytes are needed.
    ///
    /// # Errors
    /// Bytes that no header starts with.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some((bytes, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [
            m0,
            m1,
            kind,
            reserved,
            s0,
            s1,
            s2,
            s3,
            l0,
            l1,
            l2,
            l3,
            check @ ..,
        ] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        if crc32fast::hash(&bytes[..12]) != u32::from_le_bytes(check) {
            return Err(FrameError::Damaged);
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let length_max = if kind == Kind::Abort {
            ABORT_BYTES_MAX
        } else {
            PAYLOAD_BYTES_MAX
        };
        if length as usize > length_max {
            return Err(FrameError::Length { length, length_max });
        }
        let sequence = u32::from_le_bytes([s0, s1, s2, s3]);
        Ok(Some(Self {
            kind,
            sequence,
            length,
        }))
    }
}

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The fixed first bytes.
    pub header: Header,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Reads the frame that `bytes` start with; `None` means that more bytes are needed.
///
/// # Errors
/// Bytes that no frame starts with.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let Some(header) = Header::decode(bytes)? else {
        return Ok(None);
    };
    let payload = bytes[HEADER_BYTES..].get(..header.length as usize);
    Ok(payload.map(|payload| Frame { header, payload }))
}

/// The payload of an abort frame: who was lost, and how that was noticed. It carries a check of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The rank that was lost.
    pub rank: Rank,
    /// Whether the sender only knows that it waited for the rank in vain, which may itself wait for another.
    pub is_silence: bool,
    /// How that was noticed, one line; longer than [`ABORT_BYTES_MAX`] is cut.
    pub reason: String,
}

impl Abort {
    /// Returns the payload as it goes over the link.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let reason_bytes = self
            .reason
            .floor_char_boundary(ABORT_BYTES_MAX - CHECK_BYTES - 3);
        let news = [
            &self.rank.0.to_le_bytes()[..],
            &[u8::from(self.is_silence)],
            &self.reason.as_bytes()[..reason_bytes],
        ]
        .concat();
        [&crc32fast::hash(&news).to_le_bytes()[..], &news].concat()
    }

    /// Reads a payload, unless it is damaged; text that is not UTF-8 is replaced, control characters are dropped.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (check, news) = payload.split_first_chunk()?;
        if crc32fast::hash(news) != u32::from_le_bytes(*check) {
            return None;
        }
        let (rank, rest) = news.split_first_chunk()?;
        let (is_silence, reason) = rest.split_first()?;
        let mut reason = String::from_utf8_lossy(reason).into_owned();
        reason.retain(|c| !c.is_control());
        Some(Self {
            rank: Rank(u16::from_le_bytes(*rank)),
            is_silence: *is_silence != 0,
            reason,
        })
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first two bytes are not those of a frame.
    #[error("a frame began with bytes {0:02x?}")]
    Magic([u8; 2]),
    /// The check does not fit.
    #[error("the header of a frame is not as it was sent")]
    Damaged,
    /// The kind is unknown.
    #[error("a frame is of unknown kind {0}")]
    Kind(u8),
    /// A byte that must be zero is not.
    #[error("a reserved byte of a frame is {0}")]
    Reserved(u8),
    /// The payload would be longer than allowed.
    #[error("a frame announces {length} bytes where {length_max} are allowed")]
    Length {
        /// What the header says.
        length: u32,
        /// The bound of its kind.
        length_max: usize,
    },
}

/// Length of a header.
pub const HEADER_BYTES: usize = 16;
/// The longest payload of one frame.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// The longest payload of an abort frame.
pub const ABORT_BYTES_MAX: usize = 512;

const CHECK_BYTES: usize = 4;
const MAGIC: [u8; 2] = *b"Sh";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (0..Kind::ALL.len()).prop_map(|index| Kind::ALL[index])
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(frame)) = decode(&bytes) {
                prop_assert_eq!(&bytes[..HEADER_BYTES], &frame.header.encode()[..]);
            }
            let _any_outcome = Abort::decode(&bytes);
        }

        #[test]
        fn almost_headers_decode_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 16..64), kind in 0_u8..11) {
            bytes[..4].copy_from_slice(&[MAGIC[0], MAGIC[1], kind, 0]);
            let check = crc32fast::hash(&bytes[..12]).to_le_bytes();
            bytes[12..16].copy_from_slice(&check);
            match decode(&bytes) {
                Ok(Some(frame)) => prop_assert_eq!(frame.payload.len(), frame.header.length as usize),
                Ok(None) => prop_assert!(Header::decode(&bytes).is_ok_and(|header| header.is_some())),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn frames_survive_the_link(kind in kinds(), sequence: u32, payload in prop::collection::vec(any::<u8>(), 0..512), rest in prop::collection::vec(any::<u8>(), 0..8)) {
            let header = Header { kind, sequence, length: u32::try_from(payload.len()).expect("below 512") };
            let whole = [&header.encode()[..], &payload].concat();
            for cut in 0..whole.len() {
                prop_assert_eq!(decode(&whole[..cut]), Ok(None));
            }
            let followed = [whole, rest].concat();
            prop_assert_eq!(decode(&followed), Ok(Some(Frame { header, payload: &payload })));
        }

        #[test]
        fn aborts_survive_the_link(rank: u16, is_silence: bool, reason in "[a-zé ]{0,600}") {
            let sent = Abort { rank: Rank(rank), is_silence, reason };
            let payload = sent.encode();
            prop_assert!(payload.len() <= ABORT_BYTES_MAX);
            let read = Abort::decode(&payload).expect("encoded above");
            prop_assert_eq!((read.rank, read.is_silence), (sent.rank, sent.is_silence));
            prop_assert!(sent.reason.starts_with(&read.reason));
            prop_assert!(read.reason.len() + 4 > sent.reason.len().min(ABORT_BYTES_MAX - CHECK_BYTES - 3));
        }

        #[test]
        fn a_flipped_bit_of_a_header_or_an_abort_is_noticed(kind in kinds(), sequence: u32, length in 0_u32..512, bit in 0_usize..128) {
            let mut bytes = Header { kind, sequence, length }.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&bytes).is_err());
            let mut payload = Abort { rank: Rank(3), is_silence: true, reason: "as a test".to_owned() }.encode();
            let bit = bit % (8 * payload.len());
            payload[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Abort::decode(&payload), None);
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let header = |kind, length| Header {
            kind,
            sequence: 0,
            length,
        };
        assert!(Header::decode(&header(Kind::Reduce, 1 << 30).encode()).is_ok());
        let refused = [
            header(Kind::Reduce, (1 << 30) + 1),
            header(Kind::Abort, 513),
        ];
        for header in refused {
            assert!(matches!(
                Header::decode(&header.encode()),
                Err(FrameError::Length { .. })
            ));
        }
    }
}
