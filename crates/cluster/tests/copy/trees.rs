//! What arrives, and what does not.

use super::*;

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

    // A link that is named stands for what it leads to, and leads out of the folder for nobody.
    fetch(&["models/m/link"], here.path("")).unwrap();
    assert!(!here.path("link").is_symlink());
    assert_eq!(fs::read(here.path("link")).unwrap(), data);
    symlink("/etc/hostname", node.path("out")).unwrap();
    let outside = fetch(&["out"], here.path("stolen")).unwrap_err();
    assert!(outside.to_string().contains("reading out"), "{outside}");
    assert!(!here.path("stolen").exists());

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
