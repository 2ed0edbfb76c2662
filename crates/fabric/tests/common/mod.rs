//! Groups over every kind of link, for the tests of what a group does.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod mpi;

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::tcp::{self, Config, Rdma, Rendezvous};
use shoal_fabric::{FabricError, Group, Interfaces, Key, Rank, in_process};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Links {
    InProcess,
    Tcp,
    /// Each link over as many addresses as this machine has for it.
    Striped,
    SharedMemory,
    /// All but one rank share memory.
    Mixed,
    Rdma,
    /// As over Thunderbolt.
    RdmaUnreliable,
    /// Ranks are processes, and this one is one of them.
    Mpi,
}

/// Of the mixed links.
pub(crate) const MIXED_APART: Rank = Rank(1);
/// Of the striped links; Linux has all of them on loopback, others leave out what they do not have.
pub(crate) const CABLES: [[u8; 4]; 3] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]];
pub(crate) const PATIENT: Duration = Duration::from_secs(60);

/// Where `SHOAL_TEST_RDMA` says `rc` or `uc`, there must be a device, and the tests run over that alone; as they do over
/// MPI where `SHOAL_TEST_MPI` names a folder.
pub(crate) fn kinds() -> &'static [Links] {
    if mpi::is_here() {
        return &[Links::Mpi];
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever runs the tests knows whether this machine must have a device"
    )]
    let rdma = std::env::var("SHOAL_TEST_RDMA");
    match rdma.as_deref() {
        Ok("rc") => &[Links::Rdma],
        Ok("uc") => &[Links::RdmaUnreliable],
        Ok(other) => panic!("SHOAL_TEST_RDMA is `{other}`, and may be `rc` or `uc`"),
        Err(_) => &[
            Links::InProcess,
            Links::Tcp,
            Links::Striped,
            Links::SharedMemory,
            Links::Mixed,
        ],
    }
}

/// Returns how many RDMA devices a link has to use, by what whoever runs the tests says.
pub(crate) fn devices() -> usize {
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever runs the tests knows which devices this machine has"
    )]
    let devices = std::env::var("SHOAL_TEST_RDMA_DEVICES");
    devices.map_or(1, |count| count.parse().expect("a number of devices"))
}

/// Returns how a rank has to be linked so that its bytes go over `links`.
pub(crate) fn config(links: Links, rank: Rank) -> Config {
    let over = |rdma| Config {
        shared_memory: false,
        rdma,
        tcp: false,
        interfaces: Interfaces::USUAL,
    };
    match links {
        Links::InProcess | Links::Tcp | Links::Mpi => shares(false),
        Links::Striped => Config {
            interfaces: Interfaces::listed(&CABLES.map(IpAddr::from)),
            ..shares(false)
        },
        Links::SharedMemory => shares(true),
        Links::Mixed => shares(rank != MIXED_APART),
        Links::Rdma => over(Rdma::Auto),
        Links::RdmaUnreliable => over(Rdma::Unreliable),
    }
}

/// Forms the groups of all ranks, in their order; of those that are processes, that of this one.
pub(crate) fn groups(links: Links, world: usize, timeout: Duration) -> Vec<Group> {
    match links {
        Links::InProcess => in_process(world, timeout),
        Links::Mpi => vec![mpi::group(timeout)],
        _ => tcp_groups("127.0.0.1:0", |rank| config(links, rank), world, timeout),
    }
}

/// Returns how many of `world` ranks this process holds.
pub(crate) fn ranks_here(links: Links, world: usize) -> usize {
    match links {
        Links::Mpi => 1,
        _ => world,
    }
}

/// Returns what leaves the choice between memory, if so wanted, and TCP.
pub(crate) fn shares(shared_memory: bool) -> Config {
    Config {
        shared_memory,
        rdma: Rdma::Off,
        tcp: true,
        interfaces: Interfaces::USUAL,
    }
}

/// Forms a group over machines, as far as its ranks can tell.
pub(crate) fn tcp_groups(
    address: &str,
    config: impl Fn(Rank) -> Config,
    world: usize,
    timeout: Duration,
) -> Vec<Group> {
    let key = Key::from_token("a token of the test");
    let deadline = Instant::now() + PATIENT;
    let rendezvous = Rendezvous::bind(address.parse().expect("an address"), world, key.clone())
        .expect("a free port")
        .with(config(Rank(0)));
    let address = rendezvous.local_addr();
    thread::scope(|scope| {
        let joining: Vec<_> = (1..world)
            .map(|rank| {
                let key = key.clone();
                let rank = Rank(u16::try_from(rank).expect("small"));
                let config = config(rank);
                scope.spawn(move || tcp::join_with(config, address, rank, world, key, deadline))
            })
            .collect();
        let root = rendezvous.accept(deadline);
        let others = joining
            .into_iter()
            .map(|handle| handle.join().expect("join does not panic"));
        let groups: Result<Vec<Group>, FabricError> = [root].into_iter().chain(others).collect();
        let mut groups = groups.expect("the group forms");
        groups
            .iter_mut()
            .for_each(|group| group.set_timeout(timeout));
        groups
    })
}

/// Runs `work` on each rank at the same time; results are in rank order. All processes call this, also without a group.
pub(crate) fn on_each<T: Send>(
    groups: Vec<Group>,
    work: impl Fn(&mut Group) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = groups
            .into_iter()
            .map(|mut group| {
                scope.spawn(move || {
                    let result = work(&mut group);
                    (result, group)
                })
            })
            .collect();
        // No group is dropped before all are done: nobody is lost by being the first.
        let (results, _groups): (Vec<T>, Vec<Group>) = running
            .into_iter()
            .map(|handle| handle.join().expect("no rank panics"))
            .unzip();
        mpi::meet();
        results
    })
}

pub(crate) fn everywhere(worlds: &[usize], check: impl Fn(Links, usize)) {
    for links in kinds() {
        for world in worlds {
            // How many processes there are is up to mpirun.
            if !matches!(links, Links::Mpi) || *world == mpi::world() {
                check(*links, *world);
            }
        }
    }
}

/// Values whose sum depends on the order: magnitudes far apart, signs mixed.
pub(crate) fn values(rank: usize, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32.wrapping_mul(u32::try_from(rank).expect("small") + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let value = |bits: u32| {
        let magnitude = [1e-6, 1.0, 1e7][bits as usize % 3];
        (f64::from(bits) / f64::from(u32::MAX) - 0.5) as f32 * magnitude
    };
    (0..len).map(|_| value(next())).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
