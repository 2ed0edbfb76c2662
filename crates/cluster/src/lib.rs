//! Machines: where a cell's ranks run, who starts them again, and where models are kept.
//!
//! - [`Cell`] forms a cell from a [`CellConfig`], watches it, and re-forms it when a rank is lost. It runs the
//!   front's side: rank 0 on this machine, the others here or on the machines of [`Placement::Peers`].
//! - [`node::Node`] lends this machine to a cell: it waits for a front that knows the token and starts a rank for it.
//! - [`link_test`] starts ranks that measure the links between machines instead of loading a model.
//! - [`copy`] moves files between this machine and nodes.
//! - [`discover`] finds out how machines are cabled, and what follows from it.
//! - [`hostfile`] reads and writes the lists of machines that `mlx.launch` uses.
//! - [`store`] fetches, lists and removes models.
//!
//! Ranks are processes of the same binary, started with a [`RankLaunch`] on standard input, so that no secret is seen
//! in a process list. What a rank does is `shoal-engine`'s business; requests and tokens never pass through here.
#![forbid(unsafe_code)]

mod carrier;
mod cell;
mod control;
pub mod copy;
pub mod discover;
mod doorstep;
mod durable;
mod found;
pub mod hostfile;
mod launch;
pub mod link_test;
pub mod node;
mod record;
mod remote;
pub mod store;
mod supervisor;
mod token;

pub use carrier::Carrier;
pub use cell::{Cell, CellConfig, CellError, Placement};
pub use launch::{BadKey, LaunchError, LinkTestRole, Program, RankLaunch, RoleLaunch, TaskLaunch};
pub use remote::NodeRefused;
pub use token::{SecretError, read_secret, read_token};
