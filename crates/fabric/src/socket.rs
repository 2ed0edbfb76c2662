//! Links over TCP, with the bytes of some of them going over several connections, through shared memory or over RDMA.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use smallvec::{SmallVec, smallvec};

use crate::ground::Road;
use crate::link::{Interest, Links, Transport};
use crate::pages::Pages;
use crate::schedule::Schedule;
use crate::shared::SharedLink;
use crate::stripe::StripedLink;
use crate::timed;
use crate::verbs::{FLUSH_TIME_MAX, RdmaLink};

/// The links of one rank, with one TCP connection to each peer.
pub(crate) struct TcpLinks {
    /// By peer; the place of the rank itself is empty.
    peers: Vec<Option<Line>>,
}

/// One link.
enum Line {
    Tcp(TcpStream),
    Striped(Box<StripedLink>),
    Shared(SharedLink),
    Rdma(Box<RdmaLink>),
}

impl TcpLinks {
    /// Takes connected streams and makes them fit for collectives: nothing blocks, nothing is held back to be coalesced.
    ///
    /// Where there is another road, the bytes take that.
    pub(crate) fn new(peers: Vec<Option<(TcpStream, Road)>>) -> io::Result<Self> {
        let fit = |stream: &TcpStream, carries: bool| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            if carries {
                bound_if_local(stream)?;
            }
            io::Result::Ok(())
        };
        let line = |(stream, road): (TcpStream, Road)| {
            fit(&stream, matches!(road, Road::Tcp | Road::Striped(_)))?;
            Ok(match road {
                Road::Tcp => Line::Tcp(stream),
                Road::Striped(cables) => {
                    let mut streams = vec![stream];
                    for further in cables.further {
                        fit(&further, true)?;
                        streams.push(further);
                    }
                    Line::Striped(Box::new(StripedLink::new(streams, &cables.weights)?))
                }
                Road::Shared(pipes) => Line::Shared(SharedLink::new(*pipes, stream)),
                Road::Rdma(flows) => Line::Rdma(Box::new(RdmaLink::new(*flows, stream))),
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
            Line::Striped(link) => link.write(parts),
            Line::Shared(link) => link.write(parts),
            Line::Rdma(link) => link.write(parts),
        }
    }

    fn read(&mut self, peer: usize, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.line(peer)? {
            Line::Tcp(stream) => unless_blocked(stream.read(into)),
            Line::Striped(link) => link.read(into),
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
                Line::Striped(link) => may_sleep &= link.prepare_sleep(*interest),
                Line::Shared(link) => may_sleep &= link.prepare_sleep(*interest),
                Line::Rdma(link) => {
                    may_sleep &= link.prepare_sleep(*interest);
                    longest = longest.min(link.nap());
                }
            }
        }
        let mut ready: SmallVec<[u8; PEERS]> = smallvec![0; interests.len()];
        let slept = if may_sleep {
            self.poll(interests, longest, &mut ready)
        } else {
            Ok(())
        };
        for (interest, news) in interests.iter().zip(ready) {
            match self.line(interest.peer)? {
                Line::Tcp(_) => {}
                Line::Striped(link) => link.awake(*interest, news),
                Line::Shared(link) => link.awake(news != 0),
                Line::Rdma(link) => link.awake(news != 0),
            }
        }
        slept
    }

    fn lend(&mut self, pages: &Arc<Pages>) {
        for line in self.peers.iter_mut().flatten() {
            match line {
                Line::Rdma(link) => link.lend(pages),
                Line::Shared(link) => link.lend(pages),
                Line::Tcp(_) | Line::Striped(_) => {}
            }
        }
    }

    fn unsettled(&mut self, peer: usize) -> io::Result<usize> {
        match self.line(peer)? {
            Line::Rdma(link) => link.unsettled(),
            Line::Shared(link) => link.unsettled(),
            Line::Tcp(_) | Line::Striped(_) => Ok(0),
        }
    }

    fn give_up(&mut self) {
        for line in self.peers.iter_mut().flatten() {
            if let Line::Shared(link) = line {
                link.give_up();
            }
        }
    }

    fn reclaim(&mut self) {
        let until = Instant::now() + FLUSH_TIME_MAX;
        for line in self.peers.iter_mut().flatten() {
            match line {
                Line::Rdma(link) => link.reclaim(until),
                Line::Shared(link) => link.reclaim(),
                Line::Tcp(_) | Line::Striped(_) => {}
            }
        }
    }

