//! The commands as a person runs them, over a tiny model, each rank a process of its own. The end-to-end tests do the
//! same with a real model and real clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use shoal_testkit::{TinyConfig, write_to};
use tempfile::TempDir;

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
fn a_node_lends_itself_to_holders_of_the_token_only() {
    let house = House::new();
    let token = house.file("token", b"a secret\n");
    let wrong = house.file("wrong", b"another secret\n");
    let mut node = house.spawn(&["node", "--listen", "127.0.0.1:0", "--token-file", &token]);
    let address = first_line(&mut node);
    let address = address
        .strip_prefix("waiting ")
        .expect("the node says where it waits")
        .trim();

    let peer = ["--peer", address, "--token-file"];
    let args = [
        &["serve", "--port", "0", "--model", house.model()][..],
        &peer,
        &[&wrong],
    ]
    .concat();
    let refused = house.shoal(&args, &[]);
    assert!(error_of(&refused).contains("--token-file"), "{refused:?}");

    let mut cell = house.serve(&[&peer[..], &[&token]].concat());
    assert!(cell.complete().starts_with("HTTP/1.1 200"));
    signal("TERM", cell.front.id());
    assert!(cell.front.wait().expect("the front ends").success());
    signal("TERM", node.id());
    assert!(node.wait().expect("the node ends").success());
}

