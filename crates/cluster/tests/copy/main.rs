//! Copies between nodes on loopback, and what hostile holders of the token can do.

mod cables;
mod cut;
mod hostile;
mod relay;
mod trees;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use shoal_cluster::Carrier;
use shoal_cluster::Program;
use shoal_cluster::copy::{CopyConfig, CopyError, CopySummary, Progress, RelPath, pull, push};
use shoal_cluster::node::{Node, NodeConfig};
use shoal_fabric::Key;
use shoal_fabric::channel::Channel;
use shoal_fabric::lane::{Lane, Lanes};
use shoal_fabric::tcp::Config;
use tempfile::TempDir;

const CHUNK: usize = 256 << 10;

/// A node on loopback and the folder it serves.
struct Served {
    address: String,
    root: Folder,
    lanes: Mutex<Vec<Lane>>,
}

impl Served {
    fn new() -> Self {
        Self::linked(Config::default())
    }

    fn linked(links: Config) -> Self {
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
            links,
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
        let mut lanes = self.connect();
        lanes
            .send(format!(r#"{{"Copy":{{"Lanes":{{"session":{session:?}}}}}}}"#).as_bytes())
            .unwrap();
        let mut lanes = Lanes::lead(lanes, &Config::default(), &token(), soon()).unwrap();
        self.lanes.lock().unwrap().append(&mut lanes.lanes);
        channel.send(br#"{"LanesOpen":{"connections":1}}"#).unwrap();
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
        carrier: Carrier::Auto,
        links: Config::default(),
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

fn push_order(to: &str) -> String {
    format!(
        r#"{{"Copy":{{"Push":{{"session":"s{}","lanes":1,"to":{{"path":{to:?},"is_folder":true,"verify":false}},"limit_bytes_per_second":null,"carrier":"Auto","then":[]}}}}}}"#,
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
