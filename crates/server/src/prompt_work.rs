//! Making prompts, off the async threads and only a few at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Turns for work that keeps a core busy. Who goes away while waiting for a turn leaves no work behind.
pub(crate) struct PromptWork {
    turns: Arc<Semaphore>,
}

/// Most prompts made at once. The ranks want the cores more than a queue of prompts does.
const AT_ONCE: usize = 4;

impl PromptWork {
    pub(crate) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Runs `work` on a blocking thread when it is its turn.
    ///
    /// # Errors
    /// If `work` panics.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, JoinError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        spawn_blocking(move || {
            // The turn is the work's, not its caller's, who may be gone by now.
            let _turn = turn;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn work_beyond_the_bound_waits_and_its_wait_can_end() {
        let work = PromptWork::new();
        let gates: Vec<_> = (0..AT_ONCE).map(|_| channel::<()>()).collect();
        let (open, closed): (Vec<_>, Vec<_>) = gates.into_iter().unzip();
        let mut busy = Box::pin(join_all(
            closed.into_iter().map(|gate| work.run(move || gate.recv())),
        ));
        assert!(busy.as_mut().now_or_never().is_none());
        assert_eq!(work.turns.available_permits(), 0);

        let mut dropped = Box::pin(work.run(|| unreachable!("nobody waits for it any more")));
        assert!(dropped.as_mut().now_or_never().is_none());
        drop(dropped);
        let mut next = Box::pin(work.run(|| "done"));
        assert!(next.as_mut().now_or_never().is_none());

        for gate in open {
            gate.send(()).expect("the work waits");
        }
        assert_eq!(next.await.expect("no panic"), "done");
        busy.await;
    }

    #[tokio::test]
    async fn panic_gives_the_turn_back() {
        let work = PromptWork::new();
        for _ in 0..=AT_ONCE {
            assert!(work.run(|| panic!("on purpose")).await.is_err());
        }
        assert_eq!(work.turns.available_permits(), AT_ONCE);
    }
}
