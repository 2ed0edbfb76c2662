//! Links over TCP, with the bytes of some of them going through shared memory or over RDMA.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use smallvec::{SmallVec, smallvec};

use crate::ground::Road;
use crate::link::{Interest, Links, Transport};
use crate::shared::SharedLink;
use crate::verbs::RdmaLink;

/// The links of one rank, with one TCP connection to each peer.
pub(crate) struct TcpLinks {
    /// By peer; the place of the rank itself is empty.
    peers: Vec<Option<Line>>,
}

/// One link.
enum Line {
    Tcp(TcpStream),
    Shared(SharedLink),
    Rdma(Box<RdmaLink>),
}

impl TcpLinks {
    /// Takes connected streams and makes them fit for collectives: nothing blocks, nothing is held back to be coalesced.
    ///
    /// Where there is another road, the bytes take that.
    pub(crate) fn new(peers: Vec<Option<(TcpStream, Road)>>) -> io::Result<Self> {
        let line = |(stream, road): (TcpStream, Road)| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            if matches!(road, Road::Tcp) && has_one_address(&stream) {
                sockopt::set_socket_send_buffer_size(&stream, LOCAL_SEND_BYTES)?;
            }
            Ok(match road {
                Road::Tcp => Line::Tcp(stream),
                Road::Shared(pipes) => Line::Shared(SharedLink::new(*pipes, stream)),
                Road::Rdma(flow) => Line::Rdma(Box::new(RdmaLink::new(*flow, stream))),
            })
        };
        let peers = peers.into_iter().map(|peer| peer.map(line).transpose());
        Ok(Self {
            peers: peers.collect::<io::Result<_>>()?,
        })
    }

    fn line(&mut self, peer: usize) -> io::Result<&mut Line> {
        self.peers
            .get_mut(peer)
            .and_then(Option::as_mut)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Links for TcpLinks {
    fn write(&mut self, peer: usize, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.line(peer)? {
            Line::Tcp(stream) => Ok(unless_blocked(stream.write_vectored(parts))?.unwrap_or(0)),
            Line::Shared(link) => link.write(parts),
            Line::Rdma(link) => link.write(parts),
        }
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.line(peer)? {
            Line::Tcp(stream) => unless_blocked(stream.read(into)),
            Line::Shared(link) => link.read(into),
            Line::Rdma(link) => link.read(into),
        }
    }

    fn wait(&mut self, interests: &[Interest], timeout: Duration) -> io::Result<()> {
        let mut may_sleep = true;
        let mut longest = timeout;
        for interest in interests {
            match self.line(interest.peer)? {
                Line::Tcp(_) => {}
                Line::Shared(link) => may_sleep &= link.prepare_sleep(*interest),
                Line::Rdma(link) => {
                    may_sleep &= link.prepare_sleep(*interest);
                    longest = longest.min(link.nap().unwrap_or(longest));
                }
            }
        }
        let mut ready: SmallVec<[bool; PEERS]> = smallvec![false; interests.len()];
        let slept = if may_sleep {
            self.poll(interests, longest, &mut ready)
        } else {
            Ok(())
        };
        for (interest, news) in interests.iter().zip(ready) {
            match self.line(interest.peer)? {
                Line::Tcp(_) => {}
                Line::Shared(link) => link.awake(news),
                Line::Rdma(link) => link.awake(news),
            }
        }
        slept
    }

    fn transport(&self, peer: usize) -> Option<Transport> {
        self.peers.get(peer)?.as_ref().map(|line| match line {
            Line::Tcp(_) => Transport::Tcp,
            Line::Shared(_) => Transport::SharedMemory,
            Line::Rdma(_) => Transport::Rdma,
        })
    }
}

impl TcpLinks {
    /// Sleeps on the connections of `interests`, and marks those that have something.
    fn poll(
        &self,
        interests: &[Interest],
        timeout: Duration,
        ready: &mut [bool],
    ) -> io::Result<()> {
        let mut fds: SmallVec<[PollFd<'_>; PEERS]> = SmallVec::new();
        let mut of_interest: SmallVec<[usize; PEERS]> = SmallVec::new();
        for (index, interest) in interests.iter().enumerate() {
            let files = match self.peers[interest.peer].as_ref() {
                None => [None, None],
                Some(Line::Tcp(stream)) => {
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::IN, interest.read);
                    flags.set(PollFlags::OUT, interest.write);
                    [Some(PollFd::new(stream, flags)), None]
                }
                // Wake-ups for both directions come in.
                Some(Line::Shared(link)) => [Some(PollFd::new(&link.socket, PollFlags::IN)), None],
                Some(Line::Rdma(link)) => link.files(),
            };
            for file in files.into_iter().flatten() {
                fds.push(file);
                of_interest.push(index);
            }
        }
        poll_for(&mut fds, timeout)?;
        for (index, fd) in of_interest.into_iter().zip(&fds) {
            ready[index] |= !fd.revents().is_empty();
        }
        Ok(())
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

/// Whether both ends of a connection are one machine.
pub(crate) fn has_one_address(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(theirs)) if ours.ip() == theirs.ip())
}

/// What a connection inside one machine holds: there is no way for more to be on, and what waits longer has left the
/// processor's caches when it is read. Between machines the system finds the right size by itself.
const LOCAL_SEND_BYTES: usize = 256 * 1024;

/// So many peers are waited for without taking memory from the allocator.
const PEERS: usize = 8;

/// Returns nothing where a call would have had to wait.
pub(crate) fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
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
