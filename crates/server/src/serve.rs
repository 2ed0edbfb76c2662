//! Running the router on a listener.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

/// How long open replies may go on once shutdown is asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `shutdown` completes; then takes no new connections, lets open replies end for at
/// most five seconds, and returns.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // A token is a small packet of its own and must not wait for the next one.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
    });
    let (asked, draining) = oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        info!(
            at_most_s = DRAIN.as_secs(),
            "stopping; letting open replies end"
        );
        let _ = asked.send(());
    });
    tokio::select! {
        result = server => result,
        () = async {
            let _ = draining.await;
            tokio::time::sleep(DRAIN).await;
        } => {
            warn!("replies were still open and have been cut off");
            Ok(())
        }
    }
}
