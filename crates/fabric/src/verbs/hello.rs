//! The first messages: whether devices that took each other's addresses reach each other.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::flow::Flow;
use crate::socket::poll_for;

/// How long first messages are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the first one that comes.
    pub(crate) until: Instant,
    /// From then on for the others, without which there are bytes as well.
    pub(crate) further: Duration,
}

/// Waits for the first message through each of `flows`; what is left of them has got it, and the others say why not.
pub(crate) fn hear(flows: &mut [Result<Flow, String>], patience: Patience) {
    let mut until = patience.until;
    let mut is_alone = true;
    loop {
        flows.iter_mut().flatten().for_each(Flow::progress);
        let heard = flows.iter().flatten().map(Flow::greeted);
        let heard: Vec<_> = heard.collect();
        if is_alone && heard.iter().flatten().any(Result::is_ok) {
            is_alone = false;
            until = until.min(Instant::now() + patience.further);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || heard.iter().all(Option::is_some) {
            break;
        }
        nap(flows, left.min(NAP));
    }
    for place in flows {
        let Ok(flow) = place else { continue };
        let name = &flow.pair.device().name;
        let reason = match flow.greeted() {
            Some(Ok(())) => continue,
            Some(Err(reason)) => format!("{reason} on {name}"),
            None => format!("no message came through {name}"),
        };
        *place = Err(reason);
    }
}

fn nap(flows: &mut [Result<Flow, String>], time: Duration) {
    let unheard = |flow: &&mut Flow| flow.greeted().is_none();
    for flow in flows.iter_mut().flatten().filter(unheard) {
        flow.arm();
        flow.progress();
        if flow.greeted().is_some() {
            // The next look may be the last.
            return;
        }
    }
    let files = flows.iter().flatten().filter_map(|flow| flow.pair.file());
    let files = files.map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN));
    let mut files: Vec<PollFd<'_>> = files.collect();
    let _next_look_tells = poll_for(&mut files, time);
    drop(files);
    for flow in flows.iter_mut().flatten() {
        flow.pair.completions().hear();
    }
}

/// Between two looks.
const NAP: Duration = Duration::from_millis(1);
