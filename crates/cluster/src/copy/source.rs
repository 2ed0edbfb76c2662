//! The files that are sent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt, OpenOptionsSyncExt};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, MetadataExt, OpenOptions};

use super::error::{CopyError, Doing};
use super::manifest::{ENTRIES_MAX, Entry, Kind, MODE_BITS, Manifest, Modified, offset};
use super::partial::is_partial_name;
use super::path::RelPath;

/// Files, folders and links below the sources that were named, as they are found at the beginning.
pub(super) struct Source {
    pub(super) manifest: Manifest,
    /// What can be sent by nobody: sockets, devices and the like.
    pub(super) left_out: Vec<String>,
    /// The folders that the sources are in, by the number of the source.
    folders: Vec<Dir>,
    /// The number of the source of each entry.
    tops: Vec<u32>,
    /// What the first part of the entries' paths is called in the folder.
    names: Vec<String>,
}

struct Walk {
    entries: Vec<Entry>,
    tops: Vec<u32>,
    left_out: Vec<String>,
}

impl Source {
    /// Finds what is at paths of this machine. A link that is named itself stands for what it leads to; links below are
    /// sent as links.
    pub(super) fn local(paths: &[impl AsRef<Path>]) -> Result<Self, CopyError> {
        let mut found = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let real = path.canonicalize().doing("reading", path.display())?;
            let unnamed = || {
                CopyError::path(
                    path.display(),
                    "a whole disk has no name to be copied under; name the folders in it",
                )
            };
            let (folder, name) = real.parent().zip(real.file_name()).ok_or_else(unnamed)?;
            let dir = Dir::open_ambient_dir(folder, ambient_authority())
                .doing("opening", folder.display())?;
            let shown = match path.file_name() {
                Some(shown) => shown,
                None => name,
            };
            found.push((dir, text(name, path)?, text(shown, path)?));
        }
        Self::walk(found)
    }

    /// Finds what is at paths below `root`, or where these lead below it: links in them are followed, others are not.
    pub(super) fn below(root: &Path, paths: &[RelPath]) -> Result<Self, CopyError> {
        let base =
            Dir::open_ambient_dir(root, ambient_authority()).doing("opening", root.display())?;
        let mut found = Vec::new();
        for path in paths {
            let unnamed = || {
                CopyError::path(
                    path,
                    "name a file or folder below the one that the node serves",
                )
            };
            let (_, shown) = path.split_last().ok_or_else(unnamed)?;
            let real = base.canonicalize(path.as_str()).doing("reading", path)?;
            let real = RelPath::try_from(text(real.as_os_str(), Path::new(""))?);
            let real = real.map_err(|why| CopyError::path(path, why))?;
            let (folder, name) = real.split_last().ok_or_else(unnamed)?;
            let dir = descend(&base, &folder).doing("opening the folder of", path)?;
            found.push((dir, name.to_owned(), shown.to_owned()));
        }
        Self::walk(found)
    }

    fn walk(found: Vec<(Dir, String, String)>) -> Result<Self, CopyError> {
        let mut walk = Walk {
            entries: Vec::new(),
            tops: Vec::new(),
            left_out: Vec::new(),
        };
        let (mut folders, mut names) = (Vec::new(), Vec::new());
        for (top, (folder, name, shown)) in (0..).zip(found) {
            let path = RelPath::try_from(shown).map_err(|why| CopyError::path(&name, why))?;
            walk.add(&folder, &name, path.clone(), top)?;
            // What is named itself is not left out in silence: nothing else might be left to copy.
            if walk.tops.last() != Some(&top) {
                let reason = "is neither file, folder nor link; name what can be copied";
                return Err(CopyError::path(path, reason));
            }
            folders.push(folder);
            names.push(name);
        }
        Ok(Self {
            manifest: Manifest::new(walk.entries)?,
            left_out: walk.left_out,
            folders,
            tops: walk.tops,
            names,
        })
    }

    /// Opens a file, if it is still the one of the manifest.
    pub(super) fn open(&self, number: u32) -> Result<File, CopyError> {
        let entry = self
            .manifest
            .file(number)
            .expect("files are sent by their numbers");
        let top = self.tops[number as usize] as usize;
        let below = entry.path.split_first().1;
        let dir = &self.folders[top];
        let name =
            RelPath::try_from(self.names[top].clone()).expect("it was found under that name");
        let path = name.join(&below);
        let (folder, name) = path.split_last().expect("a file has a name");
        let mut options = OpenOptions::new();
        options.read(true).follow(FollowSymlinks::No).nonblock(true);
        let opened = descend(dir, &folder).and_then(|dir| dir.open_with(name, &options));
        let file = opened.doing("reading", &entry.path)?;
        let facts = file.metadata().doing("reading", &entry.path)?;
        check(entry, facts.is_file(), facts.len(), modified(&facts))?;
        Ok(file.into_std())
    }

    /// Reads a chunk of a file that [`open`](Self::open) gave.
    pub(super) fn read(
        &self,
        file: &File,
        number: u32,
        chunk: u32,
        into: &mut [u8],
    ) -> Result<(), CopyError> {
        let entry = self
            .manifest
            .file(number)
            .expect("files are sent by their numbers");
        match file.read_exact_at(into, offset(chunk)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(CopyError::Changed {
                path: entry.path.to_string(),
            }),
            outcome => outcome.doing("reading", &entry.path),
        }?;
        let facts = file.metadata().map(Metadata::from_just_metadata);
        let facts = facts.doing("reading", &entry.path)?;
        check(entry, true, facts.len(), modified(&facts))
    }
}

