//! A home to run `shoal` in, and what tests do with the processes they start.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use shoal_testkit::{TinyConfig, write_to};
use tempfile::TempDir;

/// A home of its own with a tiny model in it. What it starts, it ends.
pub(crate) struct House {
    pub(crate) folder: TempDir,
    pub(crate) model: String,
}

impl House {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tiny.gguf");
        write_to(&TinyConfig::default(), &path).expect("the model is written");
        let model = path.to_str().expect("UTF-8").to_owned();
        Self { folder, model }
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.file_path(name);
        std::fs::write(&path, bytes).expect("the file is written");
        path
    }

    pub(crate) fn file_path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command
            .args(args)
            .env("SHOAL_HOME", self.home())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn shoal(&self, args: &[&str], variables: &[&str]) -> Output {
        let mut command = self.command(args);
        command.envs(
            variables
                .iter()
                .filter_map(|variable| variable.split_once('=')),
        );
        command.output().expect("shoal runs")
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("shoal starts")
    }

    pub(crate) fn serve(&self, args: &[&str]) -> Front {
        let mut all = vec!["serve", "--port", "0"];
        if !args.contains(&"--attach") {
            all.extend(["--threads", "1", "--model", self.model()]);
        }
        all.extend(args);
        Front::ready(self.spawn(&all))
    }
}

/// A running `shoal serve`. Dropping it ends the cell.
pub(crate) struct Front {
    pub(crate) front: Child,
    pub(crate) ready: String,
    pub(crate) address: String,
}

impl Front {
    /// Waits until it says where it serves.
    pub(crate) fn ready(mut front: Child) -> Self {
        let ready = first_line(&mut front).trim().to_owned();
        let address = ready
            .split(['/', ' '])
            .nth(3)
            .expect("an address in the ready line")
            .to_owned();
        Self {
            front,
            ready,
            address,
        }
    }

    pub(crate) fn health(&self) -> String {
        self.http("GET /health HTTP/1.1", "")
    }

    pub(crate) fn complete(&self) -> String {
        let body = r#"{"model":"tiny","prompt":"abc","max_tokens":4,"temperature":0}"#;
        self.http("POST /v1/completions HTTP/1.1", body)
    }

    pub(crate) fn rank_pids(&self) -> Vec<u32> {
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

    pub(crate) fn http(&self, request: &str, body: &str) -> String {
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

pub(crate) fn is_positive(value: &serde_json::Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

pub(crate) fn first_line(child: &mut Child) -> String {
    let stdout: &mut ChildStdout = child.stdout.as_mut().expect("stdout is piped");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("a line comes");
    line
}

pub(crate) fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
    sent.expect("kill runs");
}

pub(crate) fn lives(pid: u32) -> bool {
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

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
