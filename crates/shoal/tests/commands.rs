//! The commands as a person runs them, over a tiny model, each rank a process of its own. The end-to-end tests do the
//! same with a real model and real clients.

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Stdio};

use common::{House, error_of, eventually, lives, signal};

#[test]
fn run_prints_the_completion_alone_and_the_same_for_any_number_of_nodes() {
    let house = House::new();
    let run = |extra: &[&str]| {
        let mut args = vec!["run", "--raw", "--temperature", "0", "--max-tokens", "6"];
        args.extend(extra);
        let output = house.shoal(&args, &["SHOAL_ISA=scalar"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let alone = run(&["--model", house.model(), "abc"]);
    assert!(alone.ends_with('\n') && alone.len() > 1, "{alone:?}");
    for layout in [&["--nodes", "2"][..], &["--nodes", "3", "--share", "2,1,1"]] {
        let args = [layout, &["--model", house.model(), "abc"]].concat();
        assert_eq!(run(&args), alone, "{layout:?}");
    }
}

#[test]
fn a_cell_serves_loses_a_rank_serves_again_and_leaves_nothing_behind() {
    let house = House::new();
    let mut cell = house.serve(&["--nodes", "2"]);
    assert_eq!(
        cell.ready,
        format!("ready http://{} model=tiny nodes=2", cell.address)
    );
    assert!(cell.complete().starts_with("HTTP/1.1 200"));

    for rank in [1, 0] {
        let before = cell.rank_pids();
        assert_eq!(before.len(), 2);
        signal("KILL", before[rank]);
        eventually("the cell is ready with a new group", || {
            let pids = cell.rank_pids();
            cell.health().starts_with("HTTP/1.1 200")
                && pids.len() == 2
                && pids[rank] != before[rank]
        });
        assert!(cell.complete().starts_with("HTTP/1.1 200"));
    }

    let pids = cell.rank_pids();
    signal("INT", cell.front.id());
    assert!(cell.front.wait().expect("the front ends").success());
    assert!(
        pids.iter().all(|pid| !lives(*pid)),
        "ranks outlived the cell"
    );
    assert_eq!(
        std::fs::read_dir(house.home().join("run"))
            .expect("the run folder")
            .count(),
        0
    );
}

#[test]
fn a_front_that_was_killed_is_replaced_without_loading_again() {
    let house = House::new();
    let mut cell = house.serve(&["--nodes", "2"]);
    let pids = cell.rank_pids();
    cell.front.kill().expect("the front can be killed");
    cell.front.wait().expect("the front ends");
    let cell = house.serve(&["--attach"]);
    assert_eq!(cell.rank_pids(), pids);
    assert!(cell.complete().starts_with("HTTP/1.1 200"));
}

#[test]
fn ranks_whose_front_is_gone_exit_when_nobody_comes() {
    let house = House::new();
    let mut cell = house.serve(&["--nodes", "2", "--orphan-timeout", "0"]);
    let pids = cell.rank_pids();
    cell.front.kill().expect("the front can be killed");
    cell.front.wait().expect("the front ends");
    eventually("the ranks exit", || pids.iter().all(|pid| !lives(*pid)));
    let refused = house.shoal(&["serve", "--attach", "--port", "0"], &[]);
    assert!(
        error_of(&refused).contains("no running cell"),
        "{refused:?}"
    );
}

#[test]
fn bench_prints_the_object_that_scripts_read() {
    let house = House::new();
    let args = [
        "bench",
        "--json",
        "--nodes",
        "2",
        "--runs",
        "1",
        "--prompt-tokens",
        "8",
        "--gen-tokens",
        "4",
    ];
    let output = house.shoal(&[&args[..], &["--model", house.model()]].concat(), &[]);
    assert!(output.status.success(), "{output:?}");
    let outcome: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("one JSON object");
    for figure in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(outcome[figure]["median"].as_f64().expect("a number") > 0.0);
    }
    assert!(outcome["load_seconds"].as_f64().expect("a number") > 0.0);
    let ranks = outcome["ranks"].as_array().expect("the ranks");
    assert_eq!(ranks.len(), 2);
    assert!(
        ranks
            .iter()
            .all(|rank| rank["peak_memory_bytes"].as_u64() > Some(0))
    );
}

#[test]
fn what_cannot_work_is_refused_in_one_line_that_says_what_to_do() {
    let house = House::new();
    let whole = std::fs::read(house.model()).expect("the model");
    let truncated = house.file("truncated.gguf", &whole[..whole.len() / 2]);
    let not_a_model = house.file("text.gguf", b"this is not a model");
    let empty = house.file("empty.gguf", b"");
    let long = house.file("long", &[b'x'; 5000]);
    let serve = ["serve", "--model", house.model()];
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--model", &truncated, "abc"], "truncated"),
        (&["run", "--model", &not_a_model, "abc"], "not a GGUF file"),
        (&["run", "--model", &empty, "abc"], &empty),
        (&["pull", &empty], &empty),
        (
            &[&serve[..], &["--api-key-file", &long]].concat(),
            "no secret file",
        ),
        (
            &[&serve[..], &["--cors-origin", "example.org"]].concat(),
            "https://",
        ),
        (
            &["run", "--model", "/no/such/model.gguf", "abc"],
            "/no/such/model.gguf",
        ),
        (&["run", "--model", "no-such-model", "abc"], "no-such-model"),
        (&["run", "--model", house.model(), ""], "prompt is empty"),
        (
            &[
                "run",
                "--model",
                house.model(),
                "--nodes",
                "2",
                "--share",
                "1",
                "abc",
            ],
            "--share",
        ),
        (
            &[
                "run",
                "--model",
                house.model(),
                "--nodes",
                "2",
                "--share",
                "1,0",
                "abc",
            ],
            "share",
        ),
        (
            &["run", "--model", house.model(), "--nodes", "64", "abc"],
            "at most",
        ),
        (
            &["run", "--model", house.model(), "--ctx", "999999", "abc"],
            "--ctx",
        ),
        (
            &["serve", "--model", house.model(), "--host", "0.0.0.0"],
            "--api-key-file",
        ),
        (&["fabric", "test"], "--nodes"),
        (&["fabric", "test", "--nodes", "1"], "2..=64"),
        (
            &["fabric", "test", "--transport", "mpi"],
            if cfg!(feature = "mpi") {
                "mpirun -n 2"
            } else {
                "--features mpi"
            },
        ),
        (&["fabric", "test", "--nodes", "2", "--sizes", "5"], "64K"),
        (
            &[
                "cp",
                "--token-file",
                &long,
                "--peer",
                "fd00::2",
                &long,
                "all:",
            ],
            "[fd00::2]:7070",
        ),
        (
            &[
                "cp",
                "--token-file",
                &long,
                "--peer",
                "a",
                "--peer",
                "a:7070",
                &long,
                "all:",
            ],
            "a:7070 is named twice",
        ),
        (
            &[
                "fabric",
                "test",
                "--token-file",
                &long,
                "--peer",
                "a",
                "--peer",
                "a",
            ],
            "a:7070 is named twice",
        ),
    ];
    for (args, expected) in cases {
        let output = house.shoal(args, &[]);
        let error = error_of(&output);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{args:?}"
        );
        assert!(error.contains(expected), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
}

#[test]
fn variables_that_cannot_be_used_are_refused_before_anything_is_started() {
    let house = House::new();
    let refused = house.shoal(
        &["fabric", "test", "--nodes", "2"],
        &["SHOAL_TRANSPORT=pigeon"],
    );
    let error = error_of(&refused);
    assert!(
        error.starts_with("error: reading SHOAL_TRANSPORT: "),
        "{error}"
    );
    let mut command = house.command(&["models"]);
    command.env("SHOAL_HOME", OsStr::from_bytes(b"/tmp/\xff"));
    let refused = command.output().expect("shoal runs");
    assert!(!refused.status.success(), "{refused:?}");
    let error = error_of(&refused);
    assert!(error.contains("SHOAL_HOME is not UTF-8"), "{error}");
}

#[test]
fn a_link_test_that_cannot_be_done_prints_an_object_too() {
    let house = House::new();
    let token = house.file("token", b"a secret\n");
    let args = ["fabric", "test", "--json", "--token-file", &token];
    let failed = house.shoal(&[&args[..], &["--hostfile", "/no/such/file"]].concat(), &[]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let failure: serde_json::Value =
        serde_json::from_slice(&failed.stdout).expect("one JSON object");
    assert_eq!(failure["healthy"], false);
    let error = failure["error"].as_str().expect("a text");
    assert!(error.contains("/no/such/file"), "{error}");
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_reader_that_left_is_none() {
    let house = House::new();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("the device is there");
    for args in [
        &["models", "--json"][..],
        &[
            "run",
            "--raw",
            "--max-tokens",
            "1",
            "--model",
            house.model(),
            "a",
        ],
    ] {
        let output = house
            .command(args)
            .stdout(full.try_clone().expect("a second handle"))
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("the program runs");
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.starts_with("error: "), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = house.command(args);
        let output = command.stdout(writer).stderr(Stdio::piped()).spawn();
        drop(command);
        let output = output
            .and_then(Child::wait_with_output)
            .expect("the program runs");
        assert!(output.status.success(), "{args:?}: {}", error_of(&output));
    }
}

#[test]
fn models_that_are_not_whole_are_listed_as_such_and_removed() {
    let house = House::new();
    let folder = |path: &str| {
        let folder = house.home().join(path);
        std::fs::create_dir_all(&folder).expect("the store is writable");
        folder
    };
    let model = std::fs::read(house.model()).expect("the model can be read");
    for (name, bytes) in [("whole", &model[..]), ("broken", b"GGUF")] {
        let folder = folder(&format!("models/{name}"));
        std::fs::write(folder.join("model.gguf"), bytes).expect("the store is writable");
        let manifest = serde_json::json!({
            "reference": name, "source": "here", "sha256": "", "bytes": bytes.len(), "pulled_at_unix_seconds": 0
        });
        std::fs::write(folder.join("manifest.json"), manifest.to_string())
            .expect("the store is writable");
    }
    folder("models/gone");
    std::fs::write(folder("partial/begun/files").join("part"), "GG")
        .expect("the store is writable");
    let listed = || {
        let output = house.shoal(&["models", "--json"], &[]);
        let rows: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).expect("a JSON array");
        let row = |row: &serde_json::Value| {
            format!("{} {} {}", row["name"], row["state"], row["quantisation"])
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(
        listed(),
        [
            r#""begun" "unfinished" null"#,
            r#""broken" "damaged" null"#,
            r#""gone" "damaged" null"#,
            r#""whole" "ready" "Q8_0""#,
        ]
    );
    let table = house.shoal(&["models"], &[]);
    assert!(
        error_of(&table).contains("shoal models rm NAME"),
        "{table:?}"
    );
    for name in ["begun", "broken", "gone"] {
        let output = house.shoal(&["models", "rm", name], &[]);
        assert!(
            error_of(&output).starts_with(&format!("removed {name} (")),
            "{output:?}"
        );
    }
    assert_eq!(listed(), [r#""whole" "ready" "Q8_0""#]);
}
