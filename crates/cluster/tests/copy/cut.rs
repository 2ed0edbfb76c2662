//! Copies that are cut, and files that change under way.

use super::*;

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
