//! Connecting to a node for a copy.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use shoal_fabric::channel::Channel;
use shoal_fabric::{Key, bound_if_local};

use super::error::CopyError;
use super::talk::Talk;
use super::wire::{CopyOrder, Message, out_of_turn};
use crate::control::{Order, encode};

/// Orders a copy and opens its lanes.
pub(super) fn connect(
    node: &str,
    token: &Key,
    session: &str,
    lanes: u8,
    order: CopyOrder,
) -> Result<(Talk, Vec<TcpStream>), CopyError> {
    let talk = Talk::over(say(node, token, order)?, node);
    match talk.hear()? {
        Message::OpenLanes => {}
        _ => return Err(out_of_turn()),
    }
    let lanes = (0..lanes).map(|lane| {
        let session = session.to_owned();
        let channel = say(node, token, CopyOrder::Lane { session, lane })?;
        bare(channel).map_err(CopyError::Cut)
    });
    let lanes = lanes.collect::<Result<Vec<_>, _>>()?;
    talk.watch_over(&lanes)?;
    Ok((talk, lanes))
}

/// Takes the bare connection of a lane, which may be silent for as long as the other end is busy elsewhere.
pub(super) fn bare(channel: Channel) -> io::Result<TcpStream> {
    let stream = channel.into_stream();
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    bound_if_local(&stream)?;
    Ok(stream)
}

fn say(node: &str, token: &Key, order: CopyOrder) -> Result<Channel, CopyError> {
    let mut channel = Channel::connect(node, token, Instant::now() + CONNECT_WAIT)?;
    channel.send(&encode(&Order::Copy(order)))?;
    Ok(channel)
}

/// Returns a name for a copy that no other has.
pub(super) fn session() -> String {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the operating system gives random bytes");
    hex::encode(random)
}

const CONNECT_WAIT: Duration = Duration::from_secs(5);
