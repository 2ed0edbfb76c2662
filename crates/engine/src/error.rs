//! Why a rank's process ends early.

use std::io;
use std::path::PathBuf;

use shoal_fabric::{FabricError, Rank};
use shoal_kernels::CpuError;
use shoal_model::ModelError;
use shoal_model::gguf::GgufError;
use thiserror::Error;

use crate::bytes::DecodeError;
use crate::status::Loss;

/// Why a rank's process ends early; each message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RankError {
    /// The socket for the front cannot be made.
    #[error("cannot listen for the front at {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another rank 0 listens on the socket.
    #[error("another cell already listens at {}; stop it or choose another path", .0.display())]
    SocketTaken(PathBuf),
    /// The limits leave no room to work.
    #[error("{0}")]
    Limits(String),
    /// The model file cannot be read.
    #[error("reading {}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The threads or the instruction set cannot be had.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The model cannot be loaded or computed.
    #[error("{0}")]
    Model(#[source] ModelError),
    /// The group fell apart.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// Rank 0 told this rank to do what its model cannot.
    #[error(
        "rank 0 sent a step that cannot be computed ({0}); check that every machine runs the same release of shoal"
    )]
    Step(#[from] DecodeError),
    /// A bug: the step loop panicked, and has said where.
    #[error("the step loop panicked")]
    Panicked,
    /// The system gives no more threads.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl From<ModelError> for RankError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Fabric(error) => Self::Fabric(error),
            error => Self::Model(error),
        }
    }
}

impl RankError {
    /// Returns the loss that this error, seen by rank `own`, means for the group.
    pub(crate) fn loss(&self, own: Rank) -> Loss {
        if let Self::Fabric(error) = self
            && let Some(rank) = error.lost_rank()
        {
            let reason = match error {
                FabricError::RankLost { reason, .. } => reason.clone(),
                other => other.to_string(),
            };
            return Loss { rank, reason };
        }
        Loss {
            rank: own,
            reason: self.to_string(),
        }
    }
}
