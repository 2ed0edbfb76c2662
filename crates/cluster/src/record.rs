//! What a running cell leaves on disk, so that a restarted front finds it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use shoal_engine::client::Place;

use crate::cell::CellConfig;
use crate::found::any_lives;

/// One running cell as written to `<run root>/<id>/cell.json`; it names the token's file, never the token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CellRecord {
    /// Random name of the cell.
    pub(crate) id: String,
    /// How it was started.
    pub(crate) config: CellConfig,
    /// Where each rank runs, in rank order.
    pub(crate) ranks: Vec<RankRecord>,
}

/// Where one rank of a recorded cell runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RankRecord {
    machine: String,
    /// Its process, if it is on this machine.
    pid: Option<u32>,
}

impl RankRecord {
    pub(crate) fn local(pid: u32) -> Self {
        Self {
            machine: "this machine".to_owned(),
            pid: Some(pid),
        }
    }

    pub(crate) fn remote(machine: &str) -> Self {
        Self {
            machine: machine.to_owned(),
            pid: None,
        }
    }
}

impl CellRecord {
    /// Removes the records of cells whose local ranks have all ended.
    pub(crate) fn sweep(run_root: &Path) {
        for record in Self::all(run_root) {
            if !any_lives(&record.id, &record.pids()) {
                Self::remove(run_root, &record.id);
            }
        }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.ranks.iter().filter_map(|rank| rank.pid).collect()
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let places = self.ranks.iter().map(|rank| Place {
            machine: rank.machine.clone(),
            pid: rank.pid,
        });
        places.collect()
    }

    pub(crate) fn folder(run_root: &Path, id: &str) -> PathBuf {
        run_root.join(id)
    }

    pub(crate) fn socket(run_root: &Path, id: &str) -> PathBuf {
        Self::folder(run_root, id).join("rank0.sock")
    }

    /// Makes the cell's folder, readable by its owner alone: whoever reaches the socket in it commands the cell.
    pub(crate) fn make_folder(run_root: &Path, id: &str) -> std::io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(Self::folder(run_root, id))
    }

    pub(crate) fn write(&self, run_root: &Path) -> std::io::Result<()> {
        let folder = Self::folder(run_root, &self.id);
        let partial = folder.join("cell.json.partial");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self).expect("a record is plain data"))?;
        fs::rename(partial, folder.join("cell.json"))
    }

    pub(crate) fn remove(run_root: &Path, id: &str) {
        let _ = fs::remove_dir_all(Self::folder(run_root, id));
    }

    /// Lists the recorded cells, the youngest first. Unreadable records are passed over: they name nothing to attach to.
    pub(crate) fn all(run_root: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(run_root) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let path = entry.path().join("cell.json");
                let written = fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
                let record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
                Some((written, record))
            })
            .collect();
        found.sort_by_key(|(written, _)| std::cmp::Reverse(*written));
        found.into_iter().map(|(_, record)| record).collect()
    }
}
