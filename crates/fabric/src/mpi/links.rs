//! The links of one rank to all others, over MPI.

use std::ffi::c_int;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::info;

use super::line::Line;
use super::runtime::{Lease, lease};
use super::slot::Route;
use crate::error::FabricError;
use crate::link::{Interest, Links, Transport};
use crate::rank::Rank;

/// The links of the only group of this process that is over MPI.
pub(super) struct MpiLinks {
    pub(super) rank: Rank,
    pub(super) world: usize,
    /// How many of the ranks run on this machine.
    pub(super) local_ranks: usize,
    /// By peer; the place of the rank itself is empty. Whoever holds the lock may call MPI.
    lines: Arc<Mutex<Vec<Option<Line>>>>,
    /// Gone before the lease is.
    pump: Option<Pump>,
    lease: Lease,
}

impl MpiLinks {
    /// Opens this end of all links, which asks nothing of the others.
    pub(super) fn open() -> Result<Self, FabricError> {
        let lease = lease()?;
        let (own, world) = (lease.rank.index(), lease.world);
        let line = |peer: usize| {
            if peer == own {
                return Ok(None);
            }
            Line::open(Route {
                comm: lease.comm,
                peer: c_int::try_from(peer).expect("worlds are small"),
                tag: lease.tag,
            })
            .map(Some)
        };
        let lines = (0..world).map(line).collect::<io::Result<_>>()?;
        let lines = Arc::new(Mutex::new(lines));
        let pump = Some(Pump::start(Arc::clone(&lines))?);
        let rank = lease.rank;
        for peer in (0..world).filter(|peer| *peer != own).map(Rank::at) {
            info!(%rank, %peer, transport = %Transport::Mpi, reason = "mpirun started the ranks", "link up");
        }
        Ok(Self {
            rank,
            world,
            local_ranks: lease.local_ranks,
            lines,
            pump,
            lease,
        })
    }

    fn with<T>(&self, peer: usize, work: impl FnOnce(&mut Line) -> io::Result<T>) -> io::Result<T> {
        match locked(&self.lines).get_mut(peer) {
            Some(Some(line)) => work(line),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Links for MpiLinks {
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.with(peer, |line| line.write(parts))
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        self.with(peer, |line| line.read(into))
    }

    /// Naps between looks, for MPI has nothing that wakes a sleeper.
    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
        let until = Instant::now() + timeout;
        for nap in naps() {
            for interest in interests {
                let is_possible = self.with(interest.peer, |line| {
                    let readable = interest.read && line.is_readable();
                    Ok(readable || interest.write && line.is_writable())
                })?;
                if is_possible {
                    return Ok(());
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(nap.min(left));
        }
        Ok(())
    }

    fn transport(&self, peer: usize) -> Option<Transport> {
        let is_peer = peer < self.world && peer != self.rank.index();
        is_peer.then_some(Transport::Mpi)
    }
}

impl Drop for MpiLinks {
    fn drop(&mut self) {
        drop(self.pump.take());
        let mut lines: Vec<Line> = locked(&self.lines).drain(..).flatten().collect();
        lines.iter_mut().for_each(Line::end);
        // What was written before the end can still be read.
        until(Instant::now() + FLUSH_TIME_MAX, || {
            let mut flushed = true;
            for line in &mut lines {
                flushed &= line.is_flushed();
            }
            flushed
        });
        self.lease.give_back(lines);
    }
}

/// A thread that lets MPI go on with what was sent while the rank computes, for MPI moves long messages only while it is
/// called, and the others may be waiting for them.
struct Pump {
    is_over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pump {
    fn start(lines: Arc<Mutex<Vec<Option<Line>>>>) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = thread::Builder::new()
            .name("mpi-pump".to_owned())
            .spawn(move || {
                while !until.load(Ordering::Acquire) {
                    // Whoever has the lock calls MPI just now.
                    if let Ok(mut lines) = lines.try_lock() {
                        lines.iter_mut().flatten().for_each(Line::push);
                    }
                    thread::park_timeout(PUMP_EVERY);
                }
            })?;
        Ok(Self {
            is_over,
            thread: Some(thread),
        })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _it_does_not_panic = thread.join();
        }
    }
}

fn locked(lines: &Mutex<Vec<Option<Line>>>) -> MutexGuard<'_, Vec<Option<Line>>> {
    // A line that a panic left half done is no worse than the group that has ended by it.
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks again and again until `done` or the time is over; says which.
pub(super) fn until(deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
    for nap in naps() {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(nap);
    }
    false
}

/// How long to sleep after each look in vain.
fn naps() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(NAP_MIN), |nap| Some((*nap * 2).min(NAP_MAX)))
}

const NAP_MIN: Duration = Duration::from_micros(25);
const NAP_MAX: Duration = Duration::from_millis(2);
const PUMP_EVERY: Duration = Duration::from_millis(1);
/// For a rank that stalls; the others take what they are sent while they wait for anything.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);
