//! Being told to end.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, SIGTERM, and the terminal going away.
///
/// Made before the first rank is started: from then on a signal is never missed, and never ends the process before its
/// ranks.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Nothing where it was switched off for this process, as `nohup` does.
    hangup: Option<Signal>,
}

impl Signals {
    /// Catches the signals. Needs a runtime.
    pub(crate) fn catch() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: match ignores_hangup() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    /// Completes at any of them, and says whether it was Ctrl-C, by which a chat means less than its end.
    pub(crate) async fn any(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
            () = hung_up(&mut self.hangup) => false,
        }
    }

    /// Completes at any of them but Ctrl-C.
    pub(crate) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            () = hung_up(&mut self.hangup) => {}
        }
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Says whether this process was started to outlive its terminal, where the system tells.
fn ignores_hangup() -> bool {
    const HANGUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (HANGUP - 1) & 1 == 1)
}
