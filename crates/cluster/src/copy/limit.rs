//! A bound on how fast bytes leave.

use std::io::{self, Write};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::lane::Lane;

/// Lets so many bytes a second pass, over all lanes together.
pub(super) struct Limit {
    bytes_per_second: u64,
    /// When the next byte may leave.
    free_at: Mutex<Instant>,
}

impl Limit {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Bytes that leave at once: few enough that nobody sleeps for long, whoever ends the copy meanwhile.
    fn piece_bytes(&self) -> usize {
        usize::try_from(self.bytes_per_second / 10)
            .map_or(PIECE_BYTES, |it| it.clamp(1, PIECE_BYTES))
    }

    /// Waits until so many bytes may leave.
    pub(super) fn pass(&self, bytes: usize) {
        let mut free_at = self.free_at.lock().expect("no panic under this lock");
        let now = Instant::now();
        let wait = self.reserve(&mut free_at, now, bytes);
        drop(free_at);
        thread::sleep(wait);
    }

    /// Books the line for so many bytes and returns how long until they may leave.
    fn reserve(&self, free_at: &mut Instant, now: Instant, bytes: usize) -> Duration {
        let begins = (*free_at).max(now);
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        *free_at = begins + takes;
        begins - now
    }
}

/// Writes to a lane, under a limit if there is one.
pub(super) fn write(limit: Option<&Limit>, lane: &mut Lane, bytes: &[u8]) -> io::Result<()> {
    let Some(limit) = limit else {
        return lane.write_all(bytes);
    };
    bytes.chunks(limit.piece_bytes()).try_for_each(|piece| {
        limit.pass(piece.len());
        lane.write_all(piece)
    })
}

/// The most that leaves at once under a limit.
const PIECE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_one_after_the_other_and_idle_time_is_not_saved_up() {
        let limit = Limit::new(1000);
        let start = Instant::now();
        let mut free_at = start;
        let second = Duration::from_secs(1);
        assert_eq!(limit.reserve(&mut free_at, start, 1000), Duration::ZERO);
        assert_eq!(limit.reserve(&mut free_at, start, 500), second);
        assert_eq!(limit.reserve(&mut free_at, start + second, 1), second / 2);
        assert_eq!(
            limit.reserve(&mut free_at, start + 9 * second, 1),
            Duration::ZERO
        );
    }
}
