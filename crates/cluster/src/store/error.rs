//! What can go wrong with the store.

use std::{io, path::PathBuf};

use super::RefError;

/// Why the store could not do what was asked. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text names no model.
    #[error(transparent)]
    Reference(#[from] RefError),
    /// The path given for a model leads to no file.
    #[error("no file {}; give the path of an existing .gguf file", .0.display())]
    NoSuchFile(PathBuf),
    /// Not in the store.
    #[error("`{name}` is not in the store, which holds {}", if stored.is_empty() { "no models yet".to_owned() } else { stored.join(", ") })]
    NotStored {
        /// As asked for.
        name: String,
        /// Names that are there.
        stored: Vec<String>,
    },
    /// The disk is too full.
    #[error(
        "not enough disk space in {}: {needed_bytes} bytes are needed and {free_bytes} are free; free some, \
         or keep models elsewhere (SHOAL_HOME)", folder.display()
    )]
    NoSpace {
        /// Where it was to be written.
        folder: PathBuf,
        /// What is still to be written.
        needed_bytes: u64,
        /// What is there.
        free_bytes: u64,
    },
    /// The system refused to read or write.
    #[error("{doing} {}: {error}", path.display())]
    Io {
        /// The operation, as in "writing".
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// Python could not be started.
    #[error(
        "fetching {source_text} needs Python with pip, but `{python}` does not start ({error}); install Python 3"
    )]
    Python {
        /// What was to be fetched.
        source_text: String,
        /// The program tried.
        python: String,
        /// The system's answer.
        error: io::Error,
    },
    /// pip failed.
    #[error("pip could not fetch {source_text}: {output}; {advice}")]
    Pip {
        /// What was to be fetched.
        source_text: String,
        /// pip's own last words.
        output: String,
        /// What to do.
        advice: String,
    },
    /// The wheel is damaged.
    #[error(
        "the wheel {wheel} is damaged: {problem}; pull again, and tell its publisher if this stays"
    )]
    Wheel {
        /// Its file name.
        wheel: String,
        /// What is wrong.
        problem: String,
    },
    /// The source holds no file that can be meant, or several.
    #[error("{source_text} {problem}{}", if files.is_empty() { String::new() } else { format!("; it holds {}", files.join(", ")) })]
    Choice {
        /// What was to be fetched.
        source_text: String,
        /// What is wrong, and what to do.
        problem: &'static str,
        /// What can be chosen.
        files: Vec<String>,
    },
    /// The bytes that arrived are not those that were promised.
    #[error(
        "{source_text} arrived damaged: sha256 {actual} instead of {expected}; the download was dropped, pull again"
    )]
    Checksum {
        /// What was fetched.
        source_text: String,
        /// The source's, in hexadecimal digits.
        expected: String,
        /// Ours.
        actual: String,
    },
    /// The hub may not be asked.
    #[error(
        "{0} is not in the store and HF_HUB_OFFLINE forbids fetching it; unset HF_HUB_OFFLINE, or use a stored model"
    )]
    Offline(String),
    /// The hub wants to know who asks.
    #[error("the hub does not give out {source_text} ({status}): {advice}")]
    Denied {
        /// What was to be fetched.
        source_text: String,
        /// The HTTP status, 401 or 403.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The hub knows nothing of it.
    #[error("the hub has no {0}; check the names of organisation, repository, revision and file")]
    NotFound(String),
    /// The hub failed, or could not be reached.
    #[error(
        "could not fetch {source_text} from the hub: {reason}; pull again to go on where it stopped"
    )]
    Hub {
        /// What was to be fetched.
        source_text: String,
        /// What happened last.
        reason: String,
    },
    /// Two sources make the same name.
    #[error(
        "the name `{name}` is taken by {other}; remove that one first (shoal models rm {name})"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// What is stored under it.
        other: String,
    },
}

/// Adds to an I/O error what was being done, and on what.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, StoreError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io {
            doing,
            path: path.into(),
            error,
        })
    }
}
