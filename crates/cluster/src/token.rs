//! Secrets in files: the token that the machines of a cell share, and the key of its API.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use shoal_fabric::Key;
use thiserror::Error;
use tracing::warn;

/// A secret's file is of no use. Whoever sets up the machines can fix it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read the secret in {}: {source}; make one with: openssl rand -hex 32 > FILE", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is empty, which would let anybody in.
    #[error("the secret file {} is empty; make one with: openssl rand -hex 32 > FILE", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is some other file.
    #[error("{} is longer than {SECRET_BYTES_MAX} bytes, so it is no secret file; make one with: openssl rand -hex 32 > FILE", path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
}

/// Longest secret file.
const SECRET_BYTES_MAX: u64 = 4096;

/// Reads a cell's token.
///
/// # Errors
/// [`SecretError`] when there is no token in the file.
pub fn read_token(path: &Path) -> Result<Key, SecretError> {
    read_secret(path).map(|token| Key::from_token(&token))
}

/// Reads a secret; white space around it does not count. Warns of a file that others may read.
///
/// # Errors
/// [`SecretError`] when there is no secret in the file.
pub fn read_secret(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    warn_if_open(&file, path);
    let mut text = String::new();
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretError::Long {
            path: path.to_owned(),
        });
    }
    let secret = text.trim();
    if secret.is_empty() {
        return Err(SecretError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(secret.to_owned())
}

#[cfg(unix)]
fn warn_if_open(file: &File, path: &Path) {
    use std::os::unix::fs::MetadataExt;

    let open = file
        .metadata()
        .is_ok_and(|it| it.is_file() && it.mode() & 0o077 != 0);
    if open {
        warn!(file = %path.display(), "other users of this machine can read the secret; chmod 600 it");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_file: &File, _path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_file_with_something_in_it_is_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("secret");
            std::fs::write(&path, text).unwrap();
            read_secret(&path)
        };
        assert_eq!(read(" abc\n").unwrap(), "abc");
        assert!(matches!(read(" \n"), Err(SecretError::Empty { .. })));
        assert!(read(&"x".repeat(4096)).is_ok());
        assert!(matches!(
            read(&"x".repeat(4097)),
            Err(SecretError::Long { .. })
        ));
        assert!(matches!(
            read_secret(folder.path()),
            Err(SecretError::Read { .. })
        ));
    }
}
