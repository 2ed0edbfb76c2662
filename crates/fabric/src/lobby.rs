//! Where those wait who have connected and not yet proved who they are.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::error::FabricError;
use crate::socket::poll_for;

/// Greets everybody who connects, each on a thread of its own, so that the slow and the silent hold nobody up.
///
/// Greetings are bounded in number and, by what `greet` does, in time; they end by themselves when the lobby is dropped.
pub(crate) struct Lobby<T> {
    listener: TcpListener,
    greet: Arc<dyn Fn(TcpStream) -> Result<T, FabricError> + Send + Sync>,
    greeted: mpsc::Receiver<Result<T, FabricError>>,
    door: mpsc::Sender<Result<T, FabricError>>,
    /// Wakes the owner when somebody has been greeted.
    bell: UnixStream,
    ringer: Arc<UnixStream>,
    waiting: usize,
}

impl<T: Send + 'static> Lobby<T> {
    pub(crate) fn new(
        listener: TcpListener,
        greet: impl Fn(TcpStream) -> Result<T, FabricError> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (bell, ringer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let (door, greeted) = mpsc::channel();
        Ok(Self {
            listener,
            greet: Arc::new(greet),
            greeted,
            door,
            bell,
            ringer: Arc::new(ringer),
            waiting: 0,
        })
    }

    /// Returns the next outcome of a greeting; `None` at the deadline.
    pub(crate) fn next(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<Result<T, FabricError>>, FabricError> {
        loop {
            if let Ok(outcome) = self.greeted.try_recv() {
                self.waiting -= 1;
                return Ok(Some(outcome));
            }
            self.admit()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.sleep(left)?;
        }
    }

    /// Lets in who is at the door.
    fn admit(&mut self) -> io::Result<()> {
        while self.waiting < WAITING_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    // What befell one connection on its way.
                    io::ErrorKind::NetworkDown
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::HostUnreachable => continue,
                    _ => return Err(error),
                },
            };
            let (greet, door, ringer) = (
                Arc::clone(&self.greet),
                self.door.clone(),
                Arc::clone(&self.ringer),
            );
            thread::Builder::new()
                .name("greeting".to_owned())
                .spawn(move || {
                    let _lobby_may_be_gone = door.send(greet(stream));
                    let _bell_may_be_full = (&*ringer).write(&[1]);
                })?;
            self.waiting += 1;
        }
        Ok(())
    }

    fn sleep(&self, left: Duration) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
        if self.waiting < WAITING_MAX {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        poll_for(&mut fds, left)?;
        let _bell_may_be_silent = (&self.bell).read(&mut [0; WAITING_MAX]);
        Ok(())
    }
}

/// Bound of those who are being greeted; more wait outside.
const WAITING_MAX: usize = 128;
