//! Copies between nodes on loopback, and what hostile holders of the token can do.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use shoal_cluster::Program;
use shoal_cluster::copy::{CopyConfig, CopyError, CopySummary, Progress, RelPath, pull, push};
use shoal_cluster::node::{Node, NodeConfig};
use shoal_fabric::Key;
use shoal_fabric::channel::Channel;
use tempfile::TempDir;

const CHUNK: usize = 256 << 10;

#[test]
fn a_file_arrives_whole_with_its_permissions_and_time() {
    let (node, here) = (Served::new(), Folder::new());
    let data = noise(3 * CHUNK + 17, 1);
    let file = here.file("weights.gguf", &data);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();

    let summary = node.push(&[&file], "models/").unwrap();
    assert_eq!(summary.total_bytes, data.len() as u64);
    assert_eq!(summary.reports[0].bytes_received, data.len() as u64);
    let there = node.path("models/weights.gguf");
    assert_eq!(fs::read(&there).unwrap(), data);
    let (facts, original) = (fs::metadata(&there).unwrap(), fs::metadata(&file).unwrap());
    assert_eq!(facts.mode() & 0o777, 0o640);
    assert_eq!(
        (facts.mtime(), facts.mtime_nsec()),
        (original.mtime(), original.mtime_nsec())
    );
    assert_eq!(names(&node.path("models")), ["weights.gguf"]);

    // Without a folder of that name it is a new name.
    node.push(&[&file], "models/renamed").unwrap();
    assert_eq!(fs::read(node.path("models/renamed")).unwrap(), data);
}

