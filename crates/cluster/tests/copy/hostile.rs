//! What strangers and holders of the token cannot do.

use super::*;

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
            let mut lanes = accept();
            answer(&mut lanes);
            let _lanes = Lanes::follow(lanes, &Config::default(), &token(), soon()).unwrap();
            assert!(answer(&mut channel).contains("LanesOpen"));
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
        let mut lane = node.lanes.lock().unwrap().pop().unwrap();
        let mut chunk = [0; 48 + 4];
        chunk[..2].copy_from_slice(&[1, kind]);
        chunk[12] = 4;
        lane.write_all(&chunk).unwrap();
        channel.send(br#""Finish""#).unwrap();
        let answer = answer(&mut channel);
        assert!(answer.contains("not as it was sent"), "{kind}: {answer}");
        assert!(!node.path("x").exists());
    }
}
