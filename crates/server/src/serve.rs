//! Running the router on a listener.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::connections::{Bounded, WRITE_TIMEOUT};
use crate::router::BODY_TIMEOUT;

/// How long open replies may go on once shutdown is asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Most connections that are open at once; more wait to be taken.
const CONNECTIONS_MAX: usize = 1024;

/// Longest time from the opening of a connection, or from the last reply on it, to the end of a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of a request's first line and headers. A client needs no key to have them kept, on every connection.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Serves until `shutdown` completes; then takes no new connections, lets open replies end for at
/// most five seconds, and returns.
///
/// A connection that the client has closed, or closed for writing, ends at once, and with it the
/// reply being made: TCP does not tell the two apart until there is something to send.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    info!(
        connections_max = CONNECTIONS_MAX,
        header_timeout_s = HEADER_TIMEOUT.as_secs(),
        header_bytes_max = HEADER_BYTES_MAX,
        body_timeout_s = BODY_TIMEOUT.as_secs(),
        write_timeout_s = WRITE_TIMEOUT.as_secs(),
        "HTTP bounds"
    );
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_BYTES_MAX)
        .max_buf_size(HEADER_BYTES_MAX);
    let service = TowerToHyperService::new(router);
    let open = GracefulShutdown::new();
    let mut listener = Bounded::new(listener, CONNECTIONS_MAX);
    let mut shutdown = pin!(shutdown);
    loop {
        let connection = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let connection = http.serve_connection(TokioIo::new(connection), service.clone());
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection broke off");
            }
        });
    }
    drop(listener);
    info!(
        at_most_s = DRAIN.as_secs(),
        "stopping; letting open replies end"
    );
    if timeout(DRAIN, open.shutdown()).await.is_err() {
        warn!("replies were still open and have been cut off");
    }
}
