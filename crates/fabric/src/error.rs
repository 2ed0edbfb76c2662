//! What goes wrong between ranks.

use std::io;

use crate::rank::Rank;

/// Why a collective, a bootstrap or a control connection failed; each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// A rank is gone: its connection ended, or another rank reported it lost. The group cannot be used any more.
    #[error("{rank} was lost: {reason}")]
    RankLost {
        /// The rank that was lost.
        rank: Rank,
        /// How that was noticed.
        reason: String,
    },
    /// A rank did not move a byte for the whole timeout. The group cannot be used any more.
    #[error(
        "{rank} did not answer within {waited_ms} ms while {doing}{}; check that its machine is up and not overloaded",
        over(cable)
    )]
    Timeout {
        /// The rank that was waited for.
        rank: Rank,
        /// How long it was waited for.
        waited_ms: u64,
        /// What was waited for.
        doing: &'static str,
        /// The cable that it was due over, where there are several.
        cable: Option<String>,
    },
    /// The two ends of a connection do not hold the same token.
    #[error(
        "the node at {peer} refused the token: check that both machines use the same --token-file"
    )]
    WrongToken {
        /// Address of the other end.
        peer: String,
    },
    /// The two ends of a connection speak different versions of the protocol.
    #[error(
        "the shoal at {peer} speaks protocol version {theirs} and this one version {ours}: install the same release on both machines"
    )]
    VersionMismatch {
        /// Address of the other end.
        peer: String,
        /// Version of this end.
        ours: u16,
        /// Version of the other end.
        theirs: u16,
    },
    /// The other end said something that does not follow the protocol.
    #[error(
        "{peer} broke the protocol: {reason}; check that every machine runs the same release of shoal"
    )]
    Protocol {
        /// The rank, where the connection belongs to one.
        rank: Option<Rank>,
        /// The rank or the address of the other end.
        peer: String,
        /// What was wrong.
        reason: String,
    },
    /// What is allowed to carry the bytes between two ends cannot.
    #[error(
        "nothing that is allowed reaches {peer}: {reason}; allow tcp, or mend what stands in the way"
    )]
    NoTransport {
        /// The rank or the address of the other end.
        peer: String,
        /// Why not.
        reason: String,
    },
    /// The rendezvous did not take this rank into the group.
    #[error("the cell at {peer} refused this rank: {reason}")]
    Refused {
        /// Address of the rendezvous.
        peer: String,
        /// What it said.
        reason: String,
    },
    /// Nothing answers at an address.
    #[error(
        "cannot reach {address}: {reason}; check the address, that shoal runs there, and that no firewall is between"
    )]
    Unreachable {
        /// The address as given.
        address: String,
        /// What the operating system said.
        reason: String,
    },
    /// The other end of a connection that belongs to no rank has closed it.
    #[error("the connection to {peer} was closed: {reason}; check that shoal still runs there")]
    Closed {
        /// Address of the other end.
        peer: String,
        /// How that was noticed.
        reason: String,
    },
    /// The other end of a connection that belongs to no rank said nothing until the deadline.
    #[error(
        "{peer} did not answer within {waited_ms} ms while {doing}; check that shoal still runs there"
    )]
    Silent {
        /// Address of the other end.
        peer: String,
        /// How long it was waited for.
        waited_ms: u64,
        /// What was waited for.
        doing: &'static str,
    },
    /// The caller gave values that do not fit the group or the protocol.
    #[error("invalid use of the fabric: {0}")]
    Invalid(String),
    /// The operating system refused something on this machine.
    #[error("network error on this machine: {0}")]
    Io(#[from] io::Error),
}

impl FabricError {
    /// Returns the rank that this error blames, if it blames one.
    #[must_use]
    pub fn lost_rank(&self) -> Option<Rank> {
        match self {
            Self::RankLost { rank, .. } | Self::Timeout { rank, .. } => Some(*rank),
            Self::Protocol { rank, .. } => *rank,
            _ => None,
        }
    }
}

fn over(cable: &Option<String>) -> String {
    cable
        .as_ref()
        .map_or_else(String::new, |cable| format!(" over {cable}"))
}
