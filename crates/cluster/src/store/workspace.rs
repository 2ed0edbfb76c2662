//! Where a model is put together before it is in the store, and how it gets there.
//!
//! ```text
//! models/NAME/model.gguf      a whole model; the folder appears by one rename
//! models/NAME/manifest.json   what it is and where it came from
//! partial/NAME/lock           held by whoever pulls or removes NAME
//! partial/NAME/files/         what a pull has so far; the next pull of NAME goes on from it
//! ```

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    StoredModel,
    error::{Doing, StoreError},
    part::Finished,
};
use crate::durable::{sync_file, sync_folder};

const MODEL: &str = "model.gguf";
const MANIFEST: &str = "manifest.json";
/// Unfinished files that nobody went on with for so long are dropped.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is known of a stored model.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The reference it was pulled by, in canonical form.
    pub(super) reference: String,
    /// The exact file it came from.
    pub(super) source: String,
    /// The hub's commit.
    pub(super) revision: Option<String>,
    /// In hexadecimal digits.
    pub(super) sha256: String,
    pub(super) bytes: u64,
    pub(super) pulled_at_unix_seconds: u64,
}

impl Manifest {
    /// Describes `finished`, pulled now.
    pub(super) fn new(
        reference: String,
        source: String,
        revision: Option<String>,
        finished: &Finished,
    ) -> Self {
        // A clock before 1970 gives a wrong date and no other harm.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            reference,
            source,
            revision,
            sha256: hex::encode(finished.sha256),
            bytes: finished.bytes,
            pulled_at_unix_seconds: now.unwrap_or_default().as_secs(),
        }
    }
}

/// Returns the model stored under `name`, with its manifest, if it is there and whole.
pub(super) fn stored(root: &Path, name: &str) -> Option<(StoredModel, Manifest)> {
    let folder = root.join("models").join(name);
    let text = fs::read(folder.join(MANIFEST)).ok()?;
    let path = folder.join(MODEL);
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            tracing::warn!(name, %error, "unreadable manifest, the model counts as not stored");
            return None;
        }
    };
    if fs::metadata(&path).map(|facts| facts.len()).ok() != Some(manifest.bytes) {
        tracing::warn!(
            name,
            "the file has lost its size, the model counts as not stored"
        );
        return None;
    }
    let model = StoredModel {
        name: name.to_owned(),
        path,
        bytes: manifest.bytes,
        source: manifest.source.clone(),
        sha256: Some(manifest.sha256.clone()),
        pulled_at: Some(UNIX_EPOCH + Duration::from_secs(manifest.pulled_at_unix_seconds)),
    };
    Some((model, manifest))
}

/// The sole right to change what is stored under one name, as long as it lives.
pub(super) struct Workspace {
    root: PathBuf,
    name: String,
    files: PathBuf,
    _lock: File,
}

impl Workspace {
    /// Takes the right, waiting for whoever has it. A holder that is killed loses it.
    pub(super) fn lock(root: &Path, name: &str) -> Result<Self, StoreError> {
        let folder = root.join("partial").join(name);
        let files = folder.join("files");
        fs::create_dir_all(&folder).doing("making", &folder)?;
        let path = folder.join("lock");
        let lock = File::create(&path).doing("opening", &path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            tracing::info!(name, "waiting for another pull of this model");
        }
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(io::Error::from)
            .doing("locking", &path)?;
        fs::create_dir_all(&files).doing("making", &files)?;
        Ok(Self {
            root: root.to_owned(),
            name: name.to_owned(),
            files,
            _lock: lock,
        })
    }

    /// The folder of unfinished files; what is in it outlives a killed pull.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    /// Puts a whole file into the store, in place of a damaged model of this name.
    pub(super) fn publish(
        self,
        finished: &Finished,
        manifest: &Manifest,
    ) -> Result<StoredModel, StoreError> {
        let ready = self.files.join("ready");
        remove_folder(&ready)?;
        fs::create_dir(&ready).doing("making", &ready)?;
        let manifest_path = ready.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest).expect("a manifest is plain values");
        fs::write(&manifest_path, text).doing("writing", &manifest_path)?;
        sync(&manifest_path, sync_file)?;
        fs::rename(&finished.path, ready.join(MODEL)).doing("moving", &finished.path)?;
        sync(&ready, sync_folder)?;

        self.withdraw()?;
        let models = self.root.join("models");
        fs::create_dir_all(&models).doing("making", &models)?;
        let folder = models.join(&self.name);
        fs::rename(&ready, &folder).doing("moving a model to", &folder)?;
        sync(&models, sync_folder)?;
        self.clear()?;
        let (model, _) = stored(&self.root, &self.name).ok_or_else(|| StoreError::Io {
            doing: "finding what was just stored in",
            path: folder,
            error: ErrorKind::NotFound.into(),
        })?;
        Ok(model)
    }

    /// Removes the model of this name and what a pull of it has left.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        self.withdraw()?;
        self.clear()
    }

    /// Drops all unfinished files.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        remove_folder(&self.files)?;
        fs::create_dir(&self.files).doing("making", &self.files)
    }

    /// Takes the model out of the store by one rename, so that no half-removed model is ever listed.
    fn withdraw(&self) -> Result<(), StoreError> {
        let folder = self.root.join("models").join(&self.name);
        let withdrawn = self.files.join("withdrawn");
        remove_folder(&withdrawn)?;
        match fs::rename(&folder, &withdrawn) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            renamed => renamed.doing("removing", &folder),
        }
    }
}

/// Drops what pulls left long before `now`. It is no pull's business to fail when that fails.
pub(super) fn sweep(root: &Path, now: SystemTime) {
    let entries = fs::read_dir(root.join("partial")).into_iter().flatten();
    for folder in entries.flatten().map(|entry| entry.path()) {
        let files = folder.join("files");
        let changes = fs::read_dir(&files).into_iter().flatten().flatten();
        let times = changes.filter_map(|entry| entry.metadata().ok()?.modified().ok());
        let idle = times
            .max()
            .and_then(|latest| now.duration_since(latest).ok());
        if idle.is_none_or(|idle| idle < STALE) {
            continue;
        }
        let Ok(lock) = File::open(folder.join("lock")) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let removed = remove_folder(&files);
            tracing::info!(folder = %files.display(), ok = removed.is_ok(), "dropped a stale download");
        }
    }
}

/// Removes a folder and all in it, if it is there.
pub(super) fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.doing("removing", folder),
    }
}

/// Brings a file, or the entries of a folder, to the disk by `sync`.
fn sync(path: &Path, sync: fn(&File) -> io::Result<()>) -> Result<(), StoreError> {
    let file = File::open(path).doing("opening", path)?;
    sync(&file).doing("writing", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_files_are_dropped_when_nobody_holds_them() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::lock(folder.path(), "m").unwrap();
        let part = workspace.files().join("part");
        fs::write(&part, b"GG").unwrap();
        let now = SystemTime::now();
        let much_later = now + STALE + Duration::from_secs(60);

        sweep(folder.path(), much_later);
        assert!(part.exists(), "it is held");
        drop(workspace);
        sweep(folder.path(), now);
        assert!(part.exists(), "it is new");
        sweep(folder.path(), much_later);
        assert!(!part.exists());
        assert!(
            Workspace::lock(folder.path(), "m")
                .unwrap()
                .files()
                .is_dir()
        );
    }
}
