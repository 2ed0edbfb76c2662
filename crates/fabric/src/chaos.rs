//! Tests: links that do all that links may do, and then what they may not, under every collective.
//!
//! Each case is drawn from a seed, which a failure names; `SHOAL_CHAOS_SEED` runs that one alone.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::algorithm::Topology;
use crate::error::FabricError;
use crate::faults::{sockets, sockets_and_memory, striped_sockets};
use crate::ground::Road;
use crate::group::Group;
use crate::link::{Interest, Links, Transport};
use crate::memory;
use crate::pace::Pace;
use crate::rank::Rank;
use crate::reduce::Reduce;

/// What becomes of the link between ranks 0 and 1 once rank 0 has sent so many bytes over it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// Nothing moves any more, either way, and nobody is told.
    Stall,
    /// Both ends see it closed, in the middle of whatever it is.
    Close,
    /// A bit of what is sent is another.
    Corrupt,
}

/// Links that take, give and wake when they like: less than they could, later than they could, one peer before another.
struct Moody {
    inner: Box<dyn Links>,
    dice: Dice,
    /// For how many more calls each peer gets nothing done.
    sulks: Vec<u64>,
    fault: Option<Fault>,
}

/// The fault of one link, as one end sees it.
struct Fault {
    peer: usize,
    end: End,
    /// Bytes that rank 0 still sends before; unknown to the other end.
    left: Option<u64>,
    struck: Arc<AtomicBool>,
}

impl Moody {
    fn sulks(&mut self, peer: usize) -> bool {
        if self.sulks[peer] > 0 {
            self.sulks[peer] -= 1;
            return true;
        }
        match self.dice.below(16) {
            0 => self.sulks[peer] = self.dice.below(40),
            1..5 => return true,
            _ => {}
        }
        false
    }

    fn struck(&self, peer: usize) -> Option<End> {
        let fault = self.fault.as_ref().filter(|fault| fault.peer == peer)?;
        fault.struck.load(Ordering::SeqCst).then_some(fault.end)
    }
}

impl Links for Moody {
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.struck(peer) {
            Some(End::Close) => return Err(io::ErrorKind::BrokenPipe.into()),
            Some(End::Stall) => return Ok(0),
            _ if self.sulks(peer) => return Ok(0),
            _ => {}
        }
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        // Mostly a few at a time, so that headers come in pieces; now and then all.
        if self.dice.below(4) > 0 {
            bytes.truncate(1 + self.dice.below(5000) as usize);
        }
        if let Some(fault) = &mut self.fault
            && fault.peer == peer
            && let Some(left) = fault.left
        {
            bytes.truncate((left.max(1)) as usize);
            if left == 0 {
                fault.struck.store(true, Ordering::SeqCst);
                fault.left = None;
                if fault.end != End::Corrupt {
                    return self.write(peer, parts);
                }
                bytes[0] ^= 1 << self.dice.below(8);
            }
        }
        let taken = self.inner.write(peer, &[IoSlice::new(&bytes)])?;
        if let Some(fault) = &mut self.fault
            && fault.peer == peer
            && let Some(left) = &mut fault.left
        {
            *left -= taken as u64;
        }
        Ok(taken)
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.struck(peer) {
            Some(End::Close) => return Ok(Some(0)),
            Some(End::Stall) => return Ok(None),
            _ if self.sulks(peer) => return Ok(None),
            _ => {}
        }
        let most = 1 + self.dice.below(9000) as usize;
        let most = most.min(into.len());
        self.inner.read(peer, &mut into[..most])
    }

    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
        // Whoever was turned away by a mood is not woken by the link.
        self.inner.wait(interests, timeout.min(MOOD))
    }

    fn transport(&self, peer: usize) -> Option<Transport> {
        self.inner.transport(peer)
    }

    fn turn(&self, peer: usize, reads: bool) -> Option<&str> {
        self.inner.turn(peer, reads)
    }
}

/// One case: ranks over links of a kind, and what they do together.
struct Case {
    seed: u64,
    world: usize,
    topology: Topology,
    links: usize,
}

