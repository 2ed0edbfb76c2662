//! What the front and a node say to each other: JSON messages inside the authenticated, framed channel of `fabric`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_fabric::{FabricError, Key};

use crate::carrier::Carrier;
use crate::copy::CopyOrder;

/// Front to node.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Order {
    /// Start a rank, in place of the one that may be running.
    Spawn(Spawn),
    /// End the rank that was started over this connection, if it is the one running: the order may arrive late, after a
    /// cut, when the cell has another rank here already.
    End,
    /// Copy files; the connection is the copy's from here on. Only the first order on a connection can be this one.
    Copy(CopyOrder),
    /// To be answered at once; keeps the connection known to be alive, at both ends.
    Ping,
}

/// The order to start a rank. The key of the formation is not in it: both sides derive it from the token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spawn {
    pub(crate) cell: String,
    pub(crate) rank: u16,
    pub(crate) world: u16,
    /// Fresh for each formation; see [`formation_key`].
    pub(crate) nonce_hex: String,
    /// Rank 0 waits here, on the machine that this order comes from.
    pub(crate) rendezvous_port: u16,
    pub(crate) step_timeout_ms: u64,
    pub(crate) join_timeout_ms: u64,
    pub(crate) task: Task,
}

/// What a rank on a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    /// To hold its part of a model.
    Model,
    /// To test its links.
    LinkTest(Carrier),
}

/// Node to front.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Report {
    /// The rank runs.
    Spawned { pid: u32 },
    /// The answer to a ping.
    Pong,
    /// The rank could not be started, or ended.
    Ended { reason: String },
}

/// Returns the secret of one formation of a cell, known to holders of the token only.
pub(crate) fn formation_key(token: &Key, cell: &str, nonce_hex: &str) -> Key {
    token.derive(format!("cell {cell} formation {nonce_hex}").as_bytes())
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain data")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FabricError> {
    serde_json::from_slice(bytes).map_err(|error| FabricError::Protocol {
        rank: None,
        peer: "the other end".to_owned(),
        reason: format!("a message was not understood ({error})"),
    })
}
