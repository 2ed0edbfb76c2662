//! Bytes beside the groups: blocking streams between two ends that have proved to each other that they hold the same key.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use crate::cables::{Cables, Terms};
use crate::channel::Channel;
use crate::error::FabricError;
use crate::key::Key;
use crate::link::Transport;
use crate::socket::bound_if_local;
use crate::tcp::Config;

/// What a channel has been exchanged for: one lane for each cable that joins the two ends.
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
        let terms = Terms {
            config,
            key,
            deadline,
        };
        Self::agree(channel, terms, true)
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
        let terms = Terms {
            config,
            key,
            deadline,
        };
        Self::agree(channel, terms, false)
    }

    /// Says what carries all of them.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.lanes.first().map_or(Transport::Tcp, Lane::transport)
    }

    fn agree(mut channel: Channel, terms: Terms<'_>, leads: bool) -> Result<Self, FabricError> {
        match terms.agree(&mut channel, leads)? {
            Ok(cables) => Ok(Self::over(channel.into_stream(), cables)?),
            Err(reason) => Err(FabricError::NoTransport {
                peer: channel.peer_addr().to_string(),
                reason: format!("tcp: {reason}"),
            }),
        }
    }

    fn over(stream: TcpStream, cables: Cables) -> io::Result<Self> {
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
    socket: TcpStream,
}

impl Lane {
    fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        bound_if_local(&socket)?;
        Ok(Self { socket })
    }

    /// Says what carries it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        Transport::Tcp
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
        let _may_be_closed_already = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends it at once, in both directions.
    pub fn close(self) {
        let _may_be_closed_already = self.socket.shutdown(Shutdown::Both);
    }
}

impl Read for Lane {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into)
    }
}

impl Write for Lane {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ends a [`Lane`] that another thread may be waiting on.
pub struct Closer(TcpStream);

impl Closer {
    /// Ends it at once, in both directions; whoever waits on it returns.
    pub fn close(&self) {
        let _may_be_closed_already = self.0.shutdown(Shutdown::Both);
    }
}
