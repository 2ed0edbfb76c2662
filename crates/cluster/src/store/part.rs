//! A file on its way into the store, and the space for it.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::error::{Doing, StoreError};
use crate::durable::sync_file;

/// A file that grows at its end, with the checksum of all that is in it.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Part {
    /// Opens the file at `path` to go on at its end; it begins empty if it is not there.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true);
        let file = options.open(&path).doing("opening", &path)?;
        let mut part = Self {
            path,
            file,
            hash: Sha256::new(),
            bytes: 0,
        };
        let mut reader = BufReader::with_capacity(1 << 20, &part.file);
        part.bytes =
            io::copy(&mut reader, &mut HashWriter(&mut part.hash)).doing("reading", &part.path)?;
        Ok(part)
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Drops what is in the file.
    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).doing("emptying", &self.path)?;
        self.hash = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Writes at the end.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).doing("writing", &self.path)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Brings everything to the disk.
    pub(super) fn finish(self) -> Result<Finished, StoreError> {
        sync_file(&self.file).doing("writing", &self.path)?;
        Ok(Finished {
            path: self.path,
            bytes: self.bytes,
            sha256: self.hash.finalize().into(),
        })
    }
}

/// A whole file.
pub(super) struct Finished {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
}

/// Where free space is looked up.
#[derive(Clone, Copy)]
pub(super) struct Space(pub(super) fn(&Path) -> io::Result<u64>);

impl Space {
    /// Refuses when `folder`'s file system has fewer than `needed_bytes` free.
    pub(super) fn require(self, folder: &Path, needed_bytes: u64) -> Result<(), StoreError> {
        let free_bytes = (self.0)(folder).doing("looking up the free space of", folder)?;
        if free_bytes < needed_bytes {
            let folder = folder.to_owned();
            return Err(StoreError::NoSpace {
                folder,
                needed_bytes,
                free_bytes,
            });
        }
        Ok(())
    }
}

/// Returns the bytes that an ordinary user may still write to the file system of `folder`.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(folder)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Copies until `reader` ends.
pub(super) fn copy(reader: &mut impl Read, part: &mut Part) -> Result<(), CopyError> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => part.append(&buffer[..n]).map_err(CopyError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Read(error)),
        }
    }
}

/// Which end of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(StoreError),
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_part_goes_on_with_the_same_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let mut part = Part::open(path.clone()).unwrap();
        part.append(b"one ").unwrap();
        drop(part);

        let mut part = Part::open(path.clone()).unwrap();
        assert_eq!(part.bytes(), 4);
        part.append(b"two").unwrap();
        let finished = part.finish().unwrap();
        assert_eq!(
            finished.sha256,
            <[u8; 32]>::from(Sha256::digest(b"one two"))
        );
        assert_eq!(
            (std::fs::read(&path).unwrap(), finished.bytes),
            (b"one two".to_vec(), 7)
        );

        let mut part = Part::open(path.clone()).unwrap();
        part.restart().unwrap();
        part.append(b"three").unwrap();
        let finished = part.finish().unwrap();
        assert_eq!(finished.sha256, <[u8; 32]>::from(Sha256::digest(b"three")));
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
    }

    #[test]
    fn space_names_both_figures_and_the_folder() {
        let error = Space(|_| Ok(10))
            .require(Path::new("models"), 11)
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("models: 11 bytes are needed and 10 are free"),
            "{message}"
        );
        assert!(Space(|_| Ok(11)).require(Path::new("models"), 11).is_ok());
    }

    #[test]
    fn a_real_folder_has_some_space() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
    }
}
