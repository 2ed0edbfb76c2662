//! Starting one rank as a process of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shoal_engine::KvFormat;
use shoal_fabric::{Exchange, Key};
use thiserror::Error;

use crate::carrier::Carrier;
use crate::link_test::Plan;

/// Everything a rank process needs to know; written to its standard input as one line of JSON.
///
/// There is deliberately no `Debug`: the key must not reach a log.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankLaunch {
    /// Cell that the rank belongs to, shown in logs and process lists.
    pub cell: String,
    /// Its place in the group.
    pub rank: u16,
    /// Number of ranks.
    pub world: u16,
    /// Shared secret of this formation of the cell, 64 hexadecimal digits.
    pub key_hex: String,
    /// Compute threads; `None` takes every core.
    pub threads: Option<usize>,
    /// Instruction set to force, as `SHOAL_ISA` would; `None` picks the best.
    pub isa: Option<String>,
    /// First core to pin threads to; `None` leaves placement to the operating system.
    pub first_core: Option<usize>,
    /// Longest silence of a peer within a step.
    pub step_timeout_ms: u64,
    /// Longest wait for all ranks to arrive.
    pub join_timeout_ms: u64,
    /// What it is for.
    pub task: TaskLaunch,
}

/// What a rank is for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum TaskLaunch {
    /// To hold its part of a model.
    Model(RoleLaunch),
    /// To test its links, without a model.
    LinkTest(LinkTestRole),
}

/// What sets rank 0 of a cell apart from the others.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RoleLaunch {
    /// Rank 0: reads the model, schedules, samples, and talks to the front.
    Root {
        /// GGUF file.
        model: PathBuf,
        /// Name under which the model is served.
        model_name: String,
        /// Unix socket on which the front is awaited.
        socket: PathBuf,
        /// Address on which the other ranks are awaited; port 0 picks one.
        listen: SocketAddr,
        /// Weight of each rank in the split.
        shares: Vec<u32>,
        /// Longest sequence in tokens.
        context: u32,
        /// What keys and values are kept as.
        kv_format: KvFormat,
        /// What partial sums travel as between the ranks.
        exchange: Exchange,
        /// Requests computed at once.
        running_max: usize,
        /// Requests waiting at most.
        waiting_max: usize,
        /// Tokens in a step at most.
        batch_tokens_max: usize,
        /// How long the cell outlives its front.
        orphan_timeout_ms: u64,
    },
    /// Any other rank: everything else arrives over the fabric.
    Member {
        /// Where rank 0 waits.
        rendezvous: SocketAddr,
    },
}

/// What sets rank 0 of a link test apart from the others.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum LinkTestRole {
    /// Rank 0: tells on its standard output what the test finds.
    Root {
        /// Address on which the other ranks are awaited; port 0 picks one.
        listen: SocketAddr,
        /// What all of them do.
        plan: Plan,
        /// What shall carry the bytes.
        carrier: Carrier,
        /// Over which interfaces of this machine, where somebody has said so.
        interfaces: Option<String>,
    },
    /// Any other rank: the plan arrives over the fabric.
    Member {
        /// Where rank 0 waits.
        rendezvous: SocketAddr,
        /// What shall carry the bytes.
        carrier: Carrier,
    },
}

impl RankLaunch {
    /// Returns the secret of the formation.
    ///
    /// # Errors
    /// [`BadKey`] when the launch was not written by a front or a node.
    pub fn key(&self) -> Result<Key, BadKey> {
        let mut key = [0; 32];
        hex::decode_to_slice(&self.key_hex, &mut key)?;
        Ok(Key::from_bytes(key))
    }
}