#[test]
fn a_tree_arrives_as_it_is_and_a_second_time_only_what_changed_is_sent() {
    let (node, here) = (Served::new(), Folder::new());
    let mut big = noise(5 * CHUNK + 1, 2);
    here.file("tree/a/big", &big);
    here.file("tree/empty", b"");
    here.file("tree/a/script", b"#!/bin/sh\n");
    fs::create_dir(here.path("tree/bare")).unwrap();
    symlink("a/big", here.path("tree/link")).unwrap();
    symlink("/etc/passwd", here.path("tree/out")).unwrap();
    fs::set_permissions(
        here.path("tree/a/script"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    fs::set_permissions(here.path("tree/a"), fs::Permissions::from_mode(0o555)).unwrap();

    let tree = here.path("tree");
    let report = node.push(&[&tree], "").unwrap().reports.remove(0);
    assert_eq!((report.files_written, report.files_unchanged), (3, 0));
    same_tree(&tree, &node.path("tree"));

    let report = node.push(&[&tree], "").unwrap().reports.remove(0);
    assert_eq!((report.files_written, report.files_unchanged), (0, 3));
    assert_eq!(report.bytes_received, 0);

    // One chunk of six changes, and the file grows by one.
    fs::set_permissions(here.path("tree/a"), fs::Permissions::from_mode(0o755)).unwrap();
    big[2 * CHUNK] ^= 1;
    big.push(7);
    here.file("tree/a/big", &big);
    let report = node.push(&[&tree], "").unwrap().reports.remove(0);
    assert_eq!((report.files_written, report.files_unchanged), (1, 2));
    assert_eq!(report.bytes_received, CHUNK as u64 + 2);
    same_tree(&tree, &node.path("tree"));

    // And one that shrinks.
    big.truncate(CHUNK + 5);
    here.file("tree/a/big", &big);
    let report = node.push(&[&tree], "").unwrap().reports.remove(0);
    assert_eq!((report.files_written, report.bytes_received), (1, 0));
    same_tree(&tree, &node.path("tree"));
}

#[test]
fn files_are_fetched_from_a_node() {
    let (node, here) = (Served::new(), Folder::new());
    let data = noise(2 * CHUNK, 3);
    fs::create_dir_all(node.path("models/m")).unwrap();
    fs::write(node.path("models/m/weights"), &data).unwrap();
    symlink("weights", node.path("models/m/link")).unwrap();
    let fetch = |from: &[&str], to: PathBuf| {
        let from: Vec<_> = from
            .iter()
            .map(|path| RelPath::parse(path).unwrap())
            .collect();
        pull(&config(), &node.address, &from, &to, &|_| {})
    };
    fetch(&["models/m"], here.path("")).unwrap();
    same_tree(&node.path("models/m"), &here.path("m"));
    fetch(&["models/m/weights"], here.path("other")).unwrap();
    assert_eq!(fs::read(here.path("other")).unwrap(), data);
    let report = fetch(&["models/m/weights"], here.path("other"))
        .unwrap()
        .reports
        .remove(0);
    assert_eq!((report.files_unchanged, report.bytes_received), (1, 0));

    let missing = fetch(&["models/none"], here.path("none"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains(&node.address) && missing.contains("models/none"),
        "{missing}"
    );
    let all = fetch(&[""], here.path("none")).unwrap_err().to_string();
    assert!(all.contains("below the one that the node serves"), "{all}");
}

#[test]
fn a_socket_that_is_named_is_an_error_and_one_below_a_folder_is_left_out() {
    let (node, here) = (Served::new(), Folder::new());
    let file = here.file("tree/a", b"a");
    let socket = here.path("tree/socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for sources in [&[&*socket][..], &[&file, &socket], &[&socket, &file]] {
        let error = node.push(sources, "new").unwrap_err().to_string();
        assert!(error.contains("socket: is neither file"), "{error}");
    }
    let far = UnixListener::bind(node.path("far")).unwrap();
    let from = [RelPath::parse("far").unwrap()];
    let fetched = pull(&config(), &node.address, &from, &here.path("new"), &|_| {});
    let error = fetched.unwrap_err().to_string();
    assert!(error.contains("far: is neither file"), "{error}");
    drop(far);
    assert_eq!(names(&node.path("")), ["far"]);

    let summary = node.push(&[&here.path("tree")], "").unwrap();
    assert_eq!(summary.left_out, ["tree/socket"]);
    assert_eq!(names(&node.path("tree")), ["a"]);
}

#[test]
fn a_cut_copy_goes_on_at_the_chunk_where_it_stopped() {
    let (node, here) = (Served::new(), Folder::new());
    let data = noise(8 * CHUNK, 4);
    let file = here.file("big", &data);
    // What a cut leaves: some chunks, a hole, part of a chunk.
    let mut part = data.clone();
    part[CHUNK..2 * CHUNK].fill(0);
    part.truncate(5 * CHUNK + 100);
    fs::write(node.path(".big.shoal-part"), &part).unwrap();
    let report = node.push(&[&file], "").unwrap().reports.remove(0);
    assert_eq!(report.bytes_received, 4 * CHUNK as u64);
    assert_eq!(fs::read(node.path("big")).unwrap(), data);
    assert_eq!(names(&node.path("")), ["big"]);
}

#[test]
fn a_source_that_changes_under_way_is_an_error_and_what_arrived_is_used_again() {
    let (node, here) = (Served::new(), Folder::new());
    let data = noise(6 * CHUNK, 5);
    let file = here.file("big", &data);
    let config = CopyConfig {
        lanes: 1,
        ..config()
    };
    let cut = |progress: Progress| {
        if progress.done_bytes == 3 * CHUNK as u64 {
            fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(4 * CHUNK as u64)
                .unwrap();
        }
    };
    let failed = push(&config, from_ref(&file), from_ref(&node.address), "", &cut);
    assert!(
        matches!(failed, Err(CopyError::Changed { .. })),
        "{failed:?}"
    );
    assert!(!node.path("big").exists());
    fs::write(&file, &data).unwrap();
    eventually("the node has let go of the file", || {
        match node.push(&[&file], "") {
            Ok(summary) => {
                assert!(
                    summary.reports[0].bytes_received <= 3 * CHUNK as u64,
                    "{summary:?}"
                );
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("another copy"), "{error}");
                false
            }
        }
    });
    assert_eq!(fs::read(node.path("big")).unwrap(), data);
}

#[test]
fn one_reading_reaches_every_node_whatever_each_has() {
    let nodes = [(); 3].map(|()| Served::new());
    let here = Folder::new();
    let data = noise(4 * CHUNK + 3, 6);
    here.file("m/big", &data);
    here.file("m/empty", b"");
    // The first has it all, the second half of it, the third nothing.
    fs::create_dir(nodes[0].path("m")).unwrap();
    fs::write(nodes[0].path("m/big"), &data).unwrap();
    fs::write(nodes[0].path("m/empty"), b"").unwrap();
    fs::create_dir(nodes[1].path("m")).unwrap();
    fs::write(nodes[1].path("m/.big.shoal-part"), &data[..2 * CHUNK]).unwrap();
    let addresses = nodes.each_ref().map(|node| node.address.clone());
    let summary = push(&config(), &[here.path("m")], &addresses, "", &|_| {}).unwrap();
    let received: Vec<_> = summary.reports.iter().map(|it| it.bytes_received).collect();
    assert_eq!(received, [0, 2 * CHUNK as u64 + 3, data.len() as u64]);
    assert!(
        summary.reports.iter().all(|it| it.error.is_none()),
        "{summary:?}"
    );
    for node in &nodes {
        same_tree(&here.path("m"), &node.path("m"));
    }
}

#[test]
fn a_node_behind_one_that_has_nothing_is_sent_only_what_it_lacks() {
    let nodes = [(); 2].map(|()| Served::new());
    let here = Folder::new();
    let data = noise(4 * CHUNK + 3, 12);
    let file = here.file("big", &data);
    let mut part = data[..3 * CHUNK].to_vec();
    part[CHUNK] ^= 1;
    fs::write(nodes[1].path(".big.shoal-part"), &part).unwrap();
    let addresses = nodes.each_ref().map(|node| node.address.clone());
    let summary = push(&config(), &[file], &addresses, "", &|_| {}).unwrap();
    let received: Vec<_> = summary.reports.iter().map(|it| it.bytes_received).collect();
    assert_eq!(received, [data.len() as u64, 2 * CHUNK as u64 + 3]);
    for node in &nodes {
        assert_eq!(fs::read(node.path("big")).unwrap(), data);
    }
}

#[test]
fn a_node_behind_another_that_fails_takes_nothing_from_the_first() {
    let nodes = [(); 3].map(|()| Served::new());
    let here = Folder::new();
    let data = noise(3 * CHUNK, 7);
    let file = here.file("big", &data);
    fs::create_dir(nodes[1].path("big")).unwrap();
    fs::write(nodes[1].path("big/x"), b"").unwrap();
    fs::remove_dir_all(nodes[2].path("")).unwrap();
    // A folder of the file's name takes the file in; one of its name in there is in the way.
    fs::create_dir(nodes[1].path("big/big")).unwrap();
    let addresses = nodes.each_ref().map(|node| node.address.clone());
    let summary = push(&config(), &[file], &addresses, "", &|_| {}).unwrap();
    assert_eq!(fs::read(nodes[0].path("big")).unwrap(), data);
    let errors: Vec<_> = summary
        .reports
        .iter()
        .map(|it| it.error.clone().unwrap_or_default())
        .collect();
    assert_eq!(errors[0], "");
    assert!(errors[1].contains("in the way"), "{errors:?}");
    assert!(errors[2].contains("not reached"), "{errors:?}");
}

#[test]
fn a_next_node_that_is_not_there_takes_nothing_from_the_first() {
    let (node, here) = (Served::new(), Folder::new());
    let data = noise(2 * CHUNK, 8);
    let file = here.file("big", &data);
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let nodes = [node.address.clone(), nowhere.clone(), "never:1".to_owned()];
    let reports = push(&config(), &[file], &nodes, "", &|_| {})
        .unwrap()
        .reports;
    assert_eq!(fs::read(node.path("big")).unwrap(), data);
    let errors: Vec<_> = reports
        .into_iter()
        .map(|it| it.error.unwrap_or_default())
        .collect();
    assert_eq!(errors[0], "");
    assert!(errors[1].contains(&nowhere), "{errors:?}");
    assert!(errors[2].contains("not reached"), "{errors:?}");
}

#[test]
fn a_thousand_small_files_are_no_file_too_many() {
    let (node, here) = (Served::new(), Folder::new());
    for number in 0..1000 {
        here.file(
            &format!("tree/{}/{number}", number % 7),
            &noise(number, number as u64),
        );
    }
    let report = node
        .push(&[&here.path("tree")], "")
        .unwrap()
        .reports
        .remove(0);
    assert_eq!(report.files_written, 1000);
    same_tree(&here.path("tree"), &node.path("tree"));
}

#[test]
fn what_is_replaced_may_change_under_way_and_makes_no_wrong_file() {
    let (node, here) = (Served::new(), Folder::new());
    let old = noise(4 * CHUNK, 9);
    let file = here.file("big", &[&old[..], &noise(CHUNK, 10)].concat());
    let there = node.path("big");
    fs::write(&there, &old).unwrap();
    let config = CopyConfig {
        lanes: 1,
        verify: false,
        ..config()
    };
    let meddle = |progress: Progress| {
        if progress.done_bytes == CHUNK as u64 {
            let there = fs::OpenOptions::new().write(true).open(&there).unwrap();
            there.write_at(b"other", 1000).unwrap();
        }
    };
    let failed = push(
        &config,
        from_ref(&file),
        from_ref(&node.address),
        "",
        &meddle,
    );
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("written to meanwhile"), "{failed}");
    assert_eq!(fs::read(&there).unwrap().len(), 4 * CHUNK);
}

#[test]
fn a_partial_file_that_somebody_took_away_gives_nothing_its_name() {
    let (node, here) = (Served::new(), Folder::new());
    let file = here.file("big", &noise(4 * CHUNK, 11));
    // Still on its way when the other has failed: a sender whose connection is full has to hear of that all the same.
    let more = here.file("more", &vec![7; 64 << 20]);
    let partial = node.path(".big.shoal-part");
    let take_away = |progress: Progress| {
        if progress.done_bytes == CHUNK as u64 {
            eventually("it is begun", || fs::remove_file(&partial).is_ok());
            fs::write(&partial, b"").unwrap();
        }
    };
    let config = CopyConfig {
        lanes: 1,
        ..config()
    };
    let sources = [file, more];
    let failed = push(&config, &sources, from_ref(&node.address), "", &take_away);
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("another copy"), "{failed}");
    let left = names(&node.path(""));
    assert!(!left.contains(&"big".to_owned()), "{left:?}");
}

