//! Several machines, with everything that happens to the network between them: each host is a network namespace.
//!
//! Where the system does not allow that, the tests say so and pass; with `SHOAL_REQUIRE_NETNS=1` they fail.
#![cfg(target_os = "linux")]

mod common;
mod network;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Front, House, PATIENCE, error_of, eventually, first_line, is_positive, signal};
use network::{Harm, Network};

#[test]
fn machines_are_discovered_listed_and_tested() {
    let Some(network) = Network::of(2) else {
        return;
    };
    let lab = Lab::new(&network);
    let recorded = lab.shoal(1, &["fabric", "discover", "--json"]);
    let recording = lab.house.file("host1.json", &recorded.stdout);
    let seen: serde_json::Value = serde_json::from_slice(&recorded.stdout).expect("one object");
    let interface = &seen["machine"]["interfaces"][0];
    assert_eq!(
        (&seen["machine"]["name"], &interface["name"]),
        (&"host1".into(), &"eth0".into())
    );
    assert_eq!(interface["addresses"][0], "10.77.0.2/24");

    let hosts = lab.house.file_path("hosts.json");
    let listed = lab.shoal(
        0,
        &[
            "fabric",
            "discover",
            "--from",
            &recording,
            "--hostfile",
            &hosts,
        ],
    );
    assert!(listed.status.success(), "{listed:?}");
    let text = std::fs::read_to_string(&hosts).expect("it was written");
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(list["backend"], "ring");
    assert_eq!(list["hosts"][1]["ips"][0], "10.77.0.2");

    let _node = lab.node(1);
    let test = [
        "fabric",
        "test",
        "--json",
        "--sizes",
        "4K,1M",
        "--rounds",
        "2",
        "--hostfile",
        &hosts,
    ];
    let outcome = lab.outcome(&test);
    assert_eq!(
        (&outcome["world"], &outcome["transport"]),
        (&2.into(), &"tcp".into())
    );
    assert_eq!(outcome["place"], "network");
    assert_eq!(outcome["correctness"]["wrong"], 0);
    assert!(is_positive(&outcome["correctness"]["bytes"]));

    let shared = lab.outcome(&[&test[..], &["--transport", "shared-memory"]].concat());
    let error = shared["error"].as_str().expect("a reason");
    assert!(
        error.contains("rank 1") && error.contains("another machine"),
        "{error}"
    );

    let elsewhere = lab.shoal(1, &[&test[..], &["--token-file", &lab.token]].concat());
    let error = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(error.contains("this machine is rank 1 (host1)"), "{error}");
}

