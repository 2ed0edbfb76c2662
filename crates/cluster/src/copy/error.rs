//! What can go wrong with a copy.

use std::io;
use std::path::PathBuf;

use shoal_fabric::FabricError;
use thiserror::Error;

/// Why a copy stopped. Each message is one line and says what to do; what has arrived is kept for the next attempt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The system refused to read or write.
    #[error("{doing} {path}: {error}")]
    Io {
        /// The operation, as in "writing".
        doing: &'static str,
        /// On what.
        path: String,
        /// The system's answer.
        error: io::Error,
    },
    /// A path that cannot be copied from or to.
    #[error("{path}: {reason}")]
    Path {
        /// As given.
        path: String,
        /// Why not, and what would work.
        reason: String,
    },
    /// The disk is too full.
    #[error(
        "not enough disk space in {}: {needed_bytes} bytes are needed and {free_bytes} are free; free some, \
         or copy to another folder", folder.display()
    )]
    NoSpace {
        /// Where it was to be written.
        folder: PathBuf,
        /// What is still to be written.
        needed_bytes: u64,
        /// What is there.
        free_bytes: u64,
    },
    /// A file of the source is not as it was at the beginning.
    #[error("{path} changed while it was copied; copy again once nothing writes to it")]
    Changed {
        /// The file.
        path: String,
    },
    /// What arrived or was written is not what was sent.
    #[error(
        "{path}: chunk {chunk} is not as it was sent; copy again, and check that machine's disk and memory"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Which of its chunks.
        chunk: u32,
    },
    /// The other end does not follow the protocol.
    #[error(
        "the other end broke the copy's protocol: {0}; check that every machine runs the same release of shoal"
    )]
    Protocol(String),
    /// A data connection ended early. The control connection usually knows more.
    #[error("a data connection was cut ({0}); the same command goes on from there")]
    Cut(io::Error),
    /// The node says why it cannot go on.
    #[error("node {node}: {reason}")]
    Node {
        /// Its address as given.
        node: String,
        /// In its words.
        reason: String,
    },
    /// The connection to a node failed. The fabric's message names it.
    #[error("{0}; the same command goes on from there")]
    Connection(FabricError),
}

impl From<FabricError> for CopyError {
    fn from(error: FabricError) -> Self {
        Self::Connection(error)
    }
}

impl CopyError {
    pub(super) fn path(path: impl ToString, reason: impl ToString) -> Self {
        Self::Path {
            path: path.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// Says what was tried when the system refused.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: impl ToString) -> Result<T, CopyError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: impl ToString) -> Result<T, CopyError> {
        self.map_err(|error| CopyError::Io {
            doing,
            path: path.to_string(),
            error: error.into(),
        })
    }
}
