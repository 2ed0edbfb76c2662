//! The connections, which are few, and none of which is held open by a client that does not read.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tracing::warn;

/// Longest time for which a client may take nothing of a reply that waits for it.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Takes connections while fewer than a bound are open; the rest wait in the system's backlog.
pub(crate) struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl Bounded {
    pub(crate) fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(connections_max)),
        }
    }

    /// Waits for the next connection, and before that for a slot for it. Dropping the call loses nothing.
    pub(crate) async fn accept(&mut self) -> Connection {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        // axum's, which waits when the process has no more file descriptors.
        let (stream, _) = Listener::accept(&mut self.listener).await;
        // A token is a small packet of its own and must not wait for the next one.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
        Connection {
            stream,
            stalled: None,
            _slot: slot,
        }
    }
}

/// An open connection, which holds its slot. Writing fails once the client has taken nothing for [`WRITE_TIMEOUT`].
pub(crate) struct Connection {
    stream: TcpStream,
    /// Runs while there is something to write and no room for it.
    stalled: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// Bounds how long writes stay pending, of which `write` is one.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), cx);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn connection_over_the_bound_waits_until_another_is_closed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut listener = Bounded::new(listener, 1);
        let _one = TcpStream::connect(address).await.expect("room");
        let two = TcpStream::connect(address).await.expect("the backlog");
        let first = listener.accept().await;
        assert_eq!(listener.slots.available_permits(), 0);
        {
            let mut over = std::pin::pin!(listener.accept());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(over.as_mut().poll(&mut cx).is_pending());
            drop(first);
            let second = over.await;
            let peer = second.stream.peer_addr().expect("an address");
            assert_eq!(peer, two.local_addr().expect("an address"));
        }
        assert_eq!(listener.slots.available_permits(), 1);
    }
}
