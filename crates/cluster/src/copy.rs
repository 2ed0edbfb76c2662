//! Copying: files and folders between this machine and nodes, or from one machine through all nodes.
//!
//! [`push`] sends to a node, and through it to others; [`pull`] fetches from one. Files are compared chunk by chunk by
//! their BLAKE3 hashes, so that only what the other end lacks is sent, and one that was cut off goes on where it stopped. A
//! file appears under its name whole or not at all. Nothing is written or read outside the folder that a node serves.
//!
//! The end that sends reads each file once: it hashes a chunk, compares it with what the receiver says it has, and sends it
//! over one of several lanes. Where the receiver has nothing to compare, a checksum is told instead of the hash.
//! Chunks go bare over lanes that have proved the token at their beginning; the network between the machines is
//! trusted, as everywhere in Shoal.

mod client;
mod connect;
mod error;
mod limit;
mod manifest;
mod partial;
mod path;
mod receiver;
mod relay;
mod seal;
mod sender;
mod service;
mod source;
mod talk;
mod tree;
mod wire;

use serde::{Deserialize, Serialize};

pub use client::{CopyConfig, CopySummary, pull, push};
pub use error::CopyError;
pub use path::RelPath;
pub(crate) use service::CopyService;
pub(crate) use wire::CopyOrder;

/// What one receiving end says of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyReport {
    /// Files that are new or have changed.
    pub files_written: u64,
    /// Files that were there already.
    pub files_unchanged: u64,
    /// Bytes that had to be sent to it.
    pub bytes_received: u64,
    /// Why it does not have everything.
    pub error: Option<String>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there, sent or found there.
    pub done_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// Hears of progress, from several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// The most data connections that may be asked for.
pub const LANES_MAX: u8 = 16;
