//! The token that the machines of a cell share.

use std::path::{Path, PathBuf};

use shoal_fabric::Key;
use thiserror::Error;

/// The token's file is of no use. Whoever sets up the machines can fix it.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {}: {source}; make one with: openssl rand -hex 32 > FILE", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is empty, which would let anybody in.
    #[error("the token file {} is empty; make one with: openssl rand -hex 32 > FILE", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a token file; white space around the token does not count.
///
/// # Errors
/// [`TokenError`] when there is no token in it.
pub fn read_token(path: &Path) -> Result<Key, TokenError> {
    let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read {
        path: path.to_owned(),
        source,
    })?;
    if text.trim().is_empty() {
        return Err(TokenError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(Key::from_token(&text))
}
