//! Ranks that an earlier front started on this machine: not our children, known by their process ids alone.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The local ranks of a cell that was found running. Dropping it kills what is left of them.
pub(crate) struct FoundRanks {
    cell: String,
    pids: Vec<u32>,
}

impl FoundRanks {
    pub(crate) fn new(cell: String, pids: Vec<u32>) -> Self {
        Self { cell, pids }
    }

    /// Waits until all have ended, or the deadline passes.
    pub(crate) fn wait_until(&self, deadline: Instant) {
        while any_lives(&self.cell, &self.pids) && Instant::now() < deadline {
            thread::sleep(POLL_EVERY);
        }
    }
}

impl Drop for FoundRanks {
    fn drop(&mut self) {
        for pid in living(&self.cell, &self.pids) {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.wait_until(Instant::now() + KILL_WAIT);
    }
}

/// Says whether any of these processes is a living rank of the cell.
pub(crate) fn any_lives(cell: &str, pids: &[u32]) -> bool {
    living(cell, pids).next().is_some()
}

fn living(cell: &str, pids: &[u32]) -> impl Iterator<Item = Pid> {
    let pids = pids.iter().filter_map(|pid| Pid::from_raw(*pid as i32));
    pids.filter(move |pid| test_kill_process(*pid).is_ok() && is_rank_of(*pid, cell))
}

/// Process ids are used again by the system, so the command line must name the cell; its random name is nobody else's.
fn is_rank_of(pid: Pid, cell: &str) -> bool {
    let pid = pid.as_raw_nonzero().to_string();
    // Without /proc (macOS), ps tells.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).or_else(|_| {
        let output = Command::new("ps")
            .args(["-o", "args=", "-p", &pid])
            .output();
        output.map(|output| output.stdout)
    });
    line.is_ok_and(|line| String::from_utf8_lossy(&line).contains(cell))
}

const POLL_EVERY: Duration = Duration::from_millis(10);
const KILL_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::{FoundRanks, any_lives};

    #[test]
    fn only_processes_that_name_the_cell_are_killed() {
        let sleeper = |name: &str| {
            let mut command = Command::new("sh");
            command
                .args(["-c", "echo; read line", "rank", "--cell", name])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = command.spawn().expect("sh runs");
            // Until it runs, its command line may still be empty.
            let output = child.stdout.as_mut().expect("it is piped");
            output.read_exact(&mut [0]).expect("it says so");
            child
        };
        let mut ours = sleeper("0123abcd");
        let mut other = sleeper("ffff0000");
        let reaper = {
            let ranks = FoundRanks::new("0123abcd".to_owned(), vec![ours.id(), other.id()]);
            assert!(any_lives("0123abcd", &ranks.pids));
            std::thread::spawn(move || drop(ranks))
        };
        assert!(!ours.wait().expect("it can be waited for").success());
        reaper.join().expect("no panic");
        assert!(
            other.try_wait().expect("it can be asked").is_none(),
            "a stranger was killed"
        );
        other.kill().expect("it can be killed");
        other.wait().expect("it can be waited for");
    }
}