#[test]
fn folders_on_the_way_are_made_as_any_program_makes_them() {
    let (node, here) = (Served::new(), Folder::new());
    let file = here.file("a", b"a");
    fs::create_dir(here.path("usual")).unwrap();
    let usual = here.path("usual").metadata().unwrap().mode();
    node.push(&[&file], "new/sub/").unwrap();
    for made in ["new", "new/sub"] {
        assert_eq!(node.path(made).metadata().unwrap().mode(), usual, "{made}");
    }
}

#[test]
fn a_node_gives_only_what_it_was_asked_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let here = Folder::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let accept = || Channel::accept(listener.accept().unwrap().0, &token(), soon()).unwrap();
            let mut channel = accept();
            answer(&mut channel);
            channel.send(br#""OpenLanes""#).unwrap();
            let mut lane = accept();
            answer(&mut lane);
            channel
                .send(
                    br#"{"Entries":[{"path":".bashrc","kind":{"File":{"bytes":1}},"mode":420,"modified":{"seconds":0,"nanoseconds":0}}]}"#,
                )
                .unwrap();
            channel.send(br#"{"EntriesEnd":{"left_out":[]}}"#).unwrap();
            assert!(answer(&mut channel).contains("Failed"));
        });
        let config = CopyConfig {
            lanes: 1,
            ..config()
        };
        let from = [RelPath::parse("models/weights").unwrap()];
        let failed = pull(&config, &address, &from, &here.path(""), &|_| {}).unwrap_err();
        assert!(
            failed.to_string().contains(".bashrc was not asked for"),
            "{failed}"
        );
    });
    assert_eq!(names(&here.path("")), [""; 0]);
}

