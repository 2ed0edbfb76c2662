//! The commands that reach other machines, over nodes of this one: lending, copying, testing links.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Output, Stdio};

use common::{House, error_of, eventually, first_line, is_positive, lives, signal};

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
fn discovery_shows_this_machine_and_changes_nothing() {
    let house = House::new();
    let output = house.shoal(&["fabric", "discover", "--json"], &[]);
    assert!(output.status.success(), "{output:?}");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert!(printed["machine"]["name"].is_string() && printed["machine"]["interfaces"].is_array());
    assert_eq!(printed["hostfile"], serde_json::Value::Null);
    let text = house.shoal(&["fabric", "discover"], &[]);
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    assert!(
        text.contains("\ninterfaces\n") && text.contains("\nRDMA devices\n"),
        "{text}"
    );
    let matrix = house.file("devices.json", br#"[[null, "a"], ["b", null]]"#);
    let devices = format!("MLX_IBV_DEVICES={matrix}");
    let variables = [
        "MLX_RANK=1",
        &devices,
        "MLX_JACCL_COORDINATOR=10.0.0.1:32323",
    ];
    let launched = house.shoal(&["fabric", "discover"], &variables);
    let launched = String::from_utf8(launched.stdout).expect("UTF-8");
    let line = "started by mlx.launch: rank 1 of 2, RDMA, coordinator 10.0.0.1:32323";
    assert!(launched.contains(line), "{launched}");
    let graph = house.shoal(&["fabric", "discover", "--dot"], &[]);
    assert!(graph.stdout.starts_with(b"graph fabric {"), "{graph:?}");

    let hosts = house.file_path("hosts.json");
    let alone = house.shoal(&["fabric", "discover", "--hostfile", &hosts], &[]);
    assert!(
        error_of(&alone).contains("one machine has nobody to be linked with"),
        "{alone:?}"
    );
    assert!(!Path::new(&hosts).exists());
    let strange = house.file("strange.json", b"{}");
    let output = house.shoal(&["fabric", "discover", "--from", &strange], &[]);
    assert!(
        error_of(&output).contains("is not what `shoal fabric discover --json` prints"),
        "{output:?}"
    );

    // Two recordings of one machine are no two machines.
    let own = house.file("own.json", printed.to_string().as_bytes());
    let output = house.shoal(
        &["fabric", "discover", "--from", &own, "--hostfile", &hosts],
        &[],
    );
    assert!(
        error_of(&output).contains("two recordings are of"),
        "{output:?}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn discovery_sets_up_no_network_but_that_of_macs() {
    let house = House::new();
    let output = house.shoal(&["fabric", "discover", "--json"], &[]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut other: serde_json::Value = serde_json::from_str(&text).expect("one object");
    other["machine"]["name"] = "another".into();
    let interface =
        serde_json::json!({"name": "x0", "is_up": true, "addresses": ["203.0.113.9/24"]});
    other["machine"]["interfaces"] = serde_json::json!([interface]);
    let other = house.file("another.json", other.to_string().as_bytes());
    let args = ["fabric", "discover", "--from", &other];
    let apart = house.shoal(&args, &[]);
    let apart = String::from_utf8(apart.stdout).expect("UTF-8");
    assert!(
        apart.contains("no network has an address of every machine"),
        "{apart}"
    );
    let output = house.shoal(&[&args[..], &["--apply"]].concat(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_of(&output).contains("--apply sets up Thunderbolt links of Macs only"),
        "{output:?}"
    );
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
