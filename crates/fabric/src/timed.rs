//! Blocking streams whose reads and writes end at a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::error::FabricError;

/// Reads once, one byte at least; `None` waits for as long as the connection lives.
pub(crate) fn read_some(
    mut stream: &TcpStream,
    into: &mut [u8],
    deadline: Option<Instant>,
) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(deadline.map(time_left).transpose()?)?;
        match stream.read(into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if is_too_early(&error) => {}
            outcome => return outcome,
        }
    }
}

/// Fills `into`.
pub(crate) fn read_exact(stream: &TcpStream, into: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        filled += read_some(stream, &mut into[filled..], Some(deadline))?;
    }
    Ok(())
}

/// Writes all of `bytes`.
pub(crate) fn write_all(
    mut stream: &TcpStream,
    mut bytes: &[u8],
    deadline: Instant,
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if is_too_early(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns what is left until `deadline`, never zero: the operating system takes that for "no bound".
pub(crate) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left.max(Duration::from_millis(1)))
    }
}

/// Returns what a failure on the connection to `peer` means.
pub(crate) fn failure(
    error: &io::Error,
    peer: &str,
    started: Instant,
    doing: &'static str,
) -> FabricError {
    let peer = peer.to_owned();
    match error.kind() {
        io::ErrorKind::TimedOut => {
            let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            FabricError::Silent {
                peer,
                waited_ms,
                doing,
            }
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => FabricError::Closed {
            peer,
            reason: format!("the other end hung up while {doing}"),
        },
        _ => FabricError::Closed {
            peer,
            reason: error.to_string(),
        },
    }
}

/// The time given to the operating system was up, or a signal came; whether the deadline has passed is looked at anew.
fn is_too_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
