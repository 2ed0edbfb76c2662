//! What the two ends of a copy say: JSON messages on the authenticated control channel, and bare chunks on the *lanes*
//! beside it.
//!
//! ```text
//! node                                  whoever ordered the copy
//!   OpenLanes              ───────────►           connects as often as was ordered
//!                          ◄───────────  LanesOpen(connections)
//!
//! sender                                receiver
//!   Entries …, EntriesEnd  ───────────►           checks, makes folders, looks at the free space
//!                          ◄───────────  Ready
//!   Prepare(file, chunks)  ───────────►           hashes what it has of them
//!                          ◄───────────  Offer(hashes)
//!   lanes: frame, frame …  ═══════════►           a chunk, or "you have it"
//!   Finish                 ───────────►
//!                          ◄───────────  Done
//! ```
//! Either end says `Failed` when it cannot go on, and `Ping` every few seconds.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::CopyReport;
use super::error::CopyError;
use super::manifest::Entry;
use super::path::RelPath;
use super::seal::{Hash, SEAL_BYTES, Seal};
use crate::carrier::Carrier;

/// What a node is asked for, first on a connection.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum CopyOrder {
    /// Take files.
    Push(PushOrder),
    /// Give files.
    Pull(PullOrder),
    /// This connection is for the lanes of a copy that has been ordered; what follows on it is theirs to agree on.
    Lanes { session: String },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushOrder {
    pub(crate) session: String,
    /// So many or a few more; the same for each cable.
    pub(crate) lanes: u8,
    pub(crate) to: Destination,
    /// Most bytes a second that leave any machine.
    pub(crate) limit_bytes_per_second: Option<u64>,
    /// What may carry the lanes, at each hop.
    pub(crate) carrier: Carrier,
    /// Nodes to hand everything on to, one through the other.
    pub(crate) then: Vec<String>,
}

/// Where a copy goes, below the folder that the receiver serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Destination {
    pub(crate) path: RelPath,
    /// It is a folder to put the sources into, even if it is not there yet.
    pub(crate) is_folder: bool,
    /// Read again what was written before it gets its name.
    pub(crate) verify: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PullOrder {
    pub(crate) session: String,
    pub(crate) lanes: u8,
    pub(crate) from: Vec<RelPath>,
    pub(crate) limit_bytes_per_second: Option<u64>,
}

/// Between the two ends of a copy.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Message {
    /// The node waits for connections for the lanes.
    OpenLanes,
    /// So many connections were opened for them.
    LanesOpen {
        connections: u8,
    },
    Entries(Vec<Entry>),
    EntriesEnd {
        /// What cannot be copied: sockets, devices and the like.
        left_out: Vec<String>,
    },
    Ready,
    Prepare(Span),
    /// Hashes of the chunks that are there, from the first of the span.
    Offer {
        partial: Hashes,
        old: Hashes,
    },
    Finish,
    Done(Vec<CopyReport>),
    Failed {
        reason: String,
    },
    /// A sign of life.
    Ping,
}

/// Chunks of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) file: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Hashes(pub(crate) Vec<Hash>);

impl From<Hashes> for String {
    fn from(hashes: Hashes) -> Self {
        hex::encode(hashes.0.as_flattened())
    }
}

impl TryFrom<String> for Hashes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = hex::decode(text).map_err(|error| error.to_string())?;
        let (hashes, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err("part of a hash".to_owned());
        }
        Ok(Self(hashes.to_vec()))
    }
}

/// The header of a chunk on a lane; its bytes follow if they are [`Origin::Sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) origin: Origin,
    pub(crate) file: u32,
    pub(crate) chunk: u32,
    pub(crate) bytes: u32,
    pub(crate) seal: Seal,
}

/// Where the receiver gets a chunk from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Sent = 1,
    /// It arrived in an earlier attempt.
    Partial = 2,
    /// The file that is to be replaced has it.
    Old = 3,
}

impl Frame {
    pub(crate) fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        let (kind, seal) = self.seal.encode();
        bytes[..2].copy_from_slice(&[self.origin as u8, kind]);
        bytes[4..8].copy_from_slice(&self.file.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.chunk.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&seal);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, CopyError> {
        let seal = bytes[16..].try_into().expect("the rest is the seal");
        let (origin, seal) = match (bytes[0], Seal::decode(bytes[1], seal), &bytes[2..4]) {
            (1, Some(seal), [0, 0]) => (Origin::Sent, seal),
            // What is there already was found by its hash.
            (2, Some(seal @ Seal::Hash(_)), [0, 0]) => (Origin::Partial, seal),
            (3, Some(seal @ Seal::Hash(_)), [0, 0]) => (Origin::Old, seal),
            _ => return Err(CopyError::Protocol("a chunk of an unknown kind".to_owned())),
        };
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Ok(Self {
            origin,
            file: word(4),
            chunk: word(8),
            bytes: word(12),
            seal,
        })
    }

    /// Reads the next header; `None` where the lane ends in order.
    pub(crate) fn read(lane: &mut impl Read) -> Result<Option<Self>, CopyError> {
        let mut bytes = [0; FRAME_BYTES];
        let mut filled = 0;
        while filled < FRAME_BYTES {
            match lane.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(CopyError::Cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Cut(error)),
            }
        }
        Self::decode(&bytes).map(Some)
    }
}

pub(crate) fn out_of_turn() -> CopyError {
    CopyError::Protocol("a message out of turn".to_owned())
}

/// Chunks prepared at once.
pub(crate) const SPAN_CHUNKS: u32 = 64;
/// Entries in one message: all of them of the longest kind fit the channel's longest message.
pub(crate) const ENTRIES_PER_MESSAGE: usize = 256;
pub(crate) const FRAME_BYTES: usize = 16 + SEAL_BYTES;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in prop::array::uniform32(any::<u8>()), kind in 0_u8..5, seal in 0_u8..3, short in any::<bool>(), low in any::<[u8; 12]>()) {
            let mut frame = [0; FRAME_BYTES];
            frame[..2].copy_from_slice(&[kind, seal]);
            frame[4..16].copy_from_slice(&low);
            frame[16..].copy_from_slice(&bytes);
            if short {
                frame[32..].fill(0);
            }
            if let Ok(decoded) = Frame::decode(&frame) {
                prop_assert_eq!(decoded.encode(), frame);
            }
        }

        #[test]
        fn any_text_is_a_message_or_an_error(text in ".{0,64}") {
            let _ = serde_json::from_str::<Message>(&text);
            if let Ok(hashes) = Hashes::try_from(text.clone()) {
                prop_assert_eq!(String::from(hashes), text.to_lowercase());
            }
        }
    }

    #[test]
    fn a_lane_that_ends_between_chunks_has_ended_in_order() {
        let frame = Frame {
            origin: Origin::Old,
            file: 1,
            chunk: 2,
            bytes: 3,
            seal: Seal::Hash([4; 32]),
        };
        let bytes = frame.encode();
        assert_eq!(Frame::read(&mut &bytes[..]).unwrap(), Some(frame));
        assert_eq!(Frame::read(&mut &bytes[..0]).unwrap(), None);
        assert!(matches!(
            Frame::read(&mut &bytes[..9]),
            Err(CopyError::Cut(_))
        ));
    }
}
