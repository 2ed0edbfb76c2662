//! What comes from the environment and the platform: where things are kept, and the hub's variables.

use std::env::VarError;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use shoal_cluster::hostfile::{self, EnvironmentError};
use shoal_cluster::store::{HubConfig, Store};
use shoal_fabric::tcp;

/// Where Shoal keeps models and the sockets of running cells.
pub(crate) struct Home(PathBuf);

impl Home {
    /// `SHOAL_HOME`, or the platform's data directory.
    pub(crate) fn locate() -> Result<Self> {
        if let Some(home) = text("SHOAL_HOME")? {
            return Ok(Self(PathBuf::from(home)));
        }
        let folders = directories::ProjectDirs::from("", "", "shoal")
            .context("no home directory is known; set SHOAL_HOME to a folder for models")?;
        Ok(Self(folders.data_dir().to_owned()))
    }

    pub(crate) fn store(&self) -> Result<Store> {
        Ok(Store::open(self.0.clone())?)
    }

    /// Folder of the store's models.
    pub(crate) fn models(&self) -> PathBuf {
        self.0.join("models")
    }

    /// Folder of running cells: sockets and records.
    pub(crate) fn run_root(&self) -> PathBuf {
        self.0.join("run")
    }
}

/// The hub's settings: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
pub(crate) fn hub() -> HubConfig {
    HubConfig::from_lookup(variable)
}

/// `SHOAL_TRANSPORT`, or whatever two ranks have in common: set for `shoal node` as well, or the other end may not agree.
/// `SHOAL_INTERFACES` are those of this machine that may carry bytes over TCP.
pub(crate) fn transport() -> Result<tcp::Config> {
    let mut config = match text("SHOAL_TRANSPORT")? {
        Some(name) => name.parse().context("reading SHOAL_TRANSPORT")?,
        None => tcp::Config::default(),
    };
    if let Some(list) = text("SHOAL_INTERFACES")? {
        config.interfaces = list.parse().context("reading SHOAL_INTERFACES")?;
    }
    Ok(config)
}

/// What `mlx.launch` says of this process, in words, if it started it: `MLX_RANK` and what belongs to it, or `JACCL_RANK`.
pub(crate) fn launched() -> Result<Option<String>, EnvironmentError> {
    hostfile::launched(variable)
}

/// A variable that other programs read too, and that may hold anything.
fn variable(name: &str) -> Option<String> {
    text(name).ok().flatten()
}

/// A variable of Shoal's own, which is not passed over when it cannot be read.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place where the environment is read"
)]
fn text(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => bail!("{name} is not UTF-8; set it to a text that is"),
    }
}
