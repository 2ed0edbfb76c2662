//! Rank 0's end of the socket: listens, greets, and has one front at a time.
//!
//! One thread accepts, and each front has a reader and a writer. All of them only carry messages: what is said and done
//! is decided on the step thread, which takes [`Input`]s from a bounded channel and holds the front's [`Outbox`].

use std::fs;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tracing::{info, warn};

use crate::error::RankError;
use crate::wire::{self, Command, Greeting, Notice, Phase};

/// What comes from the front, in order.
#[derive(Debug)]
pub(crate) enum Input {
    /// A front has attached; this is where its notices go.
    Came(Outbox),
    /// It wants something.
    Command(Command),
    /// It has gone.
    Gone,
}

/// Rank 0's socket. Dropping it hangs up and removes the socket.
pub(crate) struct Front {
    socket: PathBuf,
    /// Device and inode of the socket: by the time this ends, another rank 0 may have put its own at the path.
    identity: Option<(u64, u64)>,
    hall: Arc<Hall>,
    /// Closed when the acceptor has ended.
    acceptor: Receiver<()>,
}

impl Front {
    /// Listens at `socket`, which only this user may open, and greets from now on.
    ///
    /// A front's order to end that comes before the cell is ready is also sent to `early_end`: loading takes no orders.
    pub(crate) fn open(
        socket: &Path,
        greeting: Greeting,
        inputs_max: usize,
        early_end: mpsc::Sender<Result<(), RankError>>,
    ) -> Result<(Self, Receiver<Input>), RankError> {
        let listener = listen(socket)?;
        let identity = identity_of(socket);
        let (inputs, taken) = mpsc::sync_channel(inputs_max);
        let state = State {
            greeting,
            occupied: None,
            closing: false,
        };
        let hall = Arc::new(Hall {
            state: Mutex::new(state),
            freed: Condvar::new(),
            inputs,
            early_end,
        });
        let (ended, acceptor) = mpsc::channel();
        spawn("front-acceptor", {
            let hall = Arc::clone(&hall);
            move || {
                accept(&listener, &hall);
                drop(ended);
            }
        })?;
        let front = Self {
            socket: socket.to_owned(),
            identity,
            hall,
            acceptor,
        };
        Ok((front, taken))
    }

