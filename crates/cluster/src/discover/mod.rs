//! Discovery: what this machine has to talk to others with, how machines are cabled, and what follows from it.
//!
//! [`look`] asks the system and returns a [`Machine`], which other machines can read as JSON. [`Cabling`] joins the
//! machines' views into cables, a [`Proposal`] turns them into addresses, commands and a hostfile, and [`traps`] says what
//! is known to go wrong. Everything but [`look`] and [`apply`] is a pure function of what the system's own tools print,
//! and nothing but [`apply`] changes anything.

mod address;
mod apply;
mod cabling;
mod dot;
mod free_networks;
mod gather;
mod hardware_ports;
mod ibv;
mod ifconfig;
mod ip;
mod mac;
mod machine;
mod network;
mod proposal;
mod sysfs;
mod thunderbolt;
mod traps;

use thiserror::Error;

pub use address::{Address, BadAddress};
pub use apply::{ApplyError, apply, can_apply};
pub use cabling::{Cable, Cabling, End};
pub use dot::dot;
pub use gather::look;
pub use machine::{
    Gid, Interface, Machine, Neighbour, PortState, RdmaDevice, RdmaPort, System, ThunderboltPort,
};
pub use proposal::{Layout, MachineCommands, Over, Proposal, ProposalError};
pub use traps::{Trap, traps};

/// What a tool printed is not what it is known to print.
#[derive(Debug, Error)]
#[error("`{tool}` printed something that is not understood: {reason}")]
pub struct BadOutput {
    tool: &'static str,
    reason: String,
}
