//! A model hub in miniature: a listing, addresses that lead on to another host, ranges, and faults on demand.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::json;
use shoal_cluster::store::HubConfig;

use super::sha256_hex;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub behaves.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Files of the one repository, `org/model`.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The only token let in, if one is needed.
    pub(crate) token: Option<String>,
    /// Checksum given for all files in place of the true one.
    pub(crate) checksum: Option<String>,
    /// Whether the listing has checksums.
    pub(crate) lists_checksums: bool,
    /// Whether ranges are ignored.
    pub(crate) ignores_ranges: bool,
    /// Bytes after which each of the coming downloads breaks off.
    pub(crate) cuts: VecDeque<usize>,
    /// Whether a download that was cut stays open without another byte, instead of ending.
    pub(crate) stalls: bool,
    /// Statuses of the coming requests, in place of the answer.
    pub(crate) statuses: VecDeque<u16>,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// The running hub; it lives as long as the test program.
#[derive(Clone)]
pub(crate) struct FakeHub {
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<Request>>>,
    address: String,
    files_address: String,
}

impl FakeHub {
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        let hub_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let files_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        let behaviour = Behaviour {
            files: files.collect(),
            lists_checksums: true,
            ..Behaviour::default()
        };
        let hub = Self {
            behaviour: Arc::new(Mutex::new(behaviour)),
            requests: Arc::default(),
            address: address(&hub_listener),
            files_address: address(&files_listener),
        };
        for listener in [hub_listener, files_listener] {
            let hub = hub.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (hub, stream) = (hub.clone(), stream.unwrap());
                    // A client that goes away is no fault of the hub's.
                    thread::spawn(move || hub.answer(stream).ok());
                }
            });
        }
        hub
    }

    pub(crate) fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: Some(self.address.clone()),
            failures_max: 3,
            retry_pause: std::time::Duration::from_millis(1),
            ..HubConfig::default()
        }
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The ranges asked of the host that has the bytes.
    pub(crate) fn ranges(&self) -> Vec<String> {
        let requests = self
            .requests()
            .into_iter()
            .filter(|it| it.path.starts_with("/blobs/"));
        requests.map(|it| it.range.unwrap_or_default()).collect()
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read_request(&stream)?;
        self.requests.lock().unwrap().push(request.clone());
        let mut behaviour = self.behaviour.lock().unwrap();
        if let Some(status) = behaviour.statuses.pop_front() {
            return reply(&mut stream, status, "", b"");
        }
        if let Some(name) = request.path.strip_prefix("/blobs/") {
            let name = decoded(name.split('?').next().unwrap());
            let (_, bytes) = behaviour.files.iter().find(|(it, _)| *it == name).unwrap();
            let bytes = bytes.clone();
            let tag = checksum(&behaviour, &bytes);
            let range = request.range.filter(|_| !behaviour.ignores_ranges);
            let cut = behaviour.cuts.pop_front();
            let stalls = behaviour.stalls;
            drop(behaviour);
            return send_file(stream, &bytes, &tag, range.as_deref(), cut, stalls);
        }
        if let Some(token) = &behaviour.token
            && request.authorization.as_deref() != Some(&format!("Bearer {token}"))
        {
            let status = if request.authorization.is_some() {
                403
            } else {
                401
            };
            return reply(&mut stream, status, "X-Error-Code: GatedRepo\r\n", b"");
        }
        let known_revisions = ["main", "v1", COMMIT];
        if let Some(rest) = request.path.strip_prefix("/api/models/org/model/revision/") {
            let revision = rest.split('?').next().unwrap();
            if known_revisions.contains(&revision) {
                return reply(&mut stream, 200, "", listing(&behaviour).as_bytes());
            }
        }
        let resolved = format!("/org/model/resolve/{COMMIT}/");
        if let Some(name) = request.path.strip_prefix(&resolved) {
            let plain = decoded(name);
            if let Some((_, bytes)) = behaviour.files.iter().find(|(it, _)| *it == plain) {
                let headers = format!(
                    "Location: {}/blobs/{name}?signature=secret\r\nX-Repo-Commit: {COMMIT}\r\n\
                     X-Linked-Size: {}\r\nX-Linked-ETag: \"{}\"\r\n",
                    self.files_address,
                    bytes.len(),
                    checksum(&behaviour, bytes)
                );
                return reply(&mut stream, 302, &headers, b"");
            }
        }
        reply(&mut stream, 404, "X-Error-Code: RepoNotFound\r\n", b"")
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut request = Request {
        path: line.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        authorization: None,
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Ok(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn listing(behaviour: &Behaviour) -> String {
    let siblings: Vec<_> = behaviour
        .files
        .iter()
        .map(|(name, bytes)| {
            let mut sibling = json!({ "rfilename": name });
            if behaviour.lists_checksums {
                sibling["size"] = json!(bytes.len());
                sibling["lfs"] =
                    json!({ "sha256": checksum(behaviour, bytes), "size": bytes.len() });
            }
            sibling
        })
        .collect();
    json!({ "id": "org/model", "sha": COMMIT, "siblings": siblings }).to_string()
}

fn decoded(name: &str) -> String {
    name.replace("%23", "#").replace("%20", " ")
}

fn checksum(behaviour: &Behaviour, bytes: &[u8]) -> String {
    let given = behaviour.checksum.clone();
    given.unwrap_or_else(|| sha256_hex(bytes))
}

fn send_file(
    mut stream: TcpStream,
    bytes: &[u8],
    tag: &str,
    range: Option<&str>,
    cut: Option<usize>,
    stalls: bool,
) -> std::io::Result<()> {
    let total = bytes.len();
    let tag = format!("ETag: \"{tag}\"\r\n");
    let start: Option<usize> = range.map(|it| {
        it.strip_prefix("bytes=")
            .unwrap()
            .trim_end_matches('-')
            .parse()
            .unwrap()
    });
    if start.is_some_and(|start| start >= total) {
        let headers = format!("{tag}Content-Range: bytes */{total}\r\n");
        return reply(&mut stream, 416, &headers, b"");
    }
    let body = &bytes[start.unwrap_or(0)..];
    let (status, range) = match start {
        Some(start) => (
            206,
            format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1),
        ),
        None => (200, String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n{tag}{range}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
    if cut.is_some() && stalls {
        // Ends when the client goes away.
        stream.read_to_end(&mut Vec::new())?;
    }
    stream.shutdown(Shutdown::Write)
}