impl Case {
    fn of(seed: u64) -> Self {
        let mut dice = Dice(seed);
        Self {
            seed,
            world: 2 + dice.below(3) as usize,
            topology: [Topology::Mesh, Topology::Ring][dice.below(2) as usize],
            links: dice.below(4) as usize,
        }
    }

    /// Runs the same collectives on all ranks over moody links, one of which may come to an `end`.
    fn run(&self, end: Option<(End, u64)>, timeout: Duration) -> Vec<Result<(), FabricError>> {
        let boxed = |links| Box::new(links) as Box<dyn Links>;
        let links: Vec<Box<dyn Links>> = match self.links {
            0 => sockets(self.world, || [Road::Tcp, Road::Tcp])
                .into_iter()
                .map(boxed)
                .collect(),
            1 => sockets_and_memory(self.world)
                .into_iter()
                .map(boxed)
                .collect(),
            2 => striped_sockets(self.world).into_iter().map(boxed).collect(),
            _ => {
                let memory = memory::mesh(self.world).into_iter();
                memory
                    .map(|links| Box::new(links) as Box<dyn Links>)
                    .collect()
            }
        };
        let struck = Arc::new(AtomicBool::new(false));
        let fault = |rank: usize| {
            let (end, after_bytes) = end.filter(|_| rank < 2)?;
            Some(Fault {
                peer: 1 - rank,
                end,
                left: (rank == 0).then_some(after_bytes),
                struck: Arc::clone(&struck),
            })
        };
        let (says, ended) = mpsc::channel();
        thread::scope(|scope| {
            for (rank, inner) in links.into_iter().enumerate() {
                let moody = Moody {
                    inner,
                    dice: Dice(self.seed ^ (rank as u64 + 1) << 32),
                    sulks: vec![0; self.world],
                    fault: fault(rank),
                };
                let says = says.clone();
                scope.spawn(move || {
                    let pace = Pace::of_machine(self.world);
                    let mut group = Group::new(Rank::at(rank), self.world, Box::new(moody), pace);
                    group.set_timeout(timeout);
                    group.set_topology(self.topology);
                    let outcome =
                        self.work(&mut group, end.is_some_and(|(end, _)| end == End::Corrupt));
                    says.send((rank, outcome)).expect("the test listens");
                });
            }
            drop(says);
            let mut outcomes: Vec<_> = ended.iter().collect();
            assert_eq!(
                outcomes.len(),
                self.world,
                "{}: a rank panicked",
                self.name()
            );
            outcomes.sort_by_key(|(rank, _)| *rank);
            outcomes.into_iter().map(|(_, outcome)| outcome).collect()
        })
    }

    /// Does a dozen collectives of any kind and size, and compares what comes out, unless it `may_differ`.
    fn work(&self, group: &mut Group, may_differ: bool) -> Result<(), FabricError> {
        let mut dice = Dice(self.seed ^ 0x5eed);
        let (own, world) = (group.rank().index(), self.world);
        let same = |holds: bool, what: &str, step: usize| {
            assert!(
                holds || may_differ,
                "{}, step {step}: {what}, rank {own}",
                self.name()
            );
        };
        for step in 0..12 {
            let len = match dice.below(3) {
                0 => dice.below(4),
                1 => dice.below(3000),
                _ => dice.below(60_000),
            } as usize;
            let bytes = |rank: usize| vec![(rank * 7 + step) as u8; len + rank];
            let values = |rank: usize| (0..len).map(move |at| ((at % 97) * (rank + 1)) as f32);
            let sum = |at: usize| {
                (0..world)
                    .map(|rank| ((at % 97) * (rank + 1)) as f32)
                    .sum::<f32>()
            };
            match dice.below(7) {
                0 => {
                    let mut data: Vec<f32> = values(own).collect();
                    group.all_reduce(Reduce::Sum, &mut data)?;
                    same((0..len).all(|at| data[at] == sum(at)), "all_reduce", step);
                }
                1 => {
                    let mut data: Vec<f32> = values(own).collect();
                    let first = own * len / world;
                    let part = group.reduce_scatter(Reduce::Sum, &mut data)?;
                    let right = (first..).zip(&*part).all(|(at, value)| *value == sum(at));
                    same(right, "reduce_scatter", step);
                }
                2 => {
                    let mut all = Vec::new();
                    group.all_gather(&bytes(own), &mut all)?;
                    same(
                        (0..world).all(|rank| all[rank] == bytes(rank)),
                        "all_gather",
                        step,
                    );
                }
                3 => {
                    let root = dice.below(world as u64) as usize;
                    let mut data = if own == root { bytes(root) } else { Vec::new() };
                    group.broadcast(Rank::at(root), &mut data)?;
                    same(data == bytes(root), "broadcast", step);
                }
                4 => {
                    let parts: Vec<_> = (0..world).map(|to| bytes(own * world + to)).collect();
                    let mut all = Vec::new();
                    group.all_to_all(&parts, &mut all)?;
                    let right = (0..world).all(|from| all[from] == bytes(from * world + own));
                    same(right, "all_to_all", step);
                }
                5 => {
                    // Around, the first one sending before it receives.
                    let (to, from) = ((own + 1) % world, (own + world - 1) % world);
                    let mut data = Vec::new();
                    if own == 0 {
                        group.send(Rank::at(to), &bytes(own))?;
                    }
                    group.recv(Rank::at(from), &mut data)?;
                    if own != 0 {
                        group.send(Rank::at(to), &bytes(own))?;
                    }
                    same(data == bytes(from), "send and recv", step);
                }
                _ => group.barrier()?,
            }
        }
        // Whatever was lost behind the last that a rank wanted is wanted here.
        group.barrier()
    }