    /// Returns how the step thread says how far the cell is to fronts that are yet to come.
    pub(crate) fn herald(&self) -> Herald {
        Herald(Arc::clone(&self.hall))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let mut state = self.hall.lock();
        state.closing = true;
        if let Some(stream) = &state.occupied {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        let owned = || self.identity.is_some() && identity_of(&self.socket) == self.identity;
        // A connection wakes the acceptor, on every system; one to another rank 0 would not. An acceptor that cannot be
        // woken ends with the process.
        if owned() && UnixStream::connect(&self.socket).is_ok() {
            let _ = self.acceptor.recv_timeout(ACCEPTOR_WAIT);
        }
        if owned() {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// Tells fronts that are yet to come how far the cell is.
pub(crate) struct Herald(Arc<Hall>);

impl Herald {
    pub(crate) fn set(&self, phase: Phase) {
        self.0.lock().greeting.phase = phase;
    }

    pub(crate) fn phase(&self) -> Phase {
        self.0.lock().greeting.phase.clone()
    }
}

/// What the threads of the front share.
struct Hall {
    state: Mutex<State>,
    /// The front has gone.
    freed: Condvar,
    inputs: SyncSender<Input>,
    early_end: mpsc::Sender<Result<(), RankError>>,
}

struct State {
    greeting: Greeting,
    /// The connection of the front there is.
    occupied: Option<UnixStream>,
    closing: bool,
}

impl Hall {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    /// Greets whoever has connected and starts their threads, if they are a front and there is none.
    fn receive(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(GREETING_WAIT))?;
        stream.set_write_timeout(Some(WRITE_WAIT))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut frame = Vec::new();
        wire::read_frame(&mut reader, &mut frame)?;
        match Command::decode(&frame) {
            Ok(Command::Hello {
                version: wire::VERSION,
            }) => {}
            Ok(Command::Hello { version }) => {
                warn!(
                    ours = wire::VERSION,
                    theirs = version,
                    "a front of another version came; restart it with this release"
                );
                return say(
                    &stream,
                    &Notice::Version {
                        version: wire::VERSION,
                    },
                );
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it did not greet",
                ));
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
        let Some(greeting) = self.occupy(&stream)? else {
            return say(&stream, &Notice::Busy);
        };
        let welcomed = say(&stream, &Notice::Hello(greeting))
            .and_then(|()| stream.set_read_timeout(None))
            .and_then(|()| Outbox::open(stream))
            .and_then(|outbox| {
                let hall = Arc::clone(self);
                let _ = self.inputs.send(Input::Came(outbox));
                spawn("front-reader", move || hall.read(reader)).map_err(io::Error::other)
            });
        if welcomed.is_err() {
            self.vacate();
        }
        welcomed.map(drop)
    }

    /// Takes the one place there is. A front that has just died gives it up within moments, so this waits a little.
    fn occupy(&self, stream: &UnixStream) -> io::Result<Option<Greeting>> {
        let state = self.lock();
        let taken = |state: &mut State| state.occupied.is_some();
        let waited = self.freed.wait_timeout_while(state, PLACE_WAIT, taken);
        let mut state = waited.expect("nothing panics under this lock").0;
        if state.occupied.is_some() || state.closing {
            return Ok(None);
        }
        state.occupied = Some(stream.try_clone()?);
        Ok(Some(state.greeting.clone()))
    }

    fn vacate(&self) {
        let _ = self.inputs.send(Input::Gone);
        self.lock().occupied = None;
        self.freed.notify_all();
    }

    /// Carries the front's commands to the step thread until it goes. A full channel holds the front back.
    fn read(&self, mut reader: BufReader<UnixStream>) {
        let mut frame = Vec::new();
        while wire::read_frame(&mut reader, &mut frame).is_ok() {
            match Command::decode(&frame) {
                Ok(command) => {
                    if command == Command::Shutdown
                        && !matches!(self.lock().greeting.phase, Phase::Ready(_))
                    {
                        let _ = self.early_end.send(Ok(()));
                    }
                    if self.inputs.send(Input::Command(command)).is_err() {
                        break; // the step thread has ended
                    }
                }
                Err(error) => {
                    warn!(%error, "the front does not make sense; hanging up");
                    break;
                }
            }
        }
        let _ = reader.get_ref().shutdown(Shutdown::Both);
        self.vacate();
    }
}

/// Where notices to one front go. Dropping it lets the writer finish what was sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    notices: Option<SyncSender<Vec<u8>>>,
    stream: UnixStream,
    writer: Option<JoinHandle<()>>,
}

impl Outbox {
    pub(crate) fn open(stream: UnixStream) -> io::Result<Self> {
        let (notices, taken) = mpsc::sync_channel(OUTBOX_MAX);
        let writing = stream.try_clone()?;
        let writer =
            spawn("front-writer", move || write(writing, &taken)).map_err(io::Error::other)?;
        Ok(Self {
            notices: Some(notices),
            stream,
            writer: Some(writer),
        })
    }

    /// Sends frames without waiting; says whether there was room. A front that leaves none has stopped reading.
    pub(crate) fn send(&self, frames: Vec<u8>) -> bool {
        let notices = self.notices.as_ref().expect("it is there until the end");
        notices.try_send(frames).is_ok()
    }

    /// Hangs up, whatever is still unsent.
    pub(crate) fn cut(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        drop(self.notices.take());
        if let Some(writer) = self.writer.take() {
            // Bounded: a write that takes longer than its timeout ends the writer.
            let _ = writer.join();
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn identity_of(socket: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(socket).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn accept(listener: &UnixListener, hall: &Arc<Hall>) {
    for stream in listener.incoming() {
        if hall.lock().closing {
            return;
        }
        match stream.and_then(|stream| hall.receive(stream)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {} // somebody looked whether we live
            Err(error) => warn!(%error, "whoever connected to the socket was no front"),
        }
    }
}

fn write(mut stream: UnixStream, notices: &Receiver<Vec<u8>>) {
    for frames in notices {
        if stream.write_all(&frames).is_err() {
            // Wakes the reader, which tells that the front is gone.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn say(mut stream: &UnixStream, notice: &Notice) -> io::Result<()> {
    let mut frame = Vec::new();
    notice.encode(&mut frame);
    stream.write_all(&frame)
}

/// Makes the socket. Its permissions are set before it listens, so nobody else ever gets in.
fn listen(path: &Path) -> Result<UnixListener, RankError> {
    if UnixStream::connect(path).is_ok() {
        return Err(RankError::SocketTaken(path.to_owned()));
    }
    let make = || -> io::Result<UnixListener> {
        // Nobody answers there: it is what a rank 0 that was killed has left.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    };
    let listener = make().map_err(|source| RankError::Socket {
        path: path.to_owned(),
        source,
    })?;
    info!(socket = %path.display(), "listening for the front");
    Ok(listener)
}

pub(crate) fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, RankError> {
    // What a thread logs belongs to the rank that started it.
    let span = tracing::Span::current();
    let work = move || span.in_scope(work);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(RankError::Thread)
}

/// Steps of notices on their way to a front. One that is this far behind has stopped reading.
pub(crate) const OUTBOX_MAX: usize = 1024;
/// A front speaks at once; somebody who does not holds up the others for this long.
const GREETING_WAIT: Duration = Duration::from_secs(1);
/// The end of a front's process closes its socket within this.
const PLACE_WAIT: Duration = Duration::from_millis(250);
const WRITE_WAIT: Duration = Duration::from_secs(2);
/// Longer than the acceptor takes to turn away whoever does not greet.
const ACCEPTOR_WAIT: Duration = Duration::from_secs(3);
const BACKLOG: i32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Patience;

    #[test]
    fn a_front_whose_path_another_has_taken_ends_and_leaves_it_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let greeting = Greeting {
            fabric: None,
            world: 1,
            model_name: "tiny".to_owned(),
            phase: Phase::Starting,
            patience: Patience {
                forming: Duration::MAX,
                serving: Duration::MAX,
            },
        };
        let (front, _inputs) = Front::open(&path, greeting, 1, mpsc::channel().0).expect("opened");
        fs::remove_file(&path).expect("it is there");
        let _other = UnixListener::bind(&path).expect("the path is free");
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            drop(front);
            let _ = ended.send(());
        });
        // Reached only when it waits for an acceptor that nothing wakes.
        end.recv_timeout(Duration::from_secs(60)).expect("it ends");
        assert!(
            UnixStream::connect(&path).is_ok(),
            "the other still listens"
        );
    }
}
