//! The front's end of a cell.
//!
//! The client owns the journal: prompt, parameters and tokens so far of every open request, which is all that is needed
//! to take a request up again. One reader and one writer thread serve each attachment; neither ever waits for the
//! consumer of a stream.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::wire::{Command, Notice, Phase};

mod connection;
mod desk;
mod journal;
mod stream;

use desk::Desk;

pub use crate::request::{Event, Failure, FinishReason, Request, Sampling, Timing};
pub use crate::status::{
    CellInfo, CellState, Counters, Loss, Place, RankReport, RankState, RankStatus, Status,
};
pub use shoal_fabric::Rank;
pub use shoal_scheduler::Limits;
pub use stream::TokenStream;

/// A front's handle on its cell: requests go in, a [`TokenStream`] comes out of each. Clones are the same client.
///
/// A client outlives the cells it serves: the supervisor [attaches](Self::attach) it to rank 0's socket, and after a loss
/// to the socket of the re-formed cell. Nothing here blocks on the cell but `attach`, [`wait_ready`](Self::wait_ready) and
/// [`inspect`](Self::inspect), which take or state a bound.
#[derive(Clone, Debug, Default)]
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// Returns a client that no cell is attached to; it refuses requests as not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches to the rank 0 that listens at `socket`.
    ///
    /// # Errors
    /// [`AttachError`] if nobody answers by `deadline`, or not as a free cell of this version does.
    pub fn attach(&self, socket: &Path, deadline: Instant) -> Result<Hello, AttachError> {
        if self.shared.lock().is_attached() {
            return Err(AttachError::Attached);
        }
        let (connection, greeting) = connection::greet(socket, deadline)?;
        let hello = Hello {
            fabric: greeting.fabric,
            world: greeting.world,
            model_name: greeting.model_name,
            state: state_of(&greeting.phase),
        };
        let mut desk = self.shared.lock();
        if desk.is_attached() {
            return Err(AttachError::Attached);
        }
        let (number, outbox) = desk.attach(greeting.world, greeting.phase);
        drop(desk);
        self.shared.changed.notify_all();
        connection.start(number, &outbox, &self.shared);
        Ok(hello)
    }

    /// Leaves the cell and fails every open request with the loss. What was said to the cell before is still delivered.
    pub fn detach(&self, loss: Loss) {
        self.shared.lock().leave(loss);
        self.shared.changed.notify_all();
    }

    /// Hands a request to the cell. Dropping the stream takes it back.
    ///
    /// # Errors
    /// [`SubmitError`], at once: there is no waiting for room.
    pub fn submit(&self, request: Request) -> Result<TokenStream, SubmitError> {
        let (id, events) = self.shared.lock().submit(request)?;
        Ok(TokenStream::new(id, events, Arc::clone(&self.shared)))
    }

    /// Says whether the cell would take a request now, for whoever has much to do before it can submit one.
    ///
    /// # Errors
    /// [`SubmitError::NotReady`], [`SubmitError::QueueFull`].
    pub fn has_room(&self) -> Result<(), SubmitError> {
        self.shared.lock().admit().map(|_| ())
    }

    /// Returns a snapshot of the cell.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.lock().status()
    }

    /// Waits until the cell is ready.
    ///
    /// # Errors
    /// [`AttachError::Lost`] if it falls apart first, [`AttachError::NotReady`] when `deadline` has passed or it ends.
    pub fn wait_ready(&self, deadline: Instant) -> Result<CellInfo, AttachError> {
        let mut desk = self.shared.lock();
        loop {
            match (&desk.state, &desk.info) {
                (CellState::Ready, Some(info)) => return Ok(info.clone()),
                (CellState::Lost(loss), _) => return Err(AttachError::Lost(loss.clone())),
                (CellState::Stopping, _) => {
                    return Err(AttachError::NotReady(desk.why_not_ready()));
                }
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AttachError::NotReady(desk.why_not_ready()));
            }
            desk = self.shared.wait(desk, left);
        }
    }

    /// Notes where each rank runs, in words.
    pub fn set_places(&self, places: Vec<Place>) {
        self.shared.lock().places = places;
    }

    /// Returns where losses are told that this client noticed: a rank's, or rank 0's own. Receivers share one queue, which
    /// keeps the newest 16 that nobody has taken.
    #[must_use]
    pub fn losses(&self) -> async_channel::Receiver<Loss> {
        self.shared.losses.1.clone()
    }

    /// Asks every rank what it holds. Waits for the answer, at most 10 s.
    ///
    /// # Errors
    /// [`InspectError`] if the cell is not ready or does not answer.
    pub fn inspect(&self) -> Result<Vec<RankReport>, InspectError> {
        let deadline = Instant::now() + INSPECT_WAIT;
        let mut desk = self.shared.lock();
        let seen = desk.reports.0;
        if desk.state != CellState::Ready || !desk.say(&Command::Inspect) {
            return Err(InspectError::NotReady(desk.why_not_ready()));
        }
        loop {
            if desk.reports.0 > seen {
                return Ok(desk.reports.1.clone());
            }
            if desk.state != CellState::Ready {
                return Err(InspectError::NotReady(desk.why_not_ready()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InspectError::Timeout {
                    waited_ms: INSPECT_WAIT.as_millis() as u64,
                });
            }
            desk = self.shared.wait(desk, left);
        }
    }

    /// Asks the whole cell to end, and fails every open request. That the cell then goes is no loss.
    pub fn shutdown(&self) {
        self.shared.lock().shutdown();
        self.shared.changed.notify_all();
    }
}