    fn name(&self) -> String {
        let Self {
            seed,
            world,
            topology,
            links,
        } = self;
        format!("SHOAL_CHAOS_SEED={seed} ({world} ranks, {topology:?}, links {links})")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only a test that is run by hand has a seed of its own"
)]
fn cases(count: u64) -> impl Iterator<Item = Case> {
    let alone = std::env::var("SHOAL_CHAOS_SEED").ok();
    let alone: Option<u64> = alone.map(|seed| seed.parse().expect("SHOAL_CHAOS_SEED is a number"));
    let seeds = alone.map_or(0..count, |seed| seed..seed + 1);
    seeds.map(Case::of)
}

/// Ends every case with a fault after a number of bytes of its own, and checks that each rank that failed names one, and which.
fn with(
    end: End,
    count: u64,
    timeout: Duration,
    check: impl Fn(usize, Option<Rank>) -> bool,
) -> usize {
    let mut failed = 0;
    for case in cases(count) {
        let after_bytes = Dice(case.seed ^ 0xfa17).below(100_000);
        let outcomes = case.run(Some((end, after_bytes)), timeout);
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            if let Err(error) = outcome {
                failed += 1;
                let named = error.lost_rank();
                let context = || format!("{}, rank {rank}: {error}", case.name());
                assert!(named.is_some() && check(rank, named), "{}", context());
            }
        }
    }
    failed
}

#[test]
fn collectives_are_right_over_links_in_any_mood() {
    for case in cases(60) {
        for outcome in case.run(None, PATIENT) {
            outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name()));
        }
    }
}

#[test]
fn a_link_that_closes_anywhere_ends_every_wait_and_is_named() {
    // An end of the link may find that the others have given it up and left, and names one of them.
    let is_end_or_named = |rank, named| rank < 2 || matches!(named, Some(Rank(0 | 1)));
    let failed = with(End::Close, 60, PATIENT, is_end_or_named);
    assert!(
        failed > 30,
        "only {failed} ranks noticed: the faults come too late"
    );
}

#[test]
fn a_link_that_stalls_anywhere_ends_every_wait() {
    let failed = with(End::Stall, 12, HASTY, |_, _| true);
    assert!(
        failed > 6,
        "only {failed} ranks noticed: the faults come too late"
    );
}

/// A bit of a value can be another unseen: what carries the bytes has to see to that. A header's cannot.
#[test]
fn a_bit_that_is_another_hangs_nobody() {
    with(End::Corrupt, 60, HASTY, |_, _| true);
}

/// A small generator (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const MOOD: Duration = Duration::from_micros(200);
const PATIENT: Duration = Duration::from_secs(60);
const HASTY: Duration = Duration::from_millis(500);
