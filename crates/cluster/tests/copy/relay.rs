//! Copies that go on from node to node.

use super::*;

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