/// A launch holds no key. Only a parent that is not Shoal writes such a one.
#[derive(Debug, Error)]
#[error("the rank's key is unusable: {0}; ranks are started by fronts and nodes only")]
pub struct BadKey(#[from] hex::FromHexError);

/// The binary that runs ranks, and the flags that every rank gets (logging).
#[derive(Clone, Debug)]
pub struct Program {
    /// Path of the binary, usually the running one.
    pub path: PathBuf,
    /// Flags placed before the `rank` subcommand.
    pub flags: Vec<String>,
}

/// A rank could not be started. The machine's owner can fix it.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The operating system refused to start the process.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// Binary that was to run.
        program: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A rank running on this machine. Dropping it kills the process.
pub(crate) struct RankProcess {
    pid: u32,
    exit: Arc<Exit>,
}

struct Exit {
    /// How the process ended, in words; `None` while it runs.
    reason: Mutex<Option<String>>,
    changed: Condvar,
}

impl RankProcess {
    pub(crate) fn spawn(program: &Program, launch: &RankLaunch) -> Result<Self, LaunchError> {
        Self::start(program, launch, Stdio::null()).map(|(process, _no_stdout)| process)
    }

    /// Starts a rank that tells something on its standard output.
    pub(crate) fn spawn_telling(
        program: &Program,
        launch: &RankLaunch,
    ) -> Result<(Self, ChildStdout), LaunchError> {
        let (process, stdout) = Self::start(program, launch, Stdio::piped())?;
        Ok((process, stdout.expect("stdout was piped above")))
    }

    fn start(
        program: &Program,
        launch: &RankLaunch,
        stdout: Stdio,
    ) -> Result<(Self, Option<ChildStdout>), LaunchError> {
        let failed = |source| LaunchError::Spawn {
            program: program.path.display().to_string(),
            source,
        };
        let mut child = Command::new(&program.path)
            .args(&program.flags)
            .args(["rank", "--cell", &launch.cell])
            .args(["--rank", &launch.rank.to_string()])
            .args(["--world", &launch.world.to_string()])
            .stdin(Stdio::piped())
            .stdout(stdout)
            // A group of its own: Ctrl-C at the terminal reaches the front alone, which then ends the cell in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (pid, stdout) = (child.id(), child.stdout.take());
        let line = serde_json::to_string(launch).expect("a launch is plain data");
        let mut stdin = child.stdin.take().expect("stdin was piped above");
        // A child that died at once shows in its exit status, which says more than this write's error.
        let _ = writeln!(stdin, "{line}");
        drop(stdin);

        let exit = Arc::new(Exit {
            reason: Mutex::new(None),
            changed: Condvar::new(),
        });
        let process = Self {
            pid,
            exit: Arc::clone(&exit),
        };
        let waiter = thread::Builder::new().name(format!("wait-rank-{}", launch.rank));
        let waiting = waiter.spawn(move || {
            let reason = match child.wait() {
                Ok(status) => describe(status),
                Err(error) => format!("its end cannot be told: {error}"),
            };
            *exit.lock() = Some(reason);
            exit.changed.notify_all();
        });
        // Without its waiter the process is killed here, by the drop.
        waiting.map_err(failed)?;
        Ok((process, stdout))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How the process ended, in words, or `None` while it runs.
    pub(crate) fn ended(&self) -> Option<String> {
        self.exit.lock().clone()
    }

    /// Waits until the process has ended or the deadline passes; says whether it ended.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let running = |reason: &mut Option<String>| reason.is_none();
        let waited = self
            .exit
            .changed
            .wait_timeout_while(self.exit.lock(), left, running);
        waited.expect("no panic under this lock").0.is_some()
    }

    /// Kills the process and waits, briefly, until it is gone.
    pub(crate) fn kill(&self) {
        self.kill_soon();
        self.wait_until(Instant::now() + KILL_WAIT);
    }

    /// Kills the process without waiting: several that are killed one right after the other have no time to complain of
    /// each other's loss.
    pub(crate) fn kill_soon(&self) {
        if self.ended().is_none()
            && let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Exit {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.reason.lock().expect("no panic under this lock")
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => "it exited".to_owned(),
        (Some(code), _) => format!("it exited with status {code}; its log says why"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// A killed process is gone within milliseconds unless the kernel itself is stuck.
const KILL_WAIT: Duration = Duration::from_secs(2);
