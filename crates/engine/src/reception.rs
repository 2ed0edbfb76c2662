//! The step thread's view of the front: who is there, what they want, what they are told.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::front::{Herald, Input, Outbox};
use crate::wire::{Command, Notice, Phase};

/// Takes what the front wants and gathers what it is told, one write a step.
pub(crate) struct Reception {
    inputs: Receiver<Input>,
    herald: Herald,
    outbox: Option<Outbox>,
    /// Frames that wait for the end of the step.
    pending: Vec<u8>,
    /// When the front was last told something.
    told: Instant,
    /// For how long it is told nothing at most.
    pub(crate) alive_every: Duration,
    /// Since when there has been no front.
    orphaned_since: Option<Instant>,
    /// What came while nobody took orders.
    early: Option<Command>,
}

/// What the step loop has to react to.
#[derive(Debug)]
pub(crate) enum Order {
    /// The front wants something.
    Command(Command),
    /// The front is gone, and with it the use of its requests.
    FrontGone,
}

impl Reception {
    pub(crate) fn new(inputs: Receiver<Input>, herald: Herald) -> Self {
        Self {
            inputs,
            herald,
            outbox: None,
            pending: Vec::new(),
            told: Instant::now(),
            alive_every: ALIVE_EVERY,
            orphaned_since: Some(Instant::now()),
            early: None,
        }
    }

    /// Returns the next order, waiting for one if `wait` is not zero. A front that comes is told how far the cell is.
    pub(crate) fn next(&mut self, wait: Duration) -> Option<Order> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(command) = self.early.take() {
                return Some(Order::Command(command));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let input = match left.is_zero() {
                true => self.inputs.try_recv().ok()?,
                false => self.inputs.recv_timeout(left).ok()?,
            };
            match input {
                Input::Command(command) => return Some(Order::Command(command)),
                Input::Came(outbox) => {
                    info!("a front has attached");
                    self.orphaned_since = None;
                    self.pending.clear();
                    self.outbox = Some(outbox);
                    self.note(&Notice::Phase(self.herald.phase()));
                    self.flush();
                }
                Input::Gone => {
                    info!("the front is gone");
                    self.orphaned_since = Some(Instant::now());
                    self.outbox = None;
                    return Some(Order::FrontGone);
                }
            }
        }
    }

    /// Lets fronts come and go while nobody takes orders; of those only the one to end is kept.
    pub(crate) fn take_visits(&mut self) {
        while let Some(order) = self.next(Duration::ZERO) {
            if let Order::Command(Command::Shutdown) = order {
                self.early = Some(Command::Shutdown);
                return;
            }
        }
    }

    /// Notes what the front is to be told at the end of the step.
    pub(crate) fn note(&mut self, notice: &Notice) {
        if self.outbox.is_some() {
            notice.encode(&mut self.pending);
        }
    }

    /// Tells the front that this thread is alive, unless it has just heard something. Only the step thread may say so.
    pub(crate) fn show_life(&mut self) {
        if self.told.elapsed() >= self.alive_every {
            self.note(&Notice::Alive);
        }
        self.flush();
    }

    /// Sends what was noted. A front that has stopped reading is cut off rather than waited for.
    pub(crate) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.told = Instant::now();
        let frames = std::mem::take(&mut self.pending);
        if let Some(outbox) = self.outbox.take_if(|outbox| !outbox.send(frames)) {
            warn!("the front has stopped reading; hanging up");
            outbox.cut();
        }
    }

    /// Tells this front and those to come how far the cell is.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.note(&Notice::Phase(phase.clone()));
        self.herald.set(phase);
        self.flush();
    }

    /// Returns for how long there has been no front.
    pub(crate) fn orphaned_for(&self) -> Duration {
        self.orphaned_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Often enough for the shortest patience of a front, which is seconds.
const ALIVE_EVERY: Duration = Duration::from_millis(400);