/// What rank 0 says of itself when a front attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Where rank 0 awaits the other ranks; `None` in a world of one.
    pub fabric: Option<SocketAddr>,
    /// Number of ranks.
    pub world: usize,
    /// Name under which the model is served.
    pub model_name: String,
    /// What the cell is doing.
    pub state: CellState,
}

/// The front could not attach to a cell, or the cell did not become ready.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Nothing answers at the socket.
    #[error("no rank 0 answers at {socket}: {source}")]
    Unreachable {
        /// The socket's path.
        socket: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The cell has a living front.
    #[error("the cell already has a front; stop that one first")]
    Busy,
    /// The two processes are of different releases.
    #[error(
        "the cell at {socket} speaks protocol version {theirs} and this front version {ours}; restart the cell with this release"
    )]
    Version {
        /// The socket's path.
        socket: String,
        /// Version of this front.
        ours: u16,
        /// Version of the cell.
        theirs: u16,
    },
    /// What answers is not a rank 0.
    #[error("what answers at the socket is not a shoal cell: {0}")]
    Protocol(String),
    /// This client already serves a cell.
    #[error("this client is attached already; detach it first")]
    Attached,
    /// The cell fell apart while it was waited for.
    #[error("{0}")]
    Lost(Loss),
    /// It did not become ready in time.
    #[error("the cell was not ready in time: {0}")]
    NotReady(String),
}

/// The cell does not take a request.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// There is no cell to take it.
    #[error("the cell is not ready: {0}")]
    NotReady(String),
    /// As many requests as it takes are open.
    #[error("the queue is full; try again in {retry_after_seconds} s")]
    QueueFull {
        /// When room is to be expected.
        retry_after_seconds: u64,
    },
    /// The prompt leaves no room for a reply.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {context}; shorten the prompt"
    )]
    TooLong {
        /// The context length, in tokens.
        context: u32,
        /// The prompt's length, in tokens.
        prompt_tokens: usize,
    },
    /// The request makes no sense to the model.
    #[error("the request cannot be computed: {0}")]
    Invalid(String),
}

/// The ranks could not be asked.
#[derive(Debug, Error)]
pub enum InspectError {
    /// There is no cell to ask.
    #[error("the cell is not ready: {0}")]
    NotReady(String),
    /// No answer came in time.
    #[error("the cell did not answer within {waited_ms} ms")]
    Timeout {
        /// How long it was waited for.
        waited_ms: u64,
    },
}

/// What the client's threads, its streams and its holders share.
#[derive(Debug)]
pub(crate) struct Shared {
    desk: Mutex<Desk>,
    /// Anything that somebody may wait for has changed.
    changed: Condvar,
    losses: (async_channel::Sender<Loss>, async_channel::Receiver<Loss>),
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            desk: Mutex::default(),
            changed: Condvar::new(),
            losses: async_channel::bounded(LOSSES_MAX),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("nothing panics under this lock")
    }

    fn wait<'a>(&self, desk: MutexGuard<'a, Desk>, left: Duration) -> MutexGuard<'a, Desk> {
        self.changed
            .wait_timeout(desk, left)
            .expect("nothing panics under this lock")
            .0
    }

    /// Takes what rank 0 said over attachment `number`.
    ///
    /// # Errors
    /// What is wrong with it.
    fn hear(&self, number: u64, notice: Notice) -> Result<(), Loss> {
        let heard = self.lock().hear(number, notice);
        self.changed.notify_all();
        heard
    }

    /// The attachment is over, for a reason.
    fn lose(&self, number: u64, loss: Loss) {
        if self.lock().lose(number, loss.clone()) {
            // Nobody may be listening; in a full queue it takes the place of the oldest.
            let _ = self.losses.0.force_send(loss);
        }
        self.changed.notify_all();
    }

    /// The stream of a request was dropped before its end.
    fn cancel(&self, id: u64) {
        self.lock().cancel(id);
    }
}

fn state_of(phase: &Phase) -> CellState {
    match phase {
        Phase::Starting => CellState::Starting,
        &Phase::Loading {
            done_bytes,
            total_bytes,
        } => CellState::Loading {
            done_bytes,
            total_bytes,
        },
        Phase::Ready(_) => CellState::Ready,
        Phase::Lost(loss) => CellState::Lost(loss.clone()),
    }
}

/// The ranks answer between two steps; a long step takes seconds on a slow machine.
const INSPECT_WAIT: Duration = Duration::from_secs(10);
/// Losses kept for a supervisor that is late to take them.
const LOSSES_MAX: usize = 16;
