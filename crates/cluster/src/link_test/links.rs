//! Each link for itself: a round trip, and a stream each way, while the other ranks wait.

use std::time::{Duration, Instant};

use shoal_fabric::{Group, Rank};

use super::LATENCY_BYTES;
use super::rank::LinkRankError;
use super::report::{Direction, LinkReport, Spread};

/// The links to try: all of them in a small group, and in a larger one those of a ring, which touch every machine twice.
pub(crate) fn pairs(world: usize) -> Vec<(Rank, Rank)> {
    let rank = |index: usize| Rank(index as u16);
    let all = || (0..world).flat_map(|low| (low + 1..world).map(move |high| (low, high)));
    let is_in_ring = |(low, high): &(usize, usize)| high - low == 1 || high - low == world - 1;
    all()
        .filter(|pair| world <= WORLD_OF_ALL_LINKS_MAX || is_in_ring(pair))
        .map(|(low, high)| (rank(low), rank(high)))
        .collect()
}

/// What to send over a link.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Size of the messages of the stream.
    pub(crate) message_bytes: usize,
    pub(crate) round_trips: u32,
    pub(crate) messages: u32,
}

/// Measures the link to `peer`, which [follows](follow).
pub(crate) fn lead(group: &mut Group, peer: Rank, load: Load) -> Result<LinkReport, LinkRankError> {
    let message_bytes = load.message_bytes;
    let mut reply = Vec::new();
    let mut timed = |request: &[u8], reply_bytes: usize, count: u32| {
        let mut times = Vec::new();
        let began = Instant::now();
        // The first is not counted: it touches the buffers for the first time, on both sides.
        for round in 0..=count {
            let started = Instant::now();
            group.send(peer, request)?;
            group.recv(peer, &mut reply)?;
            // One that takes so long by itself needs no other before it; ranks beside these two wait for them.
            if round > 0 || began.elapsed() > TIME_MAX {
                times.push(started.elapsed());
            }
            if reply.len() != reply_bytes {
                let (got, from) = (reply.len(), peer);
                return Err(LinkRankError::Garbled(format!(
                    "{from} answered {got} bytes instead of {reply_bytes}"
                )));
            }
            if !times.is_empty() && began.elapsed() > TIME_MAX {
                break;
            }
        }
        Ok(times)
    };
    let ping = command(ECHO, LATENCY_BYTES);
    let round_trips = timed(&ping, LATENCY_BYTES, load.round_trips)?;
    let take = command(TAKE, message_bytes);
    let there = timed(&take, 1, load.messages)?;
    let give = command(GIVE, 1);
    let back = timed(&give, message_bytes, load.messages)?;
    group.send(peer, &command(END, 1))?;
    Ok(LinkReport {
        from: group.rank().0,
        to: peer.0,
        transport: group
            .transport(peer)
            .map_or_else(String::new, |it| it.to_string()),
        cables: group.cables(peer),
        breadth: group.breadth(peer),
        round_trip_4kib_us: Spread::of_us(&round_trips),
        message_bytes,
        there: Direction::of(message_bytes as f64, &there),
        back: Direction::of(message_bytes as f64, &back),
    })
}

/// Does what the leader of the link asks for, until it says that it has finished.
pub(crate) fn follow(group: &mut Group, leader: Rank, load: Load) -> Result<(), LinkRankError> {
    let given = vec![0; load.message_bytes];
    let mut request = Vec::new();
    loop {
        group.recv(leader, &mut request)?;
        match request.first() {
            Some(&ECHO) => group.send(leader, &request)?,
            Some(&TAKE) => group.send(leader, &[TAKE])?,
            Some(&GIVE) => group.send(leader, &given)?,
            Some(&END) => return Ok(()),
            other => {
                return Err(LinkRankError::Garbled(format!(
                    "{leader} sent the command {other:?}"
                )));
            }
        }
    }
}

/// Returns a message of `len` bytes, the first of which says what the follower is to do.
fn command(command: u8, len: usize) -> Vec<u8> {
    let mut message = vec![0; len];
    message[0] = command;
    message
}

/// Answer with the same.
const ECHO: u8 = 1;
/// Answer with one byte.
const TAKE: u8 = 2;
/// Answer with a message of the stream.
const GIVE: u8 = 3;
const END: u8 = 4;
/// For each of the three measurements of a link; the other ranks wait all the while, and count it as silence.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Up to here all links are tried, 28 at most.
const WORLD_OF_ALL_LINKS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_groups_try_every_link_and_large_ones_a_ring() {
        assert_eq!(pairs(2), [(Rank(0), Rank(1))]);
        assert_eq!(pairs(8).len(), 28);
        let ring = pairs(9);
        assert_eq!(ring.len(), 9);
        for rank in (0..9).map(Rank) {
            let touching = ring.iter().filter(|(a, b)| [*a, *b].contains(&rank));
            assert_eq!(touching.count(), 2, "{rank}");
        }
    }
}