#[test]
fn cp_copies_to_a_node_from_it_and_through_it_to_others() {
    let house = House::new();
    let token = house.file("token", b"a secret\n");
    let mut nodes = ["one", "two"].map(|root| {
        let root = house.file_path(root);
        let args = ["node", "--listen", "127.0.0.1:0", "--token-file", &token];
        house.spawn(&[&args[..], &["--root", &root]].concat())
    });
    let addresses = nodes.each_mut().map(|node| {
        let line = first_line(node);
        let address = line.strip_prefix("waiting ").expect("where it waits");
        address.trim().to_owned()
    });
    let [first, second] = &addresses;
    let cp = |extra: &[&str]| {
        house.shoal(
            &[&["cp", "--token-file", &token], extra].concat(),
            &["RUST_BACKTRACE=0"],
        )
    };
    let data = std::fs::read(house.model()).expect("the model");
    let read = |path: &str| std::fs::read(house.file_path(path)).expect("the copy");

    let output = cp(&[house.model(), &format!("{first}:m/")]);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    assert!(error_of(&output).contains("1 file written"), "{output:?}");
    assert_eq!(read("one/m/tiny.gguf"), data);

    let fetched = house.file_path("fetched");
    let output = cp(&["--verify", &format!("{first}:m/tiny.gguf"), &fetched]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(read("fetched"), data);

    let all = ["--json", "--peer", first, "--peer", second];
    let output = cp(&[&all[..], &["--limit-rate", "1G", house.model(), "all:m/"]].concat());
    assert!(output.status.success(), "{output:?}");
    let outcome: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("one JSON object");
    let received = |node: usize| outcome["nodes"][node]["bytes_received"].as_u64();
    assert_eq!(
        (received(0), received(1)),
        (Some(0), Some(data.len() as u64))
    );
    assert_eq!(
        (&outcome["ok"], &outcome["nodes"][1]["node"]),
        (&true.into(), &second.as_str().into())
    );
    assert_eq!(read("two/m/tiny.gguf"), data);

    let escape = cp(&[house.model(), &format!("{first}:../out")]);
    assert!(error_of(&escape).contains("../out"), "{escape:?}");
    let ambiguous = cp(&[house.model(), first]);
    assert!(
        error_of(&ambiguous).contains(&format!("{first}:")),
        "{ambiguous:?}"
    );
    let missing = cp(&["--json", &format!("{first}:none"), "."]);
    assert_eq!(missing.status.code(), Some(1));
    let failure: serde_json::Value =
        serde_json::from_slice(&missing.stdout).expect("one JSON object");
    assert_eq!(failure["ok"], false);
    assert!(failure["error"].as_str().expect("a text").contains("none"));
    for node in &mut nodes {
        signal("TERM", node.id());
        assert!(node.wait().expect("the node ends").success());
    }
}

#[test]
fn cp_that_is_interrupted_goes_on_where_it_stopped() {
    const CHUNK: u64 = 1 << 20;
    let house = House::new();
    let token = house.file("token", b"a secret\n");
    let root = house.file_path("root");
    let args = ["node", "--listen", "127.0.0.1:0", "--token-file", &token];
    let mut node = house.spawn(&[&args[..], &["--root", &root]].concat());
    let line = first_line(&mut node);
    let address = line.strip_prefix("waiting ").expect("where it waits");
    let to = format!("{}:", address.trim());
    let data: Vec<u8> = (0..8 * CHUNK).map(|at| ((at * at) >> 13) as u8).collect();
    let file = house.file("big", &data);
    let args = ["cp", "--json", "--token-file", &token, &file, &to];

    let cut = house
        .command(&[&args[..], &["--limit-rate", "3M", "--connections", "1"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("shoal starts");
    let part = format!("{root}/.big.shoal-part");
    eventually("two chunks have arrived", || {
        std::fs::metadata(&part).is_ok_and(|part| part.len() >= 2 * CHUNK)
    });
    signal("INT", cut.id());
    let cut = cut.wait_with_output().expect("it ends");
    assert_eq!(cut.status.code(), Some(1), "{cut:?}");
    assert!(error_of(&cut).contains("goes on from there"), "{cut:?}");
    assert!(!Path::new(&format!("{root}/big")).exists());

    // The node may still have to notice that the first attempt is over.
    let mut sent = None;
    eventually("the node takes the file", || {
        let output = house.shoal(&args, &[]);
        let outcome: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("one JSON object");
        sent = outcome["nodes"][0]["bytes_received"].as_u64();
        sent.is_some()
    });
    assert!(sent <= Some(7 * CHUNK), "{sent:?}");
    assert_eq!(
        std::fs::read(format!("{root}/big")).expect("the copy"),
        data
    );
    signal("TERM", node.id());
    assert!(node.wait().expect("the node ends").success());
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
fn fabric_test_prints_the_object_that_scripts_read() {
    let house = House::new();
    for nodes in [2_u64, 3] {
        let count = nodes.to_string();
        let args = ["fabric", "test", "--quick", "--json", "--nodes", &count];
        let output = house.shoal(&[&args[..], &["--seed", "7"]].concat(), &[]);
        let outcome = link_test_outcome(&output);
        assert_eq!(outcome["world"], nodes);
        assert_eq!(outcome["seed"], 7);
        assert_eq!(outcome["transport"], "shared memory");
        assert_eq!(outcome["place"], "this_machine");
        assert_eq!(outcome["verdict"]["link"], "shared memory");
        let of_all = |field: &str, figure: &str| {
            let rows = outcome[field].as_array().expect("rows");
            assert!(rows.iter().all(|row| is_positive(&row[figure])), "{rows:?}");
            rows.len() as u64
        };
        assert_eq!(of_all("sweep", "average_gb_per_s"), 6);
        assert_eq!(of_all("sweep", "median_ms"), 6);
        for figure in ["round_trip_4kib_us", "there", "back"] {
            for link in outcome["links"].as_array().expect("the links") {
                let mut values = link[figure].as_object().expect("figures").values();
                assert!(values.all(is_positive), "{link}");
            }
        }
        assert_eq!(of_all("links", "message_bytes"), nodes * (nodes - 1) / 2);
        assert!(is_positive(&outcome["all_reduce_4kib_us"]["p99"]));
    }
}

#[test]
fn fabric_test_reaches_the_ranks_of_nodes_and_leaves_the_nodes_free() {
    let house = House::new();
    let token = house.file("token", b"a secret\n");
    let mut node = house.spawn(&["node", "--listen", "127.0.0.1:0", "--token-file", &token]);
    let waiting = first_line(&mut node);
    let address = waiting.trim().strip_prefix("waiting ").expect("an address");
    let args = [
        "fabric", "test", "--json", "--sizes", "4K,1M", "--rounds", "2",
    ];
    let stress = ["--stress", "--seconds", "1", "--peer", address];
    let args = [&args[..], &stress, &["--token-file", &token]].concat();
    for _ in 0..2 {
        let outcome = link_test_outcome(&house.shoal(&args, &[]));
        assert_eq!(outcome["world"], 2);
        assert_eq!(outcome["stress"]["checked"]["wrong"], 0);
        assert!(is_positive(&outcome["stress"]["rounds"]));
    }
    signal("TERM", node.id());
    assert!(node.wait().expect("the node ends").success());
}

#[test]
fn fabric_test_ends_with_its_ranks_whoever_goes_first() {
    let house = House::new();
    let stress = [
        "--stress",
        "--seconds",
        "3600",
        "--sizes",
        "4K",
        "--rounds",
        "1",
    ];
    let args = [
        &["fabric", "test", "--json", "--verbose", "--nodes", "2"][..],
        &stress,
    ]
    .concat();
    for (victim, signal_name, says) in [
        (None, "INT", "interrupted"),
        (None, "KILL", ""),
        (Some(1), "KILL", "rank 1"),
        (Some(0), "KILL", "rank 0"),
    ] {
        let mut command = house.command(&args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut front = command.spawn().expect("shoal starts");
        let mut notes = BufReader::new(front.stderr.take().expect("stderr is piped")).lines();
        let mut next = || notes.next().expect("more notes").expect("UTF-8");
        let mut pids = Vec::new();
        // All ranks are there, and at work, once a note tells of a round.
        let mut line = next();
        while !line.starts_with("all_reduce") {
            let pid = line.split_once(" is process ").map(|(_, pid)| pid);
            pids.extend(pid.map(|pid| pid.parse::<u32>().expect("a number")));
            line = next();
        }
        assert_eq!(pids.len(), 2, "{line}");
        signal(
            signal_name,
            victim.map_or(front.id(), |rank: usize| pids[rank]),
        );
        let mut printed = String::new();
        let mut stdout = front.stdout.take().expect("stdout is piped");
        stdout.read_to_string(&mut printed).expect("UTF-8");
        assert!(!front.wait().expect("the front ends").success());
        if !says.is_empty() {
            let outcome: serde_json::Value = serde_json::from_str(&printed).expect("one object");
            assert_eq!(outcome["healthy"], false);
            let error = outcome["error"].as_str().expect("a reason");
            assert!(error.contains(says), "{error}");
        }
        eventually("the ranks are gone", || pids.iter().all(|pid| !lives(*pid)));
    }
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
        (&["fabric", "test", "--nodes", "2", "--sizes", "5"], "64K"),
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

/// A home of its own with a tiny model in it. What it starts, it ends.
struct House {
    folder: TempDir,
    model: String,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tiny.gguf");
        write_to(&TinyConfig::default(), &path).expect("the model is written");
        let model = path.to_str().expect("UTF-8").to_owned();
        Self { folder, model }
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.file_path(name);
        std::fs::write(&path, bytes).expect("the file is written");
        path
    }

    fn file_path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command
            .args(args)
            .env("SHOAL_HOME", self.home())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn shoal(&self, args: &[&str], variables: &[&str]) -> Output {
        let mut command = self.command(args);
        command.envs(
            variables
                .iter()
                .filter_map(|variable| variable.split_once('=')),
        );
        command.output().expect("shoal runs")
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("shoal starts")
    }

    fn serve(&self, args: &[&str]) -> Front {
        let mut all = vec!["serve", "--port", "0"];
        if !args.contains(&"--attach") {
            all.extend(["--threads", "1", "--model", self.model()]);
        }
        all.extend(args);
        let mut front = self.spawn(&all);
        let ready = first_line(&mut front).trim().to_owned();
        let address = ready
            .split(['/', ' '])
            .nth(3)
            .expect("an address in the ready line")
            .to_owned();
        Front {
            front,
            ready,
            address,
        }
    }
}

/// A running `shoal serve`. Dropping it ends the cell.
struct Front {
    front: Child,
    ready: String,
    address: String,
}

impl Front {
    fn health(&self) -> String {
        self.http("GET /health HTTP/1.1", "")
    }

    fn complete(&self) -> String {
        let body = r#"{"model":"tiny","prompt":"abc","max_tokens":4,"temperature":0}"#;
        self.http("POST /v1/completions HTTP/1.1", body)
    }

    fn rank_pids(&self) -> Vec<u32> {
        let health = self.health();
        let body = health.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let health: serde_json::Value = serde_json::from_str(body).expect("a JSON body");
        let ranks = health["ranks"].as_array().expect("the ranks");
        ranks
            .iter()
            .filter_map(|rank| rank["pid"].as_u64())
            .map(|pid| pid as u32)
            .collect()
    }

    fn http(&self, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the front listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        let len = body.len();
        write!(
            stream,
            "{request}\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}"
        )
        .expect("the front reads");
        let mut reply = String::new();
        stream
            .read_to_string(&mut reply)
            .expect("the front answers");
        reply
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        signal("INT", self.front.id());
        let _ = self.front.wait();
    }
}

/// The object of a link test that ran to its end and found every byte right. How fast a busy machine is, no test can say:
/// the exit status has to agree with the object, whichever it is.
fn link_test_outcome(output: &Output) -> serde_json::Value {
    let outcome: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no object: {output:?}"));
    assert_eq!(outcome["healthy"], output.status.success(), "{output:?}");
    let checked = &outcome["correctness"];
    assert!(is_positive(&checked["checks"]) && is_positive(&checked["bytes"]));
    assert_eq!(checked["wrong"], 0, "{checked}");
    assert_ne!(outcome["verdict"]["grade"], "faulty");
    outcome
}

fn is_positive(value: &serde_json::Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

fn first_line(child: &mut Child) -> String {
    let stdout: &mut ChildStdout = child.stdout.as_mut().expect("stdout is piped");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("a line comes");
    line
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
    sent.expect("kill runs");
}

fn lives(pid: u32) -> bool {
    // A zombie has ended; only its parent has not asked yet.
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    match status {
        Ok(status) => !status.contains("State:\tZ"),
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => Command::new("kill")
            .args(["-0", &pid.to_string()])
            .status()
            .is_ok_and(|s| s.success()),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
