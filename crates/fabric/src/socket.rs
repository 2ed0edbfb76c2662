//! Links over TCP.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::link::{Interest, Links};

/// The links of one rank over one TCP connection to each peer.
pub(crate) struct TcpLinks {
    /// By peer; the place of the rank itself is empty.
    peers: Vec<Option<TcpStream>>,
}

impl TcpLinks {
    /// Takes connected streams and makes them fit for collectives: nothing blocks, nothing is held back to be coalesced.
    pub(crate) fn new(peers: Vec<Option<TcpStream>>) -> io::Result<Self> {
        for stream in peers.iter().flatten() {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        Ok(Self { peers })
    }

    fn stream(&self, peer: usize) -> io::Result<&TcpStream> {
        self.peers
            .get(peer)
            .and_then(Option::as_ref)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Links for TcpLinks {
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(unless_blocked(self.stream(peer)?.write_vectored(parts))?.unwrap_or(0))
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        unless_blocked(self.stream(peer)?.read(into))
    }

    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
        let mut fds = Vec::with_capacity(interests.len());
        for interest in interests {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            fds.push(PollFd::new(self.stream(interest.peer)?, flags));
        }
        poll_for(&mut fds, timeout)
    }
}

/// Sleeps until one of `fds` is ready, for `timeout` at most; a signal may end it early.
pub(crate) fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
