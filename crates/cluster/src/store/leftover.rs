//! What lies in the store and is not a whole model.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    error::{Doing, StoreError},
    workspace::stored,
};

/// What a pull or a loss has left under a name. A pull of the model makes it whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The name the model would be listed under.
    pub name: String,
    /// How it came to be.
    pub kind: LeftoverKind,
    /// The folder.
    pub path: PathBuf,
    /// The size of all that is in it.
    pub bytes: u64,
}

/// How a leftover came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftoverKind {
    /// A pull was interrupted, or goes on at this moment.
    Unfinished,
    /// The model was whole once; its file is missing or has lost its size, or its record cannot be read.
    Damaged,
}

/// Finds the leftovers by name; of two under one name the damaged model.
pub(super) fn leftovers(root: &Path) -> Result<Vec<Leftover>, StoreError> {
    let mut found = BTreeMap::new();
    for (folder, files, kind) in [
        ("partial", "files", LeftoverKind::Unfinished),
        ("models", "", LeftoverKind::Damaged),
    ] {
        for name in folders(&root.join(folder))? {
            let path = root.join(folder).join(&name).join(files);
            let bytes = bytes_in(&path);
            // Folders stay behind where nothing was fetched, and under every name that was ever locked.
            let is_begun = bytes > 0 || kind == LeftoverKind::Damaged;
            if stored(root, &name).is_some() || !is_begun {
                continue;
            }
            let leftover = Leftover {
                bytes,
                name: name.clone(),
                kind,
                path,
            };
            found.insert(name, leftover);
        }
    }
    Ok(found.into_values().collect())
}

/// Returns the names of the folders in `folder`; there are none if it is not there.
pub(super) fn folders(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing("reading", folder)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.doing("reading", folder)?;
        if entry.path().is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// Adds up the files under `folder`. One that is being moved away at this moment counts nothing.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => bytes_in(&entry.path()),
        Ok(facts) => facts.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
