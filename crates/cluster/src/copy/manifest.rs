//! What is to be copied, told before the first byte of it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::error::CopyError;
use super::partial::is_partial_name;
use super::path::RelPath;

/// A file, folder or symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Begins with the name of the source as it was given.
    pub(crate) path: RelPath,
    pub(crate) kind: Kind,
    /// Permissions; what would lend a user's rights to others (setuid and the like) is left behind.
    pub(crate) mode: u32,
    pub(crate) modified: Modified,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Folder,
    File {
        bytes: u64,
    },
    /// Kept as the text it is, whether it leads anywhere or not.
    Link {
        to: String,
    },
}

/// When something was last written, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Modified {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// Entries that fit together: each path once, each below a folder that comes before it.
#[derive(Debug)]
pub(crate) struct Manifest {
    entries: Vec<Entry>,
    bytes: u64,
}

impl Entry {
    /// Bytes of a file; nothing else has any.
    pub(crate) fn bytes(&self) -> u64 {
        match self.kind {
            Kind::File { bytes } => bytes,
            Kind::Folder | Kind::Link { .. } => 0,
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    /// Number of chunks of a file.
    pub(crate) fn chunks(&self) -> u32 {
        u32::try_from(self.bytes().div_ceil(CHUNK_BYTES as u64)).expect("sizes are bounded")
    }

    /// Length of one of its chunks; only the last may be shorter than the others.
    pub(crate) fn chunk_bytes(&self, chunk: u32) -> usize {
        let left = self.bytes().saturating_sub(offset(chunk));
        usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.path.is_empty() {
            return Err("it has no name");
        }
        if self.path.parts().any(is_partial_name) {
            return Err("its name is one of those that shoal cp gives to unfinished files");
        }
        if self.mode & !MODE_BITS != 0 {
            return Err("its permissions are none");
        }
        if self.modified.nanoseconds >= 1_000_000_000 {
            return Err("its time is none");
        }
        match &self.kind {
            Kind::File { bytes } if *bytes > FILE_BYTES_MAX => {
                Err("it is larger than files can be")
            }
            Kind::Link { to }
                if to.is_empty() || to.len() > LINK_BYTES_MAX || to.contains('\0') =>
            {
                Err("the link leads to no possible path")
            }
            _ => Ok(()),
        }
    }
}

/// Where a chunk begins.
pub(crate) fn offset(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK_BYTES as u64
}

impl Manifest {
    /// Takes entries, whoever they come from.
    pub(crate) fn new(entries: Vec<Entry>) -> Result<Self, CopyError> {
        if entries.len() > ENTRIES_MAX {
            let reason = format!("at most {ENTRIES_MAX} files, folders and links go in one copy");
            return Err(CopyError::path("too much at once", reason));
        }
        let (mut paths, mut folders) = (HashSet::new(), HashSet::new());
        let mut total = 0_u64;
        for entry in &entries {
            let unfit = |reason: &str| Err(CopyError::path(&entry.path, reason));
            if let Err(reason) = entry.check() {
                return unfit(reason);
            }
            if !paths.insert(entry.path.as_str()) {
                return unfit("two sources have this name; copy them one after the other");
            }
            let folder = entry
                .path
                .as_str()
                .rsplit_once('/')
                .map(|(folder, _)| folder);
            if folder.is_some_and(|folder| !folders.contains(folder)) {
                return unfit("the folder it is in was not announced");
            }
            if entry.kind == Kind::Folder {
                folders.insert(entry.path.as_str());
            }
            let Some(sum) = total.checked_add(entry.bytes()) else {
                return unfit("all files together are larger than disks can be");
            };
            total = sum;
        }
        Ok(Self {
            entries,
            bytes: total,
        })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this number, if it is a file.
    pub(crate) fn file(&self, number: u32) -> Option<&Entry> {
        self.entries
            .get(number as usize)
            .filter(|entry| entry.is_file())
    }

    /// Numbers of all files.
    pub(crate) fn files(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.is_file())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many sources were named.
    pub(crate) fn tops(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| !entry.path.as_str().contains('/'))
            .count()
    }
}

/// What is sealed, compared and sent as one. A quarter of a core's own cache on most machines, as it is read there, sealed
/// and sent, and between the two the system has its own copies.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
pub(crate) const ENTRIES_MAX: usize = 1_000_000;
pub(crate) const MODE_BITS: u32 = 0o777;
/// So that a chunk's number fits 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 48;
const LINK_BYTES_MAX: usize = 4095;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: RelPath::parse(path).unwrap(),
            kind,
            mode: 0o644,
            modified: Modified {
                seconds: 0,
                nanoseconds: 0,
            },
        }
    }

    fn file(path: &str, bytes: u64) -> Entry {
        entry(path, Kind::File { bytes })
    }

    #[test]
    fn entries_that_do_not_fit_together_are_refused() {
        let link = |to: &str| entry("l", Kind::Link { to: to.to_owned() });
        let modes = Entry {
            mode: 0o4755,
            ..file("a", 1)
        };
        let refused: &[(&[Entry], &str)] = &[
            (&[file("", 1)], "no name"),
            (&[file("a", 1), file("a", 1)], "this name"),
            (&[file("d/a", 1)], "not announced"),
            (&[link("/etc"), file("l/passwd", 1)], "not announced"),
            (&[file("d", 1), file("d/a", 1)], "not announced"),
            (&[file("a", u64::MAX)], "larger"),
            (&[link("")], "leads to no"),
            (&[link("a\0")], "leads to no"),
            (&[modes], "permissions"),
            (&[file(".a.shoal-part", 1)], "unfinished"),
        ];
        for (entries, reason) in refused {
            let error = Manifest::new(entries.to_vec()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let fitting = vec![entry("d", Kind::Folder), file("d/a", 5), link("../../out")];
        assert_eq!(Manifest::new(fitting).unwrap().bytes(), 5);
    }

    #[test]
    fn the_last_chunk_is_what_is_left() {
        let bytes = 2 * CHUNK_BYTES as u64 + 7;
        let entry = file("a", bytes);
        assert_eq!(entry.chunks(), 3);
        assert_eq!(
            [0, 2, 3].map(|chunk| entry.chunk_bytes(chunk)),
            [CHUNK_BYTES, 7, 0]
        );
        assert_eq!(
            (file("a", 0).chunks(), file("a", FILE_BYTES_MAX).chunks()),
            (0, 1 << 30)
        );
    }
}