impl Walk {
    fn add(&mut self, folder: &Dir, name: &str, path: RelPath, top: u32) -> Result<(), CopyError> {
        if self.entries.len() >= ENTRIES_MAX {
            return Err(CopyError::path(
                &path,
                format!("more than {ENTRIES_MAX} files in one copy; copy its parts one by one"),
            ));
        }
        let facts = folder.symlink_metadata(name).doing("reading", &path)?;
        let kind = if facts.is_dir() {
            Kind::Folder
        } else if facts.is_file() {
            Kind::File { bytes: facts.len() }
        } else if facts.is_symlink() {
            let to = folder
                .read_link_contents(name)
                .doing("reading the link", &path)?;
            Kind::Link {
                to: text(to.as_os_str(), Path::new(path.as_str()))?,
            }
        } else {
            self.left_out.push(path.to_string());
            return Ok(());
        };
        let is_folder = kind == Kind::Folder;
        self.tops.push(top);
        self.entries.push(Entry {
            path: path.clone(),
            kind,
            mode: facts.mode() & MODE_BITS,
            modified: modified(&facts),
        });
        if is_folder {
            let dir = folder.open_dir_nofollow(name).doing("opening", &path)?;
            let mut names = Vec::new();
            for entry in dir.entries().doing("reading", &path)? {
                names.push(text(
                    &entry.doing("reading", &path)?.file_name(),
                    Path::new(path.as_str()),
                )?);
            }
            names.sort_unstable();
            for name in names {
                if is_partial_name(&name) {
                    self.left_out.push(format!("{}/{name}", path.as_str()));
                    continue;
                }
                let below = RelPath::try_from(format!("{}/{name}", path.as_str()));
                self.add(
                    &dir,
                    &name,
                    below.map_err(|why| CopyError::path(&name, why))?,
                    top,
                )?;
            }
        }
        Ok(())
    }
}

fn descend(base: &Dir, path: &RelPath) -> io::Result<Dir> {
    path.parts()
        .try_fold(base.try_clone()?, |dir, part| dir.open_dir_nofollow(part))
}

fn check(entry: &Entry, is_file: bool, bytes: u64, modified: Modified) -> Result<(), CopyError> {
    if is_file && bytes == entry.bytes() && modified == entry.modified {
        return Ok(());
    }
    Err(CopyError::Changed {
        path: entry.path.to_string(),
    })
}

fn modified(facts: &Metadata) -> Modified {
    Modified {
        seconds: facts.mtime(),
        nanoseconds: facts.mtime_nsec() as u32,
    }
}

fn text(name: &std::ffi::OsStr, of: &Path) -> Result<String, CopyError> {
    let text = name.to_str().map(str::to_owned);
    text.ok_or_else(|| CopyError::path(of.join(name).display(), "its name is not UTF-8; rename it"))
}
