//! Running the router on a listener.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::connections::Bounded;
use crate::router::BODY_TIMEOUT;

/// How long open replies may go on once shutdown is asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Most connections that are open at once; more wait to be taken.
const CONNECTIONS_MAX: usize = 1024;

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
    info!(
        connections_max = CONNECTIONS_MAX,
        body_timeout_s = BODY_TIMEOUT.as_secs(),
        "HTTP bounds"
    );
    let listener = Bounded::new(listener, CONNECTIONS_MAX);
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