#[test]
fn a_link_that_is_held_back_is_called_slow() {
    let Some(network) = Network::of(2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    network.limit(1, "50mbit");
    let outcome = lab.outcome(&lab.test(&["4K,1M"], 1));
    assert_eq!(outcome["verdict"]["grade"], "slow", "{outcome}");
    assert_eq!(outcome["correctness"]["wrong"], 0);
    if network.disturb(1, "delay 10ms") {
        let outcome = lab.outcome(&lab.test(&["4K,64K"], 1));
        assert_eq!(outcome["verdict"]["grade"], "slow", "{outcome}");
    }
}

#[test]
fn delay_and_loss_change_no_byte_and_no_token() {
    let Some(network) = Network::of(2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    let told = |cell: &Front| {
        let reply = lab.complete(cell);
        let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: serde_json::Value = serde_json::from_str(body).expect("a JSON body");
        body["choices"][0]["text"].as_str().map(str::to_owned)
    };
    let text = told(&lab.serve(1, &[])).expect("a reply");
    if !network.disturb(1, "delay 2ms 1ms loss 2% reorder 5% duplicate 1%") {
        return;
    }
    assert!(network.disturb(0, "delay 2ms 1ms loss 2%"));
    let outcome = lab.outcome(&lab.test(&["4K,64K"], 1));
    assert_eq!(outcome["correctness"]["wrong"], 0, "{outcome}");
    assert_eq!(told(&lab.serve(1, &[])), Some(text));
}

#[test]
fn a_link_test_names_the_machine_that_is_cut_off() {
    let Some(network) = Network::of(3) else {
        return;
    };
    let lab = Lab::new(&network);
    let _nodes = [lab.node(1), lab.node(2)];
    let harms = [
        (2, Harm::Cable(2)),
        (1, Harm::Way { from: 1, to: 0 }),
        (2, Harm::Way { from: 0, to: 2 }),
    ];
    for (lost, harm) in harms {
        let error = lab.error_of_a_test_during(harm);
        assert!(error.contains(&format!("rank {lost}")), "{harm:?}: {error}");
        network.heal(harm);
        // The nodes are rid of the old ranks and lend themselves again.
        eventually("the links hold again", || {
            lab.outcome(&lab.test(&["4K"], 2))["correctness"]["wrong"] == 0
        });
    }
}

#[test]
fn an_idle_cell_knows_of_a_machine_that_vanished_and_starts_over() {
    let Some(network) = Network::of(2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    let cell = lab.serve(1, &[]);
    assert!(lab.complete(&cell).starts_with("HTTP/1.1 200"));

    network.harm(Harm::Cable(1));
    let cut = Instant::now();
    let mut health = String::new();
    eventually("the loss is known", || {
        health = network.inside(0, || cell.health());
        health.starts_with("HTTP/1.1 503")
    });
    eprintln!(
        "a machine that vanished from an idle cell was missed after {:?}",
        cut.elapsed()
    );
    // By no time-out of a step: nobody was computing.
    assert!(
        health.contains("rank 1") && health.contains("has not answered"),
        "{health}"
    );
    network.heal(Harm::Cable(1));
    eventually("the cell is ready again", || {
        network
            .inside(0, || cell.health())
            .starts_with("HTTP/1.1 200")
    });
    assert!(lab.complete(&cell).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_reply_ends_with_the_name_of_the_machine_that_was_lost_on_the_way() {
    let Some(network) = Network::of(3) else {
        return;
    };
    let lab = Lab::new(&network);
    let _nodes = [lab.node(1), lab.node(2)];
    let cell = lab.serve(2, &["--step-timeout", "3"]);
    // So slow that a reply takes longer than the test.
    network.limit(1, "200kbit");
    let harms = [
        (&["rank 2"][..], Harm::Cable(2)),
        (&["rank 1"], Harm::Way { from: 1, to: 0 }),
        // Rank 0 and the front reach both; one of the two misses the other.
        (&["rank 1", "rank 2"], Harm::Way { from: 1, to: 2 }),
    ];
    for (names, harm) in harms {
        let mut stream = network.inside(0, || lab.begin_reply(&cell));
        let mut line = String::new();
        while !line.starts_with("data:") {
            line.clear();
            assert_ne!(
                stream.read_line(&mut line).expect("a line"),
                0,
                "{harm:?}: no token came"
            );
        }
        network.harm(harm);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the stream ends");
        let is_named = names.iter().any(|name| rest.contains(name));
        assert!(rest.contains("\"error\"") && is_named, "{harm:?}: {rest}");
        network.heal(harm);
        eventually("the cell is ready again", || {
            network
                .inside(0, || cell.health())
                .starts_with("HTTP/1.1 200")
        });
    }
}

#[test]
fn two_cables_carry_a_link_together_unless_one_is_left_out() {
    let Some(network) = Network::with_cables(2, 2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    network.limit_all("200mbit");
    // Bytes that both hosts send over each cable while a link is tested.
    let tested = |interfaces: &[&str]| {
        let sent = || [0, 1].map(|cable| [0, 1].map(|host| network.bytes_sent(host, cable)));
        let before = sent();
        let mut args = lab.test(&["4K,1M"], 1);
        args.extend(interfaces.iter().map(|word| (*word).to_owned()));
        let outcome = lab.outcome(&args);
        let after = sent();
        let grown = |cable: usize| [0, 1].map(|host| after[cable][host] - before[cable][host]);
        (outcome, [0, 1].map(grown))
    };
    // Whatever else is said on a cable, the network's own neighbourly words and the orders to the node, is less.
    const FEW: u64 = 256 << 10;

    let (outcome, [first, second]) = tested(&[]);
    assert_eq!(outcome["links"][0]["cables"], 2, "{outcome}");
    assert_eq!(outcome["correctness"]["wrong"], 0, "{outcome}");
    for (one, other) in first.into_iter().zip(second) {
        assert!(one > FEW && other > FEW, "{first:?} and {second:?} bytes");
        let share = one as f64 / (one + other) as f64;
        assert!(
            (0.4..0.6).contains(&share),
            "{first:?} and {second:?} bytes"
        );
    }

    let (outcome, [first, second]) = tested(&["--interfaces", "^eth1"]);
    assert_eq!(outcome["links"][0]["cables"], 1, "{outcome}");
    assert!(first.iter().all(|bytes| *bytes > FEW), "{first:?}");
    assert!(second.iter().all(|bytes| *bytes < FEW), "{second:?}");

    // The ranks still find each other by the first.
    let (outcome, [first, second]) = tested(&["--interfaces", "eth1"]);
    assert_eq!(outcome["links"][0]["cables"], 1, "{outcome}");
    assert_eq!(outcome["correctness"]["wrong"], 0, "{outcome}");
    assert!(first.iter().all(|bytes| *bytes < FEW), "{first:?}");
    assert!(second.iter().all(|bytes| *bytes > FEW), "{second:?}");

    network.harm(Harm::SecondNetwork);
    let (outcome, _) = tested(&[]);
    assert_eq!(outcome["links"][0]["cables"], 1, "{outcome}");
    assert_eq!(outcome["correctness"]["wrong"], 0, "{outcome}");

    let (outcome, _) = tested(&["--interfaces", "^eth*"]);
    let error = outcome["error"].as_str().expect("a reason");
    let says = ["rank 1", "10.77.0.1 on eth0", "SHOAL_INTERFACES"];
    assert!(says.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn a_copy_goes_over_both_cables_unless_one_is_left_out() {
    let Some(network) = Network::with_cables(2, 2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    network.limit_all("200mbit");
    const BYTES: usize = 16 << 20;
    let data: Vec<u8> = (0..BYTES).map(|at| ((at * at) >> 13) as u8).collect();
    let file = lab.house.file("big", &data);
    // What is said beside the bytes is less.
    const FEW: u64 = 256 << 10;
    // Bytes that a host sends over each cable while a file is copied.
    let copied = |from: usize, words: &[&str]| {
        let sent = || [0, 1].map(|cable| network.bytes_sent(from, cable));
        let before = sent();
        let outcome = lab.outcome(&[&["cp", "--json"], words].concat());
        assert_eq!(outcome["transport"], "tcp", "{outcome}");
        let after = sent();
        (outcome, [after[0] - before[0], after[1] - before[1]])
    };
    let is_even = |[one, other]: [u64; 2]| {
        let share = one as f64 / (one + other) as f64;
        assert!((0.4..0.6).contains(&share), "{one} and {other} bytes");
        assert!(one + other > BYTES as u64);
    };
    let there = |name: &str| format!("{}:{name}", Lab::address(1));

    let (outcome, sent) = copied(0, &[&file, &there("a")]);
    assert_eq!(outcome["cables"], 2, "{outcome}");
    is_even(sent);
    let back = lab.house.file_path("back");
    let (outcome, sent) = copied(1, &["--connections", "1", &there("a"), &back]);
    assert_eq!(outcome["cables"], 2, "{outcome}");
    is_even(sent);
    assert!(std::fs::read(&back).expect("the copy") == data);

    // A bound is that of both cables together.
    let (outcome, sent) = copied(0, &["--limit-rate", "8M", &file, &there("b")]);
    let rate = outcome["bytes_per_second"].as_f64().expect("a rate");
    assert!(rate < 8.2e6, "{outcome}");
    assert!(sent.iter().all(|bytes| *bytes > FEW), "{sent:?}");

    network.harm(Harm::SecondNetwork);
    let (outcome, [first, second]) = copied(0, &[&file, &there("c")]);
    assert_eq!(outcome["cables"], 1, "{outcome}");
    assert!(first > BYTES as u64 && second < FEW, "{first}, {second}");
}

/// The sender's system would go on sending for a quarter of an hour.
#[test]
fn a_copy_ends_soon_after_one_of_its_cables_went_dead() {
    let Some(network) = Network::with_cables(2, 2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    network.limit_all("20mbit");
    let file = lab.house.file("big", &vec![7; 16 << 20]);
    let there = format!("{}:big", Lab::address(1));
    let words = ["cp", "--json", "--token-file", &lab.token, &file, &there];
    let before = network.bytes_sent(0, 1);
    let copy = lab.spawn(0, &words);
    eventually("the second cable carries bytes", || {
        network.bytes_sent(0, 1) - before > 512 << 10
    });
    network.harm(Harm::SecondNetwork);
    let cut = Instant::now();
    let output = copy.wait_with_output().expect("it ends");
    let took = cut.elapsed();
    eprintln!("a copy over a cable that went dead ended after {took:?}");
    assert!(took < Duration::from_secs(180), "{took:?}");
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(outcome["ok"], false, "{outcome}");
    // Over the cable that is left, what is there already is not sent again.
    let again = lab.outcome(&["cp", "--json", &file, &there]);
    assert_eq!(again["ok"], true, "{again}");
    let received = again["nodes"][0]["bytes_received"].as_u64();
    assert!(received.expect("a number") < 16 << 20, "{again}");
}

#[test]
fn a_cell_survives_the_loss_of_one_cable_of_two() {
    let Some(network) = Network::with_cables(2, 2) else {
        return;
    };
    let lab = Lab::new(&network);
    let _node = lab.node(1);
    let cell = lab.serve(1, &["--step-timeout", "3"]);
    for cable in [0, 1] {
        // So slow that a reply takes longer than the test.
        network.limit_on(1, cable, "200kbit");
    }
    let before = network.bytes_sent(1, 1);
    let mut stream = network.inside(0, || lab.begin_reply(&cell));
    eventually("the second cable carries the reply", || {
        network.bytes_sent(1, 1) - before > 32 << 10
    });
    network.harm(Harm::SecondCable(1));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the stream ends");
    let says = ["\"error\"", "rank 1", "the cable from 10.77.1."];
    assert!(says.iter().all(|word| rest.contains(word)), "{rest}");
    // Over the one that is left.
    eventually("the cell is ready again", || {
        network
            .inside(0, || cell.health())
            .starts_with("HTTP/1.1 200")
    });
    assert!(lab.complete(&cell).starts_with("HTTP/1.1 200"));
}

/// A home, a token, and hosts to run `shoal` on.
struct Lab<'a> {
    network: &'a Network,
    house: House,
    token: String,
}

impl<'a> Lab<'a> {
    fn new(network: &'a Network) -> Self {
        let house = House::new();
        let token = house.file("token", b"a secret\n");
        Self {
            network,
            house,
            token,
        }
    }

    fn shoal(&self, host: usize, args: &[&str]) -> Output {
        self.network
            .on(host, &self.house.command(args))
            .output()
            .expect("shoal runs")
    }

    fn spawn(&self, host: usize, args: &[&str]) -> Child {
        let mut command = self.network.on(host, &self.house.command(args));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("shoal starts")
    }

    fn node(&self, host: usize) -> Node {
        let listen = Self::address(host);
        let args = [
            "node",
            "--threads",
            "1",
            "--listen",
            &listen,
            "--token-file",
            &self.token,
        ];
        let mut command = self.network.on(host, &self.house.command(&args));
        let mut node = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("shoal starts");
        assert!(first_line(&mut node).starts_with("waiting "));
        Node(node)
    }

    fn address(host: usize) -> String {
        format!("{}:7070", Network::ip(host))
    }

    /// Flags that name the hosts 1 to `nodes`.
    fn peers(&self, nodes: usize) -> Vec<String> {
        let peers = (1..=nodes).flat_map(|host| ["--peer".to_owned(), Self::address(host)]);
        peers
            .chain(["--token-file".to_owned(), self.token.clone()])
            .collect()
    }

    /// A short link test over the hosts 1 to `nodes`.
    fn test(&self, sizes: &[&str], nodes: usize) -> Vec<String> {
        let words = ["fabric", "test", "--json", "--rounds", "2", "--sizes"];
        let words = words
            .into_iter()
            .chain(sizes.iter().copied())
            .map(str::to_owned);
        words.chain(self.peers(nodes)).collect()
    }

    /// What a link test on host 0 prints.
    fn outcome(&self, args: &[impl AsRef<str>]) -> serde_json::Value {
        let mut args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        if !args.contains(&"--token-file") {
            args.extend(["--token-file", &self.token]);
        }
        let output = self.shoal(0, &args);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no object: {}", error_of(&output)))
    }

    /// What a link test over the hosts 1 and 2 says when the network is harmed in its middle.
    fn error_of_a_test_during(&self, harm: Harm) -> String {
        let mut args = self.test(&["4K"], 2);
        args.extend(["--verbose", "--stress", "--seconds", "3600"].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut front = self.spawn(0, &args);
        let mut notes = BufReader::new(front.stderr.take().expect("stderr is piped")).lines();
        // All ranks are there, and at work, once a note tells of a round.
        let is_round = |note: String| note.starts_with("all_reduce");
        assert!(notes.any(|note| is_round(note.expect("UTF-8"))), "no round");
        self.network.harm(harm);
        let output = front.wait_with_output().expect("it ends");
        assert!(!output.status.success());
        let outcome: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("one object");
        outcome["error"].as_str().expect("a reason").to_owned()
    }

    fn serve(&self, nodes: usize, extra: &[&str]) -> Front {
        let peers = self.peers(nodes);
        let words = [
            "serve",
            "--port",
            "0",
            "--threads",
            "1",
            "--model",
            self.house.model(),
        ];
        let args: Vec<&str> = words
            .into_iter()
            .chain(peers.iter().map(String::as_str))
            .chain(extra.iter().copied())
            .collect();
        let mut command = self.network.on(0, &self.house.command(&args));
        let front = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("shoal starts");
        Front::ready(front)
    }

    fn complete(&self, cell: &Front) -> String {
        self.network.inside(0, || cell.complete())
    }

    /// Asks for a long reply, token by token.
    fn begin_reply(&self, cell: &Front) -> BufReader<TcpStream> {
        let body =
            r#"{"model":"tiny","prompt":"abc","max_tokens":400,"temperature":0,"stream":true}"#;
        let mut stream = TcpStream::connect(&cell.address).expect("the front listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout can be set");
        let len = body.len();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}"
        )
        .expect("the front reads");
        BufReader::new(stream)
    }
}

/// A running `shoal node`.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        signal("TERM", self.0.id());
        let _ = self.0.wait();
    }
}
