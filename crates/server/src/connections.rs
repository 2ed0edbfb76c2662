//! A listener that keeps its connections few.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Takes connections while fewer than a bound are open; the rest wait in the system's backlog.
///
/// What a connection may do is bounded elsewhere, except for how long it may be silent before a
/// request's headers are complete: `axum::serve` offers no such timeout, so a client that opens this
/// many connections and says nothing keeps others out until it hangs up.
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
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // A token is a small packet of its own and must not wait for the next one.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
        (
            Connection {
                stream,
                _slot: slot,
            },
            peer,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// An open connection, which holds its slot.
pub(crate) struct Connection {
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
        let mut listener = Bounded::new(listener.expect("a free port"), 1);
        let address = listener.local_addr().expect("an address");
        let _one = TcpStream::connect(address).await.expect("room");
        let two = TcpStream::connect(address).await.expect("the backlog");
        let (first, _) = listener.accept().await;
        assert_eq!(listener.slots.available_permits(), 0);
        {
            let mut over = std::pin::pin!(listener.accept());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(over.as_mut().poll(&mut cx).is_pending());
            drop(first);
            let (_second, peer) = over.await;
            assert_eq!(peer, two.local_addr().expect("an address"));
        }
        assert_eq!(listener.slots.available_permits(), 1);
    }
}
