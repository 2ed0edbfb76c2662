//! The folder that files are received into. No path and no symbolic link leads out of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cap_fs_ext::DirExt;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, Metadata, MetadataExt};
use rustix::fs::{AtFlags, Mode, RawMode};

use super::error::{CopyError, Doing};
use super::manifest::{Entry, Kind, MODE_BITS, Manifest};
use super::partial::{Partial, dress, partial_name, timestamps};
use super::path::RelPath;
use super::wire::Destination;
use crate::durable::sync_folder;

/// Where a copy goes.
pub(super) struct Tree {
    base: Dir,
    base_path: PathBuf,
    to: RelPath,
    /// The source takes the destination's name, rather than going into it.
    renamed: bool,
    last: Mutex<Option<(RelPath, Arc<Dir>)>>,
}

impl Tree {
    /// Opens the folder at `base`, whose own path may lead over links: it is this machine's choice.
    pub(super) fn open(
        base: &Path,
        destination: &Destination,
        manifest: &Manifest,
    ) -> Result<Self, CopyError> {
        let dir =
            Dir::open_ambient_dir(base, ambient_authority()).doing("opening", base.display())?;
        let mut tree = Self {
            base: dir,
            base_path: base.to_owned(),
            to: destination.path.clone(),
            renamed: false,
            last: Mutex::new(None),
        };
        let there = tree.look(&tree.to)?;
        if there.as_ref().is_some_and(Metadata::is_symlink) {
            return Err(is_link(&tree.to, tree.to.as_str()));
        }
        let goes_into = destination.is_folder || manifest.tops() != 1;
        tree.renamed = !goes_into && !there.is_some_and(|it| it.is_dir());
        Ok(tree)
    }

    /// Refuses when what is missing does not fit the disk.
    pub(super) fn check_space(
        &self,
        manifest: &Manifest,
        free_bytes: fn(&Path) -> io::Result<u64>,
    ) -> Result<(), CopyError> {
        let mut needed_bytes = 0_u64;
        for (_, entry) in manifest.files() {
            let place = self.place(entry);
            let Some((folder, name)) = place.split_last() else {
                continue;
            };
            let file = |name: &str| -> Result<Option<Metadata>, CopyError> {
                let path = folder.join(&RelPath::try_from(name.to_owned()).unwrap_or_default());
                Ok(self.look(&path)?.filter(Metadata::is_file))
            };
            // One of the same size is most likely the same. If it is not, the disk itself tells in time.
            if file(name)?.map_or(0, |it| it.len()) != entry.bytes() {
                // A partial file may have holes.
                let there = file(&partial_name(name))?;
                let there = there.map_or(0, |it| it.len().min(it.blocks() * BLOCK_BYTES));
                needed_bytes += entry.bytes().saturating_sub(there);
            }
        }
        let folder = self.deepest()?;
        let free_bytes =
            free_bytes(&folder).doing("looking up the free space of", folder.display())?;
        if free_bytes < needed_bytes {
            return Err(CopyError::NoSpace {
                folder,
                needed_bytes,
                free_bytes,
            });
        }
        Ok(())
    }

    /// Makes all folders. Those of the copy get their permissions when they are filled.
    pub(super) fn make_folders(&self, manifest: &Manifest) -> Result<(), CopyError> {
        self.folder(&self.above(), Some(0o777))?;
        for entry in manifest.entries() {
            if entry.kind == Kind::Folder {
                let folder = self.folder(&self.place(entry), Some(0o700))?;
                self.open_for_writing(&folder, entry)?;
            }
        }
        Ok(())
    }

    /// Lets this user write into a folder that an earlier copy has made for reading only.
    fn open_for_writing(&self, folder: &Dir, entry: &Entry) -> Result<(), CopyError> {
        let facts = folder.dir_metadata().doing("looking at", &entry.path)?;
        if facts.mode() & 0o300 == 0o300 {
            return Ok(());
        }
        let mode = Mode::from_raw_mode((facts.mode() & MODE_BITS | 0o700) as RawMode);
        rustix::fs::chmodat(folder, ".", mode, AtFlags::empty())
            .doing("setting the permissions of", &entry.path)
    }

    /// The folder that everything goes into.
    fn above(&self) -> RelPath {
        match self.to.split_last() {
            Some((above, _)) if self.renamed => above,
            _ => self.to.clone(),
        }
    }

    /// The folder that there is, on the way to where everything goes: what it is mounted from is what is filled.
    fn deepest(&self) -> Result<PathBuf, CopyError> {
        let mut folder = self.above();
        while let Some((above, _)) = folder.split_last()
            && self.look(&folder)?.is_none()
        {
            folder = above;
        }
        Ok(self.base_path.join(folder.as_str()))
    }

    /// Opens the partial file of a file.
    pub(super) fn partial(&self, entry: &Entry) -> Result<Partial, CopyError> {
        let place = self.place(entry);
        let (folder, name) = place.split_last().ok_or_else(|| nameless(entry))?;
        Partial::open(self.folder(&folder, None)?, name, entry)
    }

    /// Makes the links, and sets permissions and times of folders, when all files are there: a folder that may not be
    /// written to is filled before, and a link is never on the way to a file.
    pub(super) fn finish(&self, manifest: &Manifest) -> Result<(), CopyError> {
        for entry in manifest.entries() {
            if let Kind::Link { to } = &entry.kind {
                self.link(entry, to)?;
            }
        }
        // From the inside out: what is done in a folder changes its time.
        for entry in manifest.entries().iter().rev() {
            if entry.kind == Kind::Folder {
                let folder = self.written(&self.place(entry))?;
                match dress(&folder, entry) {
                    // Somebody else's, so it was there before.
                    Err(CopyError::Io { error, .. })
                        if error.kind() == io::ErrorKind::PermissionDenied => {}
                    dressed => dressed?,
                }
            }
        }
        self.written(&self.above()).map(|_written| ())
    }

