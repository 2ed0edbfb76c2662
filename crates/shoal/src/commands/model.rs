//! From what a user calls a model to a file on this machine.

use std::path::PathBuf;

use anyhow::Result;
use shoal_cluster::store::{ModelRef, StoredModel};

use crate::progress::{bytes_bar, megabytes, note};
use crate::settings::{self, Home};

/// A model's file and the name it is served under.
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Finds the model, fetching it first if the store lacks it.
pub(crate) fn resolve(home: &Home, text: &str) -> Result<Resolved> {
    let reference: ModelRef = text.parse()?;
    let stored = match home.store()?.resolve(&reference)? {
        Some(stored) => stored,
        None => fetch(home, &reference)?,
    };
    Ok(Resolved {
        name: stored.name,
        path: stored.path,
    })
}

/// Fetches a model into the store, with a bar, its size and its source.
pub(crate) fn fetch(home: &Home, reference: &ModelRef) -> Result<StoredModel> {
    let store = home.store()?.with_hub(settings::hub());
    let bar = bytes_bar("fetching");
    note(&format!("fetching {reference}"));
    let stored = store.pull(reference, &mut |done_bytes, total_bytes| {
        bar.set_length(total_bytes.unwrap_or(done_bytes));
        bar.set_position(done_bytes);
    });
    bar.finish_and_clear();
    let stored = stored?;
    note(&format!(
        "fetched {} ({}) from {}",
        stored.name,
        megabytes(stored.bytes),
        stored.source
    ));
    Ok(stored)
}
