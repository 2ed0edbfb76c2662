//! A listener that keeps its connections few.

use std::sync::Arc;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Takes connections while fewer than a bound are open; the rest wait in the system's backlog.
pub(crate) struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

/// The right to have a connection open; given back when it is dropped.
pub(crate) type Slot = OwnedSemaphorePermit;

impl Bounded {
    pub(crate) fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(connections_max)),
        }
    }

    /// Waits for the next connection, and before that for a slot for it. Dropping the call loses nothing.
    pub(crate) async fn accept(&mut self) -> (TcpStream, Slot) {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.expect("the semaphore is never closed");
        // axum's, which waits when the process has no more file descriptors.
        let (stream, _) = Listener::accept(&mut self.listener).await;
        // A token is a small packet of its own and must not wait for the next one.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
        (stream, slot)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::task::Context;

    use super::*;

    #[tokio::test]
    async fn connection_over_the_bound_waits_until_another_is_closed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut listener = Bounded::new(listener, 1);
        let _one = TcpStream::connect(address).await.expect("room");
        let two = TcpStream::connect(address).await.expect("the backlog");
        let (_first, slot) = listener.accept().await;
        assert_eq!(listener.slots.available_permits(), 0);
        {
            let mut over = std::pin::pin!(listener.accept());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(over.as_mut().poll(&mut cx).is_pending());
            drop(slot);
            let (second, _slot) = over.await;
            let peer = second.peer_addr().expect("an address");
            assert_eq!(peer, two.local_addr().expect("an address"));
        }
        assert_eq!(listener.slots.available_permits(), 1);
    }
}