    /// Has the names in a folder written to the disk, so that a power cut takes none of them back.
    fn written(&self, path: &RelPath) -> Result<File, CopyError> {
        // Walking down opens folders as places only; this opens it as what it is.
        let folder = self.folder(path, None)?;
        let folder = folder.open(".").doing("opening", path)?.into_std();
        sync_folder(&folder).doing("writing the folder", path)?;
        Ok(folder)
    }

    fn link(&self, entry: &Entry, to: &str) -> Result<(), CopyError> {
        let place = self.place(entry);
        let (folder, name) = place.split_last().ok_or_else(|| nameless(entry))?;
        let folder = self.folder(&folder, None)?;
        let there = folder.read_link_contents(name);
        if !there.is_ok_and(|there| there == Path::new(to)) {
            let temporary = partial_name(name);
            // A cut may have left one.
            let _ = folder.remove_file(&temporary);
            folder
                .symlink_contents(to, &temporary)
                .doing("linking", &entry.path)?;
            folder
                .rename(&temporary, &folder, name)
                .doing("naming the link", &entry.path)?;
        }
        let times = timestamps(entry.modified);
        rustix::fs::utimensat(&*folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .doing("setting the time of", &entry.path)
    }

    /// Where an entry goes, below the base.
    fn place(&self, entry: &Entry) -> RelPath {
        if self.renamed {
            self.to.join(&entry.path.split_first().1)
        } else {
            self.to.join(&entry.path)
        }
    }

    fn look(&self, path: &RelPath) -> Result<Option<Metadata>, CopyError> {
        let Some((folder, name)) = path.split_last() else {
            return self.base.dir_metadata().map(Some).doing("looking at", path);
        };
        let mut dir = self.base.try_clone().doing("opening", path)?;
        for part in folder.parts() {
            match dir.open_dir_nofollow(part) {
                Ok(below) => dir = below,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(in_the_way(&dir, part, path, error)),
            }
        }
        match dir.symlink_metadata(name) {
            Ok(facts) => Ok(Some(facts)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing("looking at", path),
        }
    }

    /// Opens a folder step by step, so that a link that takes a folder's place leads nowhere. Those that are missing are
    /// made, with the permissions of `make`.
    fn folder(&self, path: &RelPath, make: Option<u32>) -> Result<Arc<Dir>, CopyError> {
        let mut last = self.last.lock().expect("no panic under this lock");
        if let Some((known, dir)) = &*last
            && known == path
        {
            return Ok(Arc::clone(dir));
        }
        let mut dir = self.base.try_clone().doing("opening", path)?;
        for part in path.parts() {
            if let Some(mode) = make {
                let made = dir.create_dir_with(part, DirBuilder::new().mode(mode));
                match made {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error).doing("making the folder", path);
                    }
                    _ => {}
                }
            }
            dir = dir
                .open_dir_nofollow(part)
                .map_err(|error| in_the_way(&dir, part, path, error))?;
        }
        let dir = Arc::new(dir);
        *last = Some((path.clone(), Arc::clone(&dir)));
        Ok(dir)
    }
}

fn in_the_way(dir: &Dir, part: &str, path: &RelPath, error: io::Error) -> CopyError {
    match dir.symlink_metadata(part) {
        Ok(facts) if facts.is_symlink() => is_link(path, part),
        Ok(facts) if !facts.is_dir() => CopyError::path(
            path,
            format!("{part} is in the way and no folder; remove it, or copy elsewhere"),
        ),
        _ => CopyError::Io {
            doing: "opening the folder",
            path: path.to_string(),
            error,
        },
    }
}

fn is_link(path: &RelPath, part: &str) -> CopyError {
    let reason = format!(
        "{part} is a symbolic link at the destination, which shoal cp does not follow; name what it leads to"
    );
    CopyError::path(path, reason)
}

fn nameless(entry: &Entry) -> CopyError {
    CopyError::path(
        &entry.path,
        "cannot replace the folder that the node serves; name a path below it",
    )
}

/// The unit of a file's blocks, whatever the file system's.
const BLOCK_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::manifest::Modified;

    #[test]
    fn only_what_is_missing_has_to_fit_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("same"), [0; 50]).unwrap();
        std::fs::write(folder.path().join("other"), [0; 49]).unwrap();
        std::fs::write(folder.path().join(partial_name("begun")), [0; 30]).unwrap();
        let file = |name: &str| Entry {
            path: RelPath::parse(name).unwrap(),
            kind: Kind::File { bytes: 50 },
            mode: 0o644,
            modified: Modified {
                seconds: 0,
                nanoseconds: 0,
            },
        };
        let entries = ["same", "other", "begun", "new"].map(file);
        let manifest = Manifest::new(entries.to_vec()).unwrap();
        let destination = Destination {
            path: RelPath::default(),
            is_folder: false,
            verify: false,
        };
        let tree = Tree::open(folder.path(), &destination, &manifest).unwrap();
        assert!(tree.check_space(&manifest, |_| Ok(120)).is_ok());
        let refused = tree.check_space(&manifest, |_| Ok(119)).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("120 bytes are needed and 119 are free"),
            "{refused}"
        );
    }
}