#[test]
fn symbolic_links_at_the_destination_lead_nowhere() {
    let (node, here, outside) = (Served::new(), Folder::new(), Folder::new());
    outside.file("victim", b"untouched");
    let file = here.file("victim", b"poison");
    symlink(outside.path(""), node.path("out")).unwrap();
    symlink(outside.path("victim"), node.path("victim")).unwrap();
    symlink(outside.path("victim"), node.path(".other.shoal-part")).unwrap();
    for to in ["out/", "out", "out/victim", "out/new/"] {
        let refused = node.push(&[&file], to).unwrap_err().to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
    }
    // A tree whose folder is a link over there.
    here.file("out/victim", b"poison");
    assert!(node.push(&[&here.path("out")], "").is_err());
    assert!(node.push(&[&here.file("other", b"poison")], "").is_err());
    // A link of the file's own name, below a folder, is replaced and not followed.
    fs::create_dir(node.path("d")).unwrap();
    symlink(outside.path("victim"), node.path("d/victim")).unwrap();
    node.push(&[&file], "d/").unwrap();
    assert_eq!(fs::read(node.path("d/victim")).unwrap(), b"poison");
    assert!(!node.path("d/victim").is_symlink());
    assert_eq!(fs::read(outside.path("victim")).unwrap(), b"untouched");
    assert_eq!(names(&outside.path("")), ["victim"]);
    // Nor is one followed to read.
    let from = [RelPath::parse("out/victim").unwrap()];
    assert!(pull(&config(), &node.address, &from, &here.path("got"), &|_| {}).is_err());
}

