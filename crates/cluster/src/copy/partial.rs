//! A file on its way: a hidden file beside its place, which takes its name when it is whole.
//!
//! Nothing is written down of which chunks have arrived. The next attempt hashes what is there and offers that, so a
//! partial file that is torn, old or somebody else's costs a few chunks and never a wrong byte.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use cap_fs_ext::{FollowSymlinks, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{FlockOperation, Mode, Timespec, Timestamps};

use super::error::{CopyError, Doing};
use super::manifest::{CHUNK_BYTES, Entry, Modified, offset};
use super::wire::{Hash, Hashes, Origin, Span};

/// A file that is being received.
pub(super) struct Partial {
    folder: Arc<Dir>,
    name: String,
    file: File,
    /// What an earlier attempt has left.
    kept_bytes: u64,
    /// What is to be replaced.
    old: Option<(File, u64)>,
    chunks: Mutex<Chunks>,
}

struct Chunks {
    /// Where each came from, once a lane has taken it on.
    claimed: Vec<Option<(Origin, Hash)>>,
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
        let mut opened = folder.open_with(&partial, &options);
        if opened
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            // One that had its permissions already when it was cut off.
            let _ = folder.remove_file(&partial);
            opened = folder.open_with(&partial, &options);
        }
        let file = opened.doing("opening the partial file of", path)?;
        let busy = || CopyError::path(path, "another copy is writing it; wait for that one to end");
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| busy())?;
        // The copy that held the lock before may have given the file its name, or removed it.
        let (here, there) = (file.metadata(), folder.symlink_metadata(&partial));
        let (here, there) = (here.doing("looking at", path)?, there.map_err(|_| busy())?);
        if (here.dev(), here.ino()) != (there.dev(), there.ino()) {
            return Err(busy());
        }
        if !here.is_file() || here.nlink() != 1 {
            let reason = format!("{partial} is in the way and no partial file; remove it");
            return Err(CopyError::path(path, reason));
        }
        let file = file.into_std();
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

    fn open_old(folder: &Dir, name: &str, entry: &Entry) -> Result<Option<(File, u64)>, CopyError> {
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
        let facts = file.metadata().doing("looking at", &entry.path)?;
        Ok(facts.is_file().then(|| (file.into_std(), facts.len())))
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
            (Origin::Old, Some((_, bytes))) => end <= *bytes,
            (Origin::Old, None) => false,
        }
    }

    /// Takes on a chunk, which nobody may do twice.
    pub(super) fn claim(
        &self,
        entry: &Entry,
        chunk: u32,
        origin: Origin,
        hash: Hash,
    ) -> Result<(), CopyError> {
        let protocol = |reason: &str| Err(CopyError::Protocol(format!("{}: {reason}", entry.path)));
        if !self.has(origin, entry, chunk) {
            return protocol("a chunk that is not there");
        }
        let mut chunks = self.chunks.lock().expect("no panic under this lock");
        match chunks.claimed.get_mut(chunk as usize) {
            Some(claimed @ None) => *claimed = Some((origin, hash)),
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
            (Origin::Old, Some((old, _))) => old,
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
        if let Some((old, bytes)) = &self.old
            && all_old
            && *bytes == entry.bytes()
        {
            dress(old, entry)?;
            self.folder
                .remove_file(partial_name(&self.name))
                .doing("removing the partial file of", path)?;
            return Ok(Outcome::Unchanged);
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        for (chunk, claimed) in (0..).zip(&chunks.claimed) {
            if matches!(claimed, Some((Origin::Old, _))) {
                let bytes = &mut buffer[..entry.chunk_bytes(chunk)];
                self.read(Origin::Old, entry, chunk, bytes)?;
                self.write(entry, chunk, bytes)?;
            }
        }
        self.file.set_len(entry.bytes()).doing("writing", path)?;
        self.file.sync_all().doing("writing", path)?;
        if verify {
            // So that the disk is read, where the system lets go of what it remembers.
            #[cfg(target_os = "linux")]
            let _only_a_wish =
                rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
            for (chunk, claimed) in (0..).zip(&chunks.claimed) {
                let bytes = &mut buffer[..entry.chunk_bytes(chunk)];
                self.read(Origin::Partial, entry, chunk, bytes)?;
                if claimed.is_some_and(|(_, hash)| hash != *blake3::hash(bytes).as_bytes()) {
                    return Err(CopyError::Damaged {
                        path: path.to_string(),
                        chunk,
                    });
                }
            }
        }
        dress(&self.file, entry)?;
        let renamed = self
            .folder
            .rename(partial_name(&self.name), &self.folder, &self.name);
        renamed.doing("naming", path)?;
        Ok(Outcome::Written)
    }
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