    fn transport(&self, peer: usize) -> Option<Transport> {
        self.peers.get(peer)?.as_ref().map(|line| match line {
            Line::Tcp(_) | Line::Striped(_) => Transport::Tcp,
            Line::Shared(_) => Transport::SharedMemory,
            Line::Rdma(_) => Transport::Rdma,
        })
    }

    fn cables(&self, peer: usize) -> usize {
        match self.schedule(peer) {
            Some(schedule) => schedule.width(),
            None => usize::from(self.transport(peer).is_some()),
        }
    }

    fn breadth(&self, peer: usize) -> f64 {
        match self.schedule(peer) {
            Some(schedule) => schedule.breadth(),
            None => self.cables(peer) as f64,
        }
    }

    fn turn(&self, peer: usize, reads: bool) -> Option<&str> {
        match self.peers.get(peer)?.as_ref()? {
            Line::Striped(link) => Some(link.turn(reads)),
            Line::Rdma(link) => link.flows().turn(reads),
            Line::Tcp(_) | Line::Shared(_) => None,
        }
    }
}

impl TcpLinks {
    /// Returns how the bytes to and from `peer` are striped, if they are.
    fn schedule(&self, peer: usize) -> Option<&Schedule> {
        match self.peers.get(peer)?.as_ref()? {
            Line::Striped(link) => Some(link.schedule()),
            Line::Rdma(link) => Some(link.flows().schedule()),
            Line::Tcp(_) | Line::Shared(_) => None,
        }
    }

    /// Sleeps on the connections of `interests`, and marks those that have something: a bit for each file of a link.
    fn poll(&self, interests: &[Interest], timeout: Duration, ready: &mut [u8]) -> io::Result<()> {
        let mut fds: SmallVec<[PollFd<'_>; FILES]> = SmallVec::new();
        let mut of_interest: SmallVec<[(usize, u8); FILES]> = SmallVec::new();
        for (index, interest) in interests.iter().enumerate() {
            let mut add = |bits: u8, file| {
                fds.push(file);
                of_interest.push((index, bits));
            };
            match self.peers[interest.peer].as_ref() {
                None => {}
                Some(Line::Tcp(stream)) => {
                    let mut flags = PollFlags::empty();
                    flags.set(PollFlags::IN, interest.read);
                    flags.set(PollFlags::OUT, interest.write);
                    add(1, PollFd::new(stream, flags));
                }
                Some(Line::Striped(link)) => {
                    for (bit, file) in link.files(*interest) {
                        add(bit, file);
                    }
                }
                // Wake-ups for both directions come in.
                Some(Line::Shared(link)) => add(1, PollFd::new(&link.socket, PollFlags::IN)),
                Some(Line::Rdma(link)) => {
                    link.files().for_each(|file| add(1, file));
                }
            }
        }
        poll_for(&mut fds, timeout)?;
        for ((index, bits), fd) in of_interest.into_iter().zip(&fds) {
            if !fd.revents().is_empty() {
                ready[index] |= bits;
            }
        }
        Ok(())
    }
}

/// Connects to `to` from an address of this machine, and so over the cable that leads to both.
pub(crate) fn connect_from(
    own: IpAddr,
    to: SocketAddr,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let family = match own {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket(family, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    bind(&socket, &SocketAddr::new(own, 0))?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match connect(&stream, &to) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => loop {
            let left = timed::time_left(deadline)?;
            let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
            poll_for(&mut fds, left)?;
            if !fds[0].revents().is_empty() {
                sockopt::socket_error(&stream)??;
                break;
            }
        },
        Err(error) => return Err(error.into()),
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Sleeps until one of `fds` is ready, for `timeout` at most; a signal may end it early.
pub(crate) fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether both ends of a connection are one machine.
pub(crate) fn has_one_address(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(theirs)) if ours.ip() == theirs.ip())
}

/// Bounds what a connection inside one machine holds: there is no way for more to be on, and what waits longer has left the
/// processor's caches when it is read. Between machines the system finds the right size by itself.
///
/// # Errors
/// When the system refuses.
pub(crate) fn bound_if_local(stream: &TcpStream) -> io::Result<()> {
    if has_one_address(stream) {
        sockopt::set_socket_send_buffer_size(stream, LOCAL_SEND_BYTES)?;
    }
    Ok(())
}

const LOCAL_SEND_BYTES: usize = 256 * 1024;

/// So many peers are waited for without taking memory from the allocator.
const PEERS: usize = 8;
/// And so many of their connections, of which a striped link has several.
const FILES: usize = 32;

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