#[test]
fn a_wrong_token_gets_and_gives_nothing() {
    let (node, here) = (Served::new(), Folder::new());
    let file = here.file("a", b"a");
    let config = CopyConfig {
        token: Key::from_token("other"),
        ..config()
    };
    let refused = push(&config, &[file], from_ref(&node.address), "", &|_| {}).unwrap_err();
    assert!(refused.to_string().contains("--token-file"), "{refused}");
    assert_eq!(names(&node.path("")), [""; 0]);
}

#[test]
fn hostile_holders_of_the_token_get_an_answer_and_no_further() {
    let node = Served::new();
    fs::write(node.path("kept"), b"kept").unwrap();
    let file = |path: &str, bytes: u64| {
        format!(
            r#"{{"path":{path:?},"kind":{{"File":{{"bytes":{bytes}}}}},"mode":420,"modified":{{"seconds":0,"nanoseconds":0}}}}"#
        )
    };
    let link = r#"{"path":"l","kind":{"Link":{"to":"/etc"}},"mode":511,"modified":{"seconds":0,"nanoseconds":0}}"#;
    let manifests = [
        file("../x", 1),
        file("/etc/x", 1),
        file("a/../../x", 1),
        file("a\u{0}b", 1),
        file("", 1),
        file("d/x", 1),
        file("x", u64::MAX),
        file("x", 1 << 50),
        format!("{link},{}", file("l/x", 1)),
        format!("{},{}", file("x", 1), file("x", 1)),
        file(".x.shoal-part", 1),
    ];
    for manifest in &manifests {
        let mut channel = node.order("");
        channel
            .send(format!(r#"{{"Entries":[{manifest}]}}"#).as_bytes())
            .unwrap();
        channel.send(br#"{"EntriesEnd":{"left_out":[]}}"#).unwrap();
        let answer = answer(&mut channel);
        assert!(!answer.contains("Ready"), "{manifest}: {answer}");
    }
    for prepare in [
        r#"{"file":1,"first":0,"count":1}"#,
        r#"{"file":4294967295,"first":0,"count":1}"#,
        r#"{"file":0,"first":0,"count":4294967295}"#,
        r#"{"file":0,"first":4294967295,"count":1}"#,
        r#"{"file":0,"first":64,"count":0}"#,
        r#"{"file":0,"first":1,"count":1}"#,
    ] {
        let mut channel = node.order("");
        channel
            .send(format!(r#"{{"Entries":[{}]}}"#, file("x", 2 << 20)).as_bytes())
            .unwrap();
        channel.send(br#"{"EntriesEnd":{"left_out":[]}}"#).unwrap();
        assert!(answer(&mut channel).contains("Ready"));
        channel
            .send(format!(r#"{{"Prepare":{prepare}}}"#).as_bytes())
            .unwrap();
        let answer = answer(&mut channel);
        assert!(answer.contains("Failed"), "{prepare}: {answer}");
    }
    for words in ["{}", "null", "\u{ff}", r#"{"Entries":7}"#, r#""Finish""#] {
        let mut channel = node.order("");
        channel.send(words.as_bytes()).unwrap();
        let answer = answer(&mut channel);
        assert!(!answer.contains("Ready"), "{words}: {answer}");
    }
    for to in ["..", "/etc", "a/../.."] {
        let mut channel = node.connect();
        channel.send(push_order(to).as_bytes()).unwrap();
        assert!(!answer(&mut channel).contains("OpenLanes"), "{to}");
    }
    assert_eq!(fs::read(node.path("kept")).unwrap(), b"kept");
    assert_eq!(names(&node.path("..")), ["root"]);
    // And it serves on.
    let here = Folder::new();
    eventually("a place is free", || {
        node.push(&[&here.file("a", b"a")], "").is_ok()
    });
    assert_eq!(fs::read(node.path("a")).unwrap(), b"a");
}

#[test]
fn a_chunk_that_was_damaged_on_its_way_is_refused() {
    // Sealed by a hash, and by a checksum.
    for kind in [0, 1] {
        let node = Served::new();
        let mut channel = node.order("");
        let entry = r#"{"path":"x","kind":{"File":{"bytes":4}},"mode":420,"modified":{"seconds":0,"nanoseconds":0}}"#;
        channel
            .send(format!(r#"{{"Entries":[{entry}]}}"#).as_bytes())
            .unwrap();
        channel.send(br#"{"EntriesEnd":{"left_out":[]}}"#).unwrap();
        assert!(answer(&mut channel).contains("Ready"));
        channel
            .send(br#"{"Prepare":{"file":0,"first":0,"count":1}}"#)
            .unwrap();
        assert!(answer(&mut channel).contains("Offer"));
        let lane = node.lanes.lock().unwrap().pop().unwrap().into_stream();
        let mut chunk = [0; 48 + 4];
        chunk[..2].copy_from_slice(&[1, kind]);
        chunk[12] = 4;
        (&lane).write_all(&chunk).unwrap();
        channel.send(br#""Finish""#).unwrap();
        let answer = answer(&mut channel);
        assert!(answer.contains("not as it was sent"), "{kind}: {answer}");
        assert!(!node.path("x").exists());
    }
}

fn push_order(to: &str) -> String {
    format!(
        r#"{{"Copy":{{"Push":{{"session":"s{}","lanes":1,"to":{{"path":{to:?},"is_folder":true,"verify":false}},"limit_bytes_per_second":null,"then":[]}}}}}}"#,
        fresh()
    )
}

fn fresh() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// What the node says next, or how it hung up.
fn answer(channel: &mut Channel) -> String {
    match channel.recv(Some(soon())) {
        Ok(bytes) => String::from_utf8(bytes).unwrap(),
        Err(error) => error.to_string(),
    }
}

/// A node on loopback and the folder it serves.
struct Served {
    address: String,
    root: Folder,
    lanes: Mutex<Vec<Channel>>,
}

impl Served {
    fn new() -> Self {
        let root = Folder::new();
        fs::create_dir(root.path("root")).unwrap();
        let node = Node::bind(NodeConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            token: token(),
            threads: None,
            isa: None,
            program: Program {
                path: "/nowhere/shoal".into(),
                flags: Vec::new(),
            },
            root: root.path("root"),
        });
        let node = node.unwrap();
        let address = node.local_addr().unwrap().to_string();
        thread::spawn(|| node.serve());
        Self {
            address,
            root,
            lanes: Mutex::default(),
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path("root").join(below)
    }

    fn push(&self, sources: &[&Path], to: &str) -> Result<CopySummary, CopyError> {
        let sources: Vec<_> = sources.iter().map(|path| path.to_path_buf()).collect();
        push(&config(), &sources, from_ref(&self.address), to, &|_| {})
    }

    fn connect(&self) -> Channel {
        Channel::connect(&self.address, &token(), soon()).unwrap()
    }

    /// Orders a push by hand, as far as the manifest.
    fn order(&self, to: &str) -> Channel {
        let order = push_order(to);
        let mut channel = self.connect();
        channel.send(order.as_bytes()).unwrap();
        assert!(answer(&mut channel).contains("OpenLanes"));
        let session = order
            .split('"')
            .skip_while(|it| *it != "session")
            .nth(2)
            .unwrap();
        let mut lane = self.connect();
        lane.send(
            format!(r#"{{"Copy":{{"Lane":{{"session":{session:?},"lane":0}}}}}}"#).as_bytes(),
        )
        .unwrap();
        self.lanes.lock().unwrap().push(lane);
        channel
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn file(&self, below: &str, data: &[u8]) -> PathBuf {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        path
    }
}

fn config() -> CopyConfig {
    CopyConfig {
        token: token(),
        lanes: 2,
        limit_bytes_per_second: None,
        verify: true,
    }
}

fn token() -> Key {
    Key::from_token("fish")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Bytes that no two chunks share.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn same_tree(one: &Path, other: &Path) {
    let (left, right) = (
        one.symlink_metadata().unwrap(),
        other.symlink_metadata().unwrap(),
    );
    let facts = |it: &fs::Metadata| (it.mode(), it.mtime(), it.mtime_nsec());
    assert_eq!(facts(&left), facts(&right), "{}", other.display());
    if left.is_symlink() {
        assert_eq!(fs::read_link(one).unwrap(), fs::read_link(other).unwrap());
    } else if left.is_file() {
        assert!(
            fs::read(one).unwrap() == fs::read(other).unwrap(),
            "{}",
            other.display()
        );
    } else {
        assert_eq!(names(one), names(other));
        for name in names(one) {
            same_tree(&one.join(&name), &other.join(&name));
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = soon();
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}
