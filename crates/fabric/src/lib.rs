//! Ranks talking: what carries bytes and sums between the processes that together hold one model.
//!
//! A [`Group`] is one rank's place among all ranks, and its methods are the collectives. [`tcp`] forms a group over
//! machines: rank 0 holds the [`tcp::Rendezvous`], the others [`tcp::join`], and every connection proves in both
//! directions that its ends hold the same [`Key`]. Two ranks that turn out to be on one machine exchange their bytes
//! through memory that they share, and two whose RDMA devices reach each other through those. [`in_process`] makes the
//! same groups inside one process, and `mpi`, with the feature of that name, those of the ranks that `mpirun` started. A
//! [`channel::Channel`] is a single authenticated connection beside the groups, for orders and reports, and
//! [`lane::Lanes`] are streams for bulk that two ends exchange one for. Sums are added in
//! rank order, so all ranks hold the same bits; every wait is bounded, and an error names the rank that was lost. What is
//! computed, and what becomes of a loss, is left to others.
//!
//! **The network between the machines is trusted.** Of a group only the beginning is authenticated; the frames of the
//! collectives, weights and activations, are neither encrypted nor authenticated, so whoever can read or alter packets
//! there can read prompts and replies, or change them. A channel's messages are authenticated to the end, and not
//! encrypted.
//!
//! ```
//! use std::thread;
//! use std::time::Duration;
//!
//! let groups = shoal_fabric::in_process(2, Duration::from_secs(10));
//! thread::scope(|scope| {
//!     for mut group in groups {
//!         scope.spawn(move || {
//!             let mut values = [f32::from(group.rank().0), 10.0];
//!             group.all_reduce_sum(&mut values)?;
//!             assert_eq!(values, [1.0, 20.0]);
//!             group.barrier()
//!         });
//!     }
//! });
//! ```

#![allow(unsafe_code)]

mod addresses;
mod algorithm;
mod cables;
mod cabling;
pub mod channel;
#[cfg(test)]
mod chaos;
mod config;
mod error;
mod exchange;
mod farewell;
#[cfg(test)]
mod faults;
pub mod frame;
mod ground;
mod group;
mod handshake;
mod inbox;
mod interfaces;
mod invitation;
mod key;
pub mod lane;
mod link;
mod loan;
mod lobby;
mod memory;
mod moving;
#[cfg(feature = "mpi")]
pub mod mpi;
mod pace;
mod pages;
mod ports;
mod rank;
mod records;
mod reduce;
mod region;
mod resolve;
mod ring;
mod schedule;
mod segment;
mod shared;
mod socket;
mod stripe;
mod talk;
pub mod tcp;
mod timed;
mod transfer;
mod verbs;
mod wire;

pub use algorithm::Topology;
pub use error::FabricError;
pub use exchange::Exchange;
pub use group::{Group, in_process, solo};
pub use interfaces::Interfaces;
pub use key::Key;
pub use link::Transport;
pub use rank::{Rank, WORLD_MAX};
pub use reduce::{Element, Reduce};
pub use region::Region;
pub use resolve::resolve;

#[cfg(target_endian = "big")]
compile_error!(
    "values go over the links as they are in memory, which is little-endian on every machine Shoal runs on"
);
