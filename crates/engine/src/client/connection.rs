//! One attachment to rank 0's socket: the greeting, then a thread for each direction.

use std::io::{self, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use shoal_fabric::Rank;

use super::{AttachError, Shared};
use crate::status::Loss;
use crate::wire::{self, Command, Greeting, Notice, Patience};

/// A connection whose greetings are over.
pub(super) struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    patience: Patience,
}

/// Connects to a rank 0 and exchanges greetings.
pub(super) fn greet(
    socket: &Path,
    deadline: Instant,
) -> Result<(Connection, Greeting), AttachError> {
    let unreachable = |source| AttachError::Unreachable {
        socket: socket.display().to_string(),
        source,
    };
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(GREETING_WAIT_MIN);
    let mut writer = UnixStream::connect(socket).map_err(unreachable)?;
    writer.set_read_timeout(Some(left)).map_err(unreachable)?;
    writer
        .set_write_timeout(Some(WRITE_WAIT))
        .map_err(unreachable)?;
    let mut frame = Vec::new();
    Command::Hello {
        version: wire::VERSION,
    }
    .encode(&mut frame);
    writer.write_all(&frame).map_err(unreachable)?;
    let mut reader = BufReader::new(writer.try_clone().map_err(unreachable)?);
    wire::read_frame(&mut reader, &mut frame).map_err(unreachable)?;
    // From here on the reader knows whether rank 0 lives, and ends a write that waits for one that does not: rank 0 takes
    // commands between steps, and a step may take long.
    writer.set_write_timeout(None).map_err(unreachable)?;
    let greeting = match Notice::decode(&frame) {
        Ok(Notice::Hello(greeting)) => greeting,
        Ok(Notice::Busy) => return Err(AttachError::Busy),
        Ok(Notice::Version { version }) => {
            return Err(AttachError::Version {
                socket: socket.display().to_string(),
                ours: wire::VERSION,
                theirs: version,
            });
        }
        Ok(_) => return Err(AttachError::Protocol("it did not greet".to_owned())),
        Err(error) => return Err(AttachError::Protocol(error.to_string())),
    };
    let patience = greeting.patience;
    bear(&writer, patience.during(&greeting.phase)).map_err(unreachable)?;
    let connection = Connection {
        reader,
        writer,
        patience,
    };
    Ok((connection, greeting))
}

impl Connection {
    /// Starts the two threads of attachment `number`. They end with the socket, or with the client.
    pub(super) fn start(
        self,
        number: u64,
        frames: &async_channel::Receiver<Vec<u8>>,
        shared: &Arc<Shared>,
    ) {
        let Self {
            reader,
            writer,
            patience,
        } = self;
        let frames = frames.clone();
        spawn("cell-writer", move || write_frames(writer, &frames));
        // Weak: the client ends when its holders and its streams are gone.
        let shared = Arc::downgrade(shared);
        spawn("cell-reader", move || {
            read_notices(reader, patience, number, &shared)
        });
    }
}

fn write_frames(mut writer: UnixStream, frames: &async_channel::Receiver<Vec<u8>>) {
    while let Ok(frame) = frames.recv_blocking() {
        if writer.write_all(&frame).is_err() {
            break;
        }
    }
    // Wakes the reader; and tells rank 0 that its front is gone.
    let _ = writer.shutdown(Shutdown::Both);
}

fn read_notices(
    mut reader: BufReader<UnixStream>,
    patience: Patience,
    number: u64,
    shared: &Weak<Shared>,
) {
    let mut frame = Vec::new();
    let loss = loop {
        let root = |reason: String| Loss {
            rank: Rank(0),
            reason,
        };
        if let Err(error) = wire::read_frame(&mut reader, &mut frame) {
            break root(match error.kind() {
                ErrorKind::UnexpectedEof => {
                    "its process closed the connection to the front".to_owned()
                }
                // What a read says whose timeout has passed, on one system or another.
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    let silence = reader.get_ref().read_timeout().ok().flatten();
                    let silence_ms = silence.unwrap_or_default().as_millis();
                    format!("it was silent for {silence_ms} ms")
                }
                _ => format!("the connection from the front failed: {error}"),
            });
        }
        let Some(shared) = shared.upgrade() else {
            // What is still to be written goes out, unless nobody reads it.
            let _may_have_ended = reader.get_ref().set_write_timeout(Some(WRITE_WAIT));
            return;
        };
        match Notice::decode(&frame) {
            Ok(notice) => {
                if let Notice::Phase(phase) = &notice
                    && let Err(error) = bear(reader.get_ref(), patience.during(phase))
                {
                    break root(format!("the connection from the front failed: {error}"));
                }
                if let Err(loss) = shared.hear(number, notice) {
                    break loss;
                }
            }
            Err(error) => break root(format!("its messages make no sense: {error}")),
        }
    };
    end(&reader);
    if let Some(shared) = shared.upgrade() {
        shared.lose(number, loss);
    }
}

/// Wakes the writer.
fn end(reader: &BufReader<UnixStream>) {
    let _may_have_ended = reader.get_ref().shutdown(Shutdown::Both);
}

/// Sets for how long rank 0 may be silent from now on. To the system, zero would be a mistake.
fn bear(stream: &UnixStream, silence: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(silence.max(Duration::from_millis(1))))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.expect("a process that cannot start a thread cannot serve");
}

/// A rank 0 that lives answers at once; a deadline that has just passed still gives it the time to.
const GREETING_WAIT_MIN: Duration = Duration::from_millis(100);
/// One that does not read its first few bytes for this long is gone.
const WRITE_WAIT: Duration = Duration::from_secs(10);
