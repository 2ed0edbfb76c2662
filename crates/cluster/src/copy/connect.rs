//! Connecting to a node for a copy.

use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::channel::Channel;
use shoal_fabric::lane::{Lane, Lanes};
use shoal_fabric::tcp::{Config, Rdma};
use shoal_fabric::{FabricError, Key, Transport};
use tracing::info;

use super::error::CopyError;
use super::talk::Talk;
use super::wire::{CopyOrder, Message, out_of_turn};
use crate::carrier::Carrier;
use crate::control::{Order, encode};

/// What this end brings to every connection of a copy.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) token: &'a Key,
    pub(super) links: &'a Config,
    pub(super) carrier: Carrier,
}

/// A copy that has been ordered, and what carries it.
pub(super) struct Link {
    pub(super) talk: Talk,
    pub(super) lanes: Vec<Lane>,
    pub(super) transport: Transport,
    /// How many cables the lanes are spread over.
    pub(super) cables: usize,
}

impl Terms<'_> {
    /// Orders a copy and opens `lanes` lanes or a few more: as many over each cable as over any other.
    pub(super) fn connect(
        self,
        node: &str,
        session: &str,
        lanes: u8,
        order: CopyOrder,
    ) -> Result<Link, CopyError> {
        let talk = Talk::over(self.say(node, order)?, node);
        match talk.hear()? {
            Message::OpenLanes => {}
            _ => return Err(out_of_turn()),
        }
        let links = lane_links(self.carrier, self.links);
        let first = self.open(node, session, &links)?;
        note(node, &first);
        let cables = first.lanes.iter().map(Lane::cables).sum();
        let transport = first.transport();
        let connections = match transport {
            // One has all that the device gives.
            Transport::Rdma => 1,
            _ => usize::from(lanes).div_ceil(cables),
        };
        let links = Config {
            rdma: Rdma::Off,
            ..links
        };
        let mut all = first.lanes;
        // At once, so that a cable that is silent holds them up no longer than one of them.
        thread::scope(|scope| {
            let opening: Vec<_> = (1..connections)
                .map(|_| scope.spawn(|| self.open(node, session, &links)))
                .collect();
            for opened in opening {
                let opened = opened.join().unwrap_or_else(|panic| resume_unwind(panic));
                all.extend(opened?.lanes);
            }
            Ok::<_, CopyError>(())
        })?;
        talk.watch_over(&all)?;
        talk.say(&Message::LanesOpen {
            connections: connections as u8,
        })?;
        Ok(Link {
            talk,
            lanes: all,
            transport,
            cables,
        })
    }

    fn open(self, node: &str, session: &str, links: &Config) -> Result<Lanes, FabricError> {
        let session = session.to_owned();
        let channel = self.say(node, CopyOrder::Lanes { session })?;
        Lanes::lead(channel, links, self.token, Instant::now() + AGREE_TIME_MAX)
    }

    fn say(self, node: &str, order: CopyOrder) -> Result<Channel, FabricError> {
        let mut channel = Channel::connect(node, self.token, Instant::now() + CONNECT_WAIT)?;
        channel.send(&encode(&Order::Copy(order)))?;
        Ok(channel)
    }
}

/// Returns what may carry lanes where `usual` is for ranks: RDMA as the machine's owner has it, TCP as whoever copies wants it.
pub(super) fn lane_links(carrier: Carrier, usual: &Config) -> Config {
    let (rdma, tcp) = match carrier {
        Carrier::Auto => (usual.rdma, true),
        Carrier::Tcp => (Rdma::Off, true),
        Carrier::Rdma => (usual.rdma, false),
        Carrier::SharedMemory => (Rdma::Off, false),
    };
    Config {
        rdma,
        tcp,
        ..usual.clone()
    }
}

/// Says what carries a copy.
pub(super) fn note(peer: &str, lanes: &Lanes) {
    let reason = lanes.left_out.join("; ");
    info!(peer, carrier = lanes.carrier, reason, "lanes up");
}

/// Returns a name for a copy that no other has.
pub(super) fn session() -> String {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    hex::encode(random)
}

const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the two ends may look for what carries the lanes.
pub(super) const AGREE_TIME_MAX: Duration = Duration::from_secs(15);
