//! The model store, offline: pip is a script the test wrote, the hub a small server in the test.
#![forbid(unsafe_code)]

mod fake_hub;
mod fake_pip;
mod hub;
mod local;
mod pypi;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use shoal_cluster::store::{ModelRef, Store, StoreError, StoredModel};

/// Bytes that do not compress and differ from seed to seed, with a model file's magic before them.
fn model_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = b"GGUF".to_vec();
    bytes.resize_with(len, || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    });
    bytes
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn reference(text: &str) -> ModelRef {
    text.parse().unwrap()
}

fn pull(store: &Store, text: &str) -> Result<StoredModel, StoreError> {
    store.pull(&reference(text), &mut |_, _| {})
}

/// Asserts that the pull failed with one line that has all of `parts`, and that nothing is listed.
#[track_caller]
fn check_failed(store: &Store, outcome: Result<StoredModel, StoreError>, parts: &[&str]) {
    let message = outcome.unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(!message.contains('\n'), "{message:?} is more than one line");
    assert_eq!(store.list().unwrap(), []);
}

/// Asserts that the model is stored whole under its name, with its manifest, and nothing is left of the pull.
#[track_caller]
fn check_stored(root: &Path, model: &StoredModel, bytes: &[u8]) {
    assert_eq!(fs::read(&model.path).unwrap(), bytes);
    assert_eq!(model.bytes, bytes.len() as u64);
    assert_eq!(model.sha256, Some(sha256_hex(bytes)));
    assert!(model.pulled_at.is_some());
    let store = Store::open(root.to_owned()).unwrap();
    assert_eq!(store.leftovers().unwrap(), []);
    assert_eq!(
        model.path,
        root.join("models").join(&model.name).join("model.gguf")
    );
    assert!(model.path.with_file_name("manifest.json").is_file());
    assert_eq!(partial_files(root), [PathBuf::from("lock")]);
}

/// Names of the files under `partial`, without their folders.
fn partial_files(root: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(PathBuf::from(path.file_name().unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root.join("partial"), &mut found);
    found
}

/// Waits until `condition` holds.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come to be");
        std::thread::yield_now();
    }
}
