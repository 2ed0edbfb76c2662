//! Bytes beside the groups: blocking streams between two ends that have proved to each other that they hold the same key.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use rustix::event::PollFd;
use tracing::debug;

use crate::cables::{Cables, Terms};
use crate::channel::Channel;
use crate::error::FabricError;
use crate::key::Key;
use crate::link::{Interest, Transport};
use crate::socket::{bound_if_local, poll_for};
use crate::tcp::Config;
use crate::verbs::{Devices, Flows, RdmaLink};

/// What a channel has been exchanged for: one lane over RDMA, by all devices that reach each other, or one over TCP for each
/// cable that joins the two ends.
pub struct Lanes {
    /// One at least, each of the same transport.
    pub lanes: Vec<Lane>,
    /// What carries them, in words, such as `tcp over 2 addresses: 10.0.1.2, 10.0.2.2`.
    pub carrier: String,
    /// What could have carried bytes as well and does not, and why.
    pub left_out: Vec<String>,
}

impl Lanes {
    /// Agrees as the end that connected with the other one, which [follows](Self::follow). Shared memory is no choice.
    ///
    /// # Errors
    /// [`FabricError::NoTransport`] where `config` or that of the other end leaves nothing; when the connection fails, or what
    /// the other end says cannot be read.
    pub fn lead(
        channel: Channel,
        config: &Config,
        key: &Key,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        Self::agree(channel, config, key, deadline, true)
    }

    /// Agrees as the end that was connected to.
    ///
    /// # Errors
    /// As [`lead`](Self::lead).
    pub fn follow(
        channel: Channel,
        config: &Config,
        key: &Key,
        deadline: Instant,
    ) -> Result<Self, FabricError> {
        Self::agree(channel, config, key, deadline, false)
    }

    /// Says what carries all of them.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.lanes.first().map_or(Transport::Tcp, Lane::transport)
    }

    fn agree(
        mut channel: Channel,
        config: &Config,
        key: &Key,
        deadline: Instant,
        leads: bool,
    ) -> Result<Self, FabricError> {
        // Looked for anew each time, so that none is held when the lanes have ended.
        let devices = Devices::default();
        let agreed = match leads {
            true => devices.lead(config, &mut channel, deadline)?,
            false => devices.follow(config, &mut channel, deadline)?,
        };
        let why = match agreed {
            Ok(flows) => return Ok(Self::over_rdma(channel.into_stream(), flows)?),
            Err(reason) => format!("rdma: {reason}"),
        };
        let terms = Terms {
            config,
            key,
            deadline,
        };
        match terms.agree(&mut channel, leads)? {
            Ok(cables) => {
                let mut lanes = Self::over_tcp(channel.into_stream(), cables)?;
                // Most machines have no devices, which is no news.
                match devices.were_found() {
                    true => lanes.left_out.insert(0, why),
                    false => debug!(reason = why, "no lane over RDMA"),
                }
                Ok(lanes)
            }
            Err(reason) => Err(FabricError::NoTransport {
                peer: channel.peer_addr().to_string(),
                reason: format!("{why}; tcp: {reason}"),
            }),
        }
    }

    fn over_rdma(stream: TcpStream, flows: Flows) -> io::Result<Self> {
        Ok(Self {
            carrier: format!("{flows}: {}", flows.proof()),
            left_out: flows.left_out.clone(),
            lanes: vec![Lane::rdma(stream, flows)?],
        })
    }

    fn over_tcp(stream: TcpStream, cables: Cables) -> io::Result<Self> {
        let carrier = cables.to_string();
        let carries = cables.weights.first().is_some_and(|weight| *weight > 0);
        let streams = carries.then_some(stream).into_iter().chain(cables.further);
        Ok(Self {
            lanes: streams.map(Lane::tcp).collect::<io::Result<_>>()?,
            carrier,
            left_out: cables.left_out,
        })
    }
}

/// An ordered, reliable stream of bytes each way. Neither encrypted nor authenticated any more.
///
/// Reads and writes block for as long as the other end leaves them waiting; whoever bounds that holds a [`Closer`].
pub struct Lane {
    /// Carries the bytes, or is beside what does: its end is the end of either.
    socket: TcpStream,
    rdma: Option<Box<RdmaLink>>,
}

impl Lane {
    fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        bound_if_local(&socket)?;
        Ok(Self { socket, rdma: None })
    }

    fn rdma(socket: TcpStream, flows: Flows) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let link = RdmaLink::new(flows, socket.try_clone()?);
        Ok(Self {
            socket,
            rdma: Some(Box::new(link)),
        })
    }

    /// Says what carries it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self.rdma {
            Some(_) => Transport::Rdma,
            None => Transport::Tcp,
        }
    }

    /// Returns how many cables carry it: several where RDMA devices share its bytes.
    #[must_use]
    pub fn cables(&self) -> usize {
        let striped = self.rdma.as_ref();
        striped.map_or(1, |link| link.flows().schedule().width())
    }

    /// Returns what ends it from another thread.
    ///
    /// # Errors
    /// When this process has too many files open.
    pub fn closer(&self) -> io::Result<Closer> {
        self.socket.try_clone().map(Closer)
    }

    /// Ends it in order: the other end reads all that was written, and then its end.
    pub fn finish(self) {
        // It leaves when the device is done, and says how much there was.
        drop(self.rdma);
        let _may_be_closed_already = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends it at once, in both directions.
    pub fn close(self) {
        let _may_be_closed_already = self.socket.shutdown(Shutdown::Both);
    }
}

impl Read for Lane {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.rdma {
            Some(_) if into.is_empty() => Ok(0),
            Some(link) => loop {
                match link.read(into)? {
                    Some(count) => return Ok(count),
                    None => sleep(link, Interest::read(0))?,
                }
            },
            None => self.socket.read(into),
        }
    }
}

impl Write for Lane {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.rdma {
            Some(_) if bytes.is_empty() => Ok(0),
            Some(link) => loop {
                match link.write(&[IoSlice::new(bytes)])? {
                    0 => sleep(link, Interest::write(0))?,
                    count => return Ok(count),
                }
            },
            None => self.socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sleeps until something may be possible.
fn sleep(link: &mut RdmaLink, interest: Interest) -> io::Result<()> {
    let mut news = false;
    let mut slept = Ok(());
    if link.prepare_sleep(interest) {
        let mut files: Vec<PollFd<'_>> = link.files().collect();
        slept = poll_for(&mut files, link.nap());
        news = files.iter().any(|file| !file.revents().is_empty());
    }
    link.awake(news);
    slept
}

/// Ends a [`Lane`] that another thread may be waiting on.
pub struct Closer(TcpStream);

impl Closer {
    /// Ends it at once, in both directions; whoever waits on it returns.
    pub fn close(&self) {
        let _may_be_closed_already = self.0.shutdown(Shutdown::Both);
    }
}
