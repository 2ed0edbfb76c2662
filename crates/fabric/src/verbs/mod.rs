//! RDMA: bytes from the memory of one machine into that of another, by their network devices.
//!
//! The library that talks to the devices is loaded when it is first wanted; a machine without it, or without a device, has
//! a reason to use TCP, and nothing fails. Unsafe code is in [`library`], [`device`], [`registration`], [`slots`],
//! [`completions`] and [`pair`] alone, each of which owns what it made. Above them, [`flow`] makes a stream of bytes out of messages, [`flows`] one
//! out of those of several devices, [`link`] puts it beside the TCP connection, and [`agreement`] is how two ranks come to it.

mod abi;
mod agreement;
mod choice;
mod completions;
mod device;
mod endpoint;
mod flow;
mod flows;
mod hello;
mod library;
mod link;
mod message;
mod pair;
mod registration;
mod slots;
mod trial;

pub(crate) use agreement::{Agreement, Devices};
pub(crate) use flows::Flows;
pub(crate) use link::{FLUSH_TIME_MAX, RdmaLink};
