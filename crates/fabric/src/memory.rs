//! Links inside one process: bounded pipes in memory.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::link::{Interest, Links, Transport};

/// The links of one rank whose peers are in the same process.
pub(crate) struct MemoryLinks {
    /// By peer; the place of the rank itself is empty.
    peers: Vec<Option<PipePair>>,
    bell: Arc<Bell>,
}

/// Returns the links of each of `world` ranks.
pub(crate) fn mesh(world: usize) -> Vec<MemoryLinks> {
    let bells: Vec<Arc<Bell>> = (0..world).map(|_| Arc::default()).collect();
    let pipes: Vec<Vec<Arc<Pipe>>> = (0..world)
        .map(|_| (0..world).map(|_| Arc::default()).collect())
        .collect();
    let links_of = |rank: usize| {
        let pair = |peer: usize| PipePair {
            incoming: Arc::clone(&pipes[peer][rank]),
            outgoing: Arc::clone(&pipes[rank][peer]),
            bell: Arc::clone(&bells[peer]),
        };
        let peers = (0..world)
            .map(|peer| (peer != rank).then(|| pair(peer)))
            .collect();
        MemoryLinks {
            peers,
            bell: Arc::clone(&bells[rank]),
        }
    };
    (0..world).map(links_of).collect()
}

impl Links for MemoryLinks {
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let pair = self.pair(peer)?;
        let taken = pair.outgoing.write(parts)?;
        if taken > 0 {
            pair.bell.ring();
        }
        Ok(taken)
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        let pair = self.pair(peer)?;
        let got = pair.incoming.read(into);
        if got.is_some_and(|bytes| bytes > 0) {
            pair.bell.ring();
        }
        Ok(got)
    }

    /// Wakes for any of the peers, not only for those asked for.
    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
        for interest in interests {
            let pair = self.pair(interest.peer)?;
            // The bell may have rung for this before, and has been heard since.
            if interest.read && pair.incoming.is_readable()
                || interest.write && pair.outgoing.is_writable()
            {
                return Ok(());
            }
        }
        self.bell.wait(timeout);
        Ok(())
    }

    fn transport(&self, peer: usize) -> Option<Transport> {
        self.pair(peer).ok().map(|_| Transport::InProcess)
    }
}

impl MemoryLinks {
    fn pair(&self, peer: usize) -> io::Result<&PipePair> {
        self.peers
            .get(peer)
            .and_then(Option::as_ref)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for MemoryLinks {
    fn drop(&mut self) {
        for pair in self.peers.iter().flatten() {
            pair.incoming.close();
            pair.outgoing.close();
            pair.bell.ring();
        }
    }
}

/// Both directions of one link, and what wakes the other end.
struct PipePair {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    bell: Arc<Bell>,
}

/// One direction of a link.
#[derive(Default)]
struct Pipe(Mutex<PipeState>);

struct PipeState {
    bytes: VecDeque<u8>,
    closed: bool,
}

impl Default for PipeState {
    fn default() -> Self {
        Self {
            // As much as it ever holds, so that no write is the first to need it.
            bytes: VecDeque::with_capacity(PIPE_BYTES),
            closed: false,
        }
    }
}

impl Pipe {
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut taken = 0;
        for part in parts {
            let room = PIPE_BYTES - state.bytes.len();
            let part = &part[..part.len().min(room)];
            state.bytes.extend(part);
            taken += part.len();
        }
        Ok(taken)
    }

    fn read(&self, into: &mut [u8]) -> Option<usize> {
        let mut state = self.state();
        match state
            .bytes
            .read(into)
            .expect("reading from memory succeeds")
        {
            0 if !state.closed => None,
            bytes => Some(bytes),
        }
    }

    fn is_readable(&self) -> bool {
        let state = self.state();
        state.closed || !state.bytes.is_empty()
    }

    fn is_writable(&self) -> bool {
        let state = self.state();
        state.closed || state.bytes.len() < PIPE_BYTES
    }

    fn close(&self) {
        self.state().closed = true;
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        // A panic elsewhere leaves the queue itself whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one rank; a ring before the wait is not lost.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    waiting: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.waiting.notify_one();
    }

    fn wait(&self, timeout: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = self
            .waiting
            .wait_timeout_while(rung, timeout, |rung| !*rung);
        let (mut rung, _) = woken.unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// Bound of one pipe; smaller than large messages, so that tests see partial writes as sockets give them.
const PIPE_BYTES: usize = 64 * 1024;
