//! A file on its way: a hidden file beside its place, which takes its name when it is whole.
//!
//! Nothing is written down of which chunks have arrived. The next attempt hashes what is there and offers that, so a
//! partial file that is torn, old or somebody else's costs a few chunks and never a wrong byte.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::sync::{Arc, Mutex};

use cap_fs_ext::{FollowSymlinks, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{FlockOperation, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::{CopyError, Doing};
use super::manifest::{CHUNK_BYTES, Entry, MODE_BITS, Modified, offset};
use super::path::RelPath;
use super::seal::Seal;
use super::wire::{Hashes, Origin, Span};
use crate::durable::sync_file;

/// A file that is being received.
pub(super) struct Partial {
    folder: Arc<Dir>,
    name: String,
    file: File,
    /// What an earlier attempt has left.
    kept_bytes: u64,
    /// What is to be replaced.
    old: Option<Old>,
    chunks: Mutex<Chunks>,
}

/// A file as it was when it was opened.
struct Old {
    file: File,
    facts: std::fs::Metadata,
}

struct Chunks {
    /// Where each came from, once a lane has taken it on.
    claimed: Vec<Option<(Origin, Seal)>>,
    missing: usize,
}

/// What has become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    Unchanged,
}

impl Partial {
    /// Opens, or begins, the partial file of `entry`, which will be called `name`.
    pub(super) fn open(folder: Arc<Dir>, name: &str, entry: &Entry) -> Result<Self, CopyError> {
        let path = &entry.path;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options.follow(FollowSymlinks::No).nonblock(true);
        let partial = partial_name(name);
        let opened = folder.open_with(&partial, &options);
        let file = opened.doing("opening the partial file of", path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // File systems without locks; what `is_at` sees is all there is.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {}
            Err(Errno::WOULDBLOCK) => return Err(busy(path)),
            Err(error) => return Err(error).doing("locking the partial file of", path),
        }
        let file = file.into_std();
        // The copy that held the lock before may have given the file its name, or removed it.
        if !is_at(&file, &folder, &partial) {
            return Err(busy(path));
        }
        let here = file.metadata().doing("looking at", path)?;
        if !here.is_file() || here.nlink() != 1 {
            let reason = format!("{partial} is in the way and no partial file; remove it");
            return Err(CopyError::path(path, reason));
        }
        let kept_bytes = here.len().min(entry.bytes());
        file.set_len(kept_bytes).doing("shortening", path)?;
        let old = Self::open_old(&folder, name, entry)?;
        Ok(Self {
            folder,
            name: name.to_owned(),
            file,
            kept_bytes,
            old,
            chunks: Mutex::new(Chunks {
                claimed: vec![None; entry.chunks() as usize],
                missing: entry.chunks() as usize,
            }),
        })
    }

    fn open_old(folder: &Dir, name: &str, entry: &Entry) -> Result<Option<Old>, CopyError> {
        match folder.symlink_metadata(name) {
            Ok(facts) if facts.is_file() => {}
            Ok(facts) if facts.is_dir() => {
                return Err(CopyError::path(
                    &entry.path,
                    "a folder of this name is in the way; remove it, or copy elsewhere",
                ));
            }
            // Links and the like are replaced, not opened.
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("looking at", &entry.path),
        }
        let mut options = OpenOptions::new();
        options.read(true).follow(FollowSymlinks::No).nonblock(true);
        // One that cannot be read is replaced as if it were not there.
        let Ok(file) = folder.open_with(name, &options) else {
            return Ok(None);
        };
        let file = file.into_std();
        let facts = file.metadata().doing("looking at", &entry.path)?;
        Ok(facts.is_file().then_some(Old { file, facts }))
    }

    /// Hashes what is there of `span`.
    pub(super) fn offer(&self, entry: &Entry, span: Span) -> Result<[Hashes; 2], CopyError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut hashes = |origin| -> Result<Hashes, CopyError> {
            let mut hashes = Hashes::default();
            for chunk in span.first..span.first + span.count {
                if !self.has(origin, entry, chunk) {
                    break;
                }
                let bytes = &mut buffer[..entry.chunk_bytes(chunk)];
                self.read(origin, entry, chunk, bytes)?;
                hashes.0.push(*blake3::hash(bytes).as_bytes());
            }
            Ok(hashes)
        };
        Ok([hashes(Origin::Partial)?, hashes(Origin::Old)?])
    }

    fn has(&self, origin: Origin, entry: &Entry, chunk: u32) -> bool {
        let end = offset(chunk) + entry.chunk_bytes(chunk) as u64;
        match (origin, &self.old) {
            (Origin::Sent, _) => true,
            (Origin::Partial, _) => end <= self.kept_bytes,
            (Origin::Old, Some(old)) => end <= old.facts.len(),
            (Origin::Old, None) => false,
        }
    }

    /// Takes on a chunk, which nobody may do twice.
    pub(super) fn claim(
        &self,
        entry: &Entry,
        chunk: u32,
        origin: Origin,
        seal: Seal,
    ) -> Result<(), CopyError> {
        let protocol = |reason: &str| Err(CopyError::Protocol(format!("{}: {reason}", entry.path)));
        if !self.has(origin, entry, chunk) {
            return protocol("a chunk that is not there");
        }
        let mut chunks = self.chunks.lock().expect("no panic under this lock");
        match chunks.claimed.get_mut(chunk as usize) {
            Some(claimed @ None) => *claimed = Some((origin, seal)),
            _ => return protocol("a chunk that was not expected"),
        }
        Ok(())
    }

    /// Reads a chunk from where it is.
    pub(super) fn read(
        &self,
        origin: Origin,
        entry: &Entry,
        chunk: u32,
        into: &mut [u8],
    ) -> Result<(), CopyError> {
        let file = match (origin, &self.old) {
            (Origin::Old, Some(old)) => &old.file,
            _ => &self.file,
        };
        file.read_exact_at(into, offset(chunk))
            .doing("reading", &entry.path)
    }

    pub(super) fn write(&self, entry: &Entry, chunk: u32, bytes: &[u8]) -> Result<(), CopyError> {
        self.file
            .write_all_at(bytes, offset(chunk))
            .doing("writing", &entry.path)
    }

    /// A claimed chunk is in its place. Says whether it was the last.
    pub(super) fn complete(&self) -> bool {
        let mut chunks = self.chunks.lock().expect("no panic under this lock");
        chunks.missing -= 1;
        chunks.missing == 0
    }

    /// Gives the whole file its name, permissions and time.
    pub(super) fn finish(&self, entry: &Entry, verify: bool) -> Result<Outcome, CopyError> {
        let path = &entry.path;
        let chunks = self.chunks.lock().expect("no panic under this lock");
        let all_old = chunks
            .claimed
            .iter()
            .all(|it| matches!(it, Some((Origin::Old, _))));
        let partial = partial_name(&self.name);
        if let Some(old) = &self.old
            && all_old
            && old.facts.len() == entry.bytes()
            && old.is_as_it_was()
            // Somebody else's can have its permissions set by nobody here; then it is replaced.
            && (old.is_dressed(entry) || dress(&old.file, entry).is_ok())
        {
            self.check_place(entry)?;
            let removed = self.folder.remove_file(partial);
            removed.doing("removing the partial file of", path)?;
            return Ok(Outcome::Unchanged);
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        for (chunk, claimed) in (0..).zip(&chunks.claimed) {
            if let Some((Origin::Old, seal)) = claimed {
                let bytes = &mut buffer[..entry.chunk_bytes(chunk)];
                self.read(Origin::Old, entry, chunk, bytes)?;
                // It was looked at long ago.
                if !seal.fits(bytes) {
                    let reason = "what it replaces was written to meanwhile; copy again";
                    return Err(CopyError::path(path, reason));
                }
                self.write(entry, chunk, bytes)?;
            }
        }
        self.file.set_len(entry.bytes()).doing("writing", path)?;
        sync_file(&self.file).doing("writing", path)?;
        if verify {
            // So that the disk is read, where the system lets go of what it remembers.
            #[cfg(target_os = "linux")]
            let _only_a_wish =
                rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
            for (chunk, claimed) in (0..).zip(&chunks.claimed) {
                let bytes = &mut buffer[..entry.chunk_bytes(chunk)];
                self.read(Origin::Partial, entry, chunk, bytes)?;
                if claimed.is_some_and(|(_, seal)| !seal.fits(bytes)) {
                    return Err(CopyError::Damaged {
                        path: path.to_string(),
                        chunk,
                    });
                }
            }
        }
        self.check_place(entry)?;
        let renamed = self.folder.rename(partial, &self.folder, &self.name);
        renamed.doing("naming", path)?;
        // Not before: a partial file that may not be written to could not be opened again after a cut.
        dress(&self.file, entry)?;
        Ok(Outcome::Written)
    }

    /// Refuses when the partial file's name is another file's by now.
    fn check_place(&self, entry: &Entry) -> Result<(), CopyError> {
        match is_at(&self.file, &self.folder, &partial_name(&self.name)) {
            true => Ok(()),
            false => Err(busy(&entry.path)),
        }
    }
}

impl Old {
    fn is_as_it_was(&self) -> bool {
        let facts = self.file.metadata();
        facts.is_ok_and(|it| {
            (it.len(), it.mtime(), it.mtime_nsec())
                == (
                    self.facts.len(),
                    self.facts.mtime(),
                    self.facts.mtime_nsec(),
                )
        })
    }

    fn is_dressed(&self, entry: &Entry) -> bool {
        let Modified {
            seconds,
            nanoseconds,
        } = entry.modified;
        self.facts.mode() & MODE_BITS == entry.mode
            && (self.facts.mtime(), self.facts.mtime_nsec()) == (seconds, nanoseconds.into())
    }
}

/// Says whether `name` in `folder` is this very file.
fn is_at(file: &File, folder: &Dir, name: &str) -> bool {
    let (here, there) = (file.metadata(), folder.symlink_metadata(name));
    here.is_ok_and(|here| {
        there.is_ok_and(|there| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    })
}

fn busy(path: &RelPath) -> CopyError {
    CopyError::path(path, "another copy is writing it; wait for that one to end")
}

/// Sets permissions and time.
pub(super) fn dress(file: impl std::os::fd::AsFd, entry: &Entry) -> Result<(), CopyError> {
    let mode = Mode::from_raw_mode(entry.mode as rustix::fs::RawMode);
    rustix::fs::fchmod(&file, mode).doing("setting the permissions of", &entry.path)?;
    rustix::fs::futimens(&file, &timestamps(entry.modified))
        .doing("setting the time of", &entry.path)
}

pub(super) fn timestamps(modified: Modified) -> Timestamps {
    let time = Timespec {
        tv_sec: modified.seconds as _,
        tv_nsec: modified.nanoseconds as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The name of a file until it is whole.
pub(super) fn partial_name(name: &str) -> String {
    let partial = format!(".{name}{SUFFIX}");
    if partial.len() <= NAME_BYTES_MAX {
        return partial;
    }
    format!(".{}{SUFFIX}", blake3::hash(name.as_bytes()).to_hex())
}

/// Says whether a name could be one of [`partial_name`].
pub(super) fn is_partial_name(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SUFFIX)
}

const SUFFIX: &str = ".shoal-part";
const NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_names_fit_whatever_the_name() {
        for name in ["a", &"x".repeat(255)] {
            let partial = partial_name(name);
            assert!(
                is_partial_name(&partial) && partial.len() <= NAME_BYTES_MAX,
                "{partial}"
            );
        }
    }
}
