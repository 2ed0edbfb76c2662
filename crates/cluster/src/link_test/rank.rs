//! The life of a rank that only tests its links.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use shoal_fabric::{FabricError, Group, Rank, tcp};
use thiserror::Error;
use tracing::info;

use super::Plan;
use super::check::drawn;
use super::measure::{decode, encode, examine};
use super::report::{Event, Report};
use crate::launch::{BadKey, LinkTestRole, RankLaunch};

/// Why a rank's test ends early; each message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkRankError {
    /// The group did not form, or fell apart.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// What another rank said about the test itself makes no sense, although its frames did.
    #[error(
        "a message between the ranks was not understood ({0}): it was damaged on its way, or the machines run different releases of shoal"
    )]
    Garbled(String),
    /// Nobody reads what rank 0 tells any more.
    #[error("the front is gone: {0}")]
    Front(#[source] io::Error),
    /// There are no links to test.
    #[error(
        "this rank is alone: start it as `mpirun -n 2 shoal fabric test --transport mpi`, with more for more ranks"
    )]
    Alone,
    /// Its parent handed over something else.
    #[error(transparent)]
    Key(#[from] BadKey),
}

/// Lives the whole life of a testing rank. Rank 0 writes [`Event`]s to `out`, the last of which says how the test went;
/// the others write nothing. Links are as `usual` unless the test is of another carrier.
///
/// # Errors
/// [`LinkRankError`], on rank 0 only if it could not tell it.
pub fn run_rank(
    launch: &RankLaunch,
    role: &LinkTestRole,
    usual: &tcp::Config,
    out: &mut dyn Write,
) -> Result<(), LinkRankError> {
    let joined_by = Instant::now() + Duration::from_millis(launch.join_timeout_ms);
    let silence_max = Duration::from_millis(launch.step_timeout_ms);
    let key = launch.key()?;
    match role {
        LinkTestRole::Root {
            listen,
            plan,
            carrier,
            interfaces,
        } => {
            let world = launch.world.into();
            let mut links = carrier.config(usual);
            if let Some(interfaces) = interfaces {
                links.interfaces = interfaces.parse()?;
            }
            let mut tell = |event: &Event| {
                let mut line = encode(event);
                line.push(b'\n');
                out.write_all(&line).and_then(|()| out.flush())
            };
            let mut teller = Teller::new(Some(&mut tell), plan.verbose);
            let report = tcp::Rendezvous::bind(*listen, world, key)
                .map_err(LinkRankError::from)
                .and_then(|rendezvous| {
                    lead(
                        rendezvous.with(links),
                        joined_by,
                        silence_max,
                        plan,
                        &mut teller,
                    )
                });
            match report {
                Ok(report) => teller.tell(&Event::Done(Box::new(report))),
                Err(error) => teller.tell(&Event::Failed {
                    reason: error.to_string(),
                }),
            }
        }
        LinkTestRole::Member {
            rendezvous,
            carrier,
        } => {
            let (rank, world) = (Rank(launch.rank), launch.world.into());
            let links = carrier.config(usual);
            let mut group = tcp::join_with(links, *rendezvous, rank, world, key, joined_by)?;
            group.set_timeout(silence_max);
            let mut plan = Vec::new();
            group.broadcast(Rank(0), &mut plan)?;
            let plan: Plan = decode(&plan)?;
            together(&mut group, &plan, &mut Teller::new(None, false)).map(drop)
        }
    }
}

fn lead(
    rendezvous: tcp::Rendezvous,
    joined_by: Instant,
    silence_max: Duration,
    plan: &Plan,
    teller: &mut Teller<'_>,
) -> Result<Report, LinkRankError> {
    let listening = Instant::now();
    teller.tell(&Event::Listening {
        port: rendezvous.local_addr().port(),
    })?;
    let mut group = rendezvous.accept(joined_by)?;
    let join_ms = listening.elapsed().as_secs_f64() * 1e3;
    group.set_timeout(silence_max);
    group.broadcast(Rank(0), &mut encode(plan))?;
    let mut report = together(&mut group, plan, teller)?;
    report.join_ms = join_ms;
    Ok(report)
}

/// Examines the links; a rank that cannot go on says so to the others.
pub(super) fn together(
    group: &mut Group,
    plan: &Plan,
    teller: &mut Teller<'_>,
) -> Result<Report, LinkRankError> {
    let own = group.rank();
    info!(rank = own.0, world = group.world(), "testing links");
    let brings = |rank, round, len| drawn(plan.seed, rank, round, len);
    let report = examine(group, plan, &brings, teller);
    if let Err(error) = &report {
        group.abort(own, &error.to_string());
    }
    report
}

/// Whom a rank tells what happens.
pub trait Listener {
    /// Takes note of one event.
    ///
    /// # Errors
    /// When there is nobody any more.
    fn hear(&mut self, event: &Event) -> io::Result<()>;
}

impl<F: FnMut(&Event) -> io::Result<()>> Listener for F {
    fn hear(&mut self, event: &Event) -> io::Result<()> {
        self(event)
    }
}

/// Tells what happens; on a rank that is not to tell anything, does nothing.
pub(crate) struct Teller<'a> {
    listener: Option<&'a mut dyn Listener>,
    verbose: bool,
    told: Instant,
}

impl<'a> Teller<'a> {
    pub(crate) fn new(listener: Option<&'a mut dyn Listener>, verbose: bool) -> Self {
        Self {
            listener,
            verbose,
            told: Instant::now(),
        }
    }

    pub(crate) fn tell(&mut self, event: &Event) -> Result<(), LinkRankError> {
        let Some(listener) = &mut self.listener else {
            return Ok(());
        };
        self.told = Instant::now();
        listener.hear(event).map_err(LinkRankError::Front)
    }

    /// Tells what is being done, unless something was told a moment ago. Also how a rank 0 whose front has died notices.
    pub(crate) fn progress(&mut self, what: impl FnOnce() -> String) -> Result<(), LinkRankError> {
        if self.told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        self.tell(&Event::Progress(what()))
    }

    pub(crate) fn round(&mut self, what: &str, time: Duration) -> Result<(), LinkRankError> {
        if !self.verbose {
            return Ok(());
        }
        self.tell(&Event::Round {
            what: what.to_owned(),
            seconds: time.as_secs_f64(),
        })
    }
}

const TELL_EVERY: Duration = Duration::from_millis(500);
