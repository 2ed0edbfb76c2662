//! What the HTTP API does with connections: streams that break off, shutdown, and slow bodies.

mod common;

use std::convert::Infallible;
use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Method;
use common::cell::{Cell, finished};
use common::{CHAT, app, call, chat, eventually, request};
use expect_test::expect;
use futures_util::stream;
use serde_json::json;
use shoal_engine::client::{Client, Event, FinishReason};
use shoal_server::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

/// Starts a server on a free port; it stops when it is told to.
async fn start(client: &Client) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app(client), async {
        let _ = stopped.await;
    }));
    (address, stop, server)
}

/// Starts a server and a streamed chat on a connection to it, and waits for its first token.
async fn open_stream(cell: &Cell) -> (TcpStream, u64, oneshot::Sender<()>, JoinHandle<()>) {
    let (address, stop, server) = start(&cell.client).await;
    let mut connection = TcpStream::connect(address)
        .await
        .expect("the server listens");
    let body = chat(json!({"stream": true})).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection
        .write_all((head + &body).as_bytes())
        .await
        .expect("the server reads");
    let (id, _) = cell.submitted().await;
    cell.tell(id, Event::Token(b'H'.into()));
    let mut begun = String::new();
    while !begun.contains("data: {") {
        let mut part = [0; 1024];
        let read = connection
            .read(&mut part)
            .await
            .expect("the server answers");
        assert!(read > 0, "{begun}");
        begun.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    (connection, id, stop, server)
}

#[tokio::test]
async fn client_that_hangs_up_cancels_its_request() {
    let cell = Cell::silent();
    let (connection, id, _stop, server) = open_stream(&cell).await;
    drop(connection);
    assert_eq!(cell.cancelled().await, id);
    eventually("nothing runs", || cell.client.status().running == 0).await;
    server.abort();
}

/// TCP shows a client that only closes its writing side as one that is gone, until something is sent to it. To wait for
/// that would compute every abandoned reply that is not streamed to its end.
#[tokio::test]
async fn client_that_closes_its_writing_side_has_hung_up() {
    let cell = Cell::silent();
    let (mut connection, id, _stop, server) = open_stream(&cell).await;
    connection.shutdown().await.expect("the connection is open");
    assert_eq!(cell.cancelled().await, id);
    let mut rest = String::new();
    let read = connection.read_to_string(&mut rest).await;
    assert_eq!((read.expect("a clean end"), rest.as_str()), (0, ""));
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn headers_that_do_not_come_are_not_waited_for() {
    let (address, _stop, server) = start(&Client::new()).await;
    for begun in [
        "",
        "GET /health/live HTTP/1.1\r\nhost: loc",
        "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        let mut connection = TcpStream::connect(address).await.expect("it listens");
        let opened = Instant::now();
        connection
            .write_all(begun.as_bytes())
            .await
            .expect("it reads");
        let (mut replies, mut more) = connection.split();
        let mut reply = String::new();
        let trickle = async {
            let mut seconds = interval(Duration::from_secs(1));
            while !begun.is_empty() && !begun.ends_with("\r\n\r\n") {
                seconds.tick().await;
                // It may be closed by now, which is what the reader waits for.
                let _ = more.write_all(b"x").await;
            }
            pending::<()>().await;
        };
        tokio::select! {
            read = timeout(Duration::from_secs(60), replies.read_to_string(&mut reply)) => {
                let read = read.expect("the connection is closed in time");
                // A byte that comes after the end resets the connection.
                read.map_or_else(|error| assert_eq!(error.kind(), ErrorKind::ConnectionReset), drop);
            }
            () = trickle => unreachable!("it is pending"),
        }
        assert!(opened.elapsed() >= Duration::from_secs(30), "{begun:?}");
        assert_eq!(
            reply.ends_with("live\n"),
            begun.ends_with("\r\n\r\n"),
            "{reply}"
        );
    }
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_not_read_are_not_kept() {
    let (address, _stop, server) = start(&Client::new()).await;
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    // The path comes back in the reply, which is therefore about as long as the request.
    let request = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "x".repeat(30_000)
    );
    let opened = Instant::now();
    let flood = async {
        loop {
            if let Err(error) = connection.write_all(request.as_bytes()).await {
                return error.kind();
            }
        }
    };
    let ended = timeout(Duration::from_secs(120), flood).await;
    let ended = ended.expect("the connection is closed in time");
    assert!(
        matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{ended}"
    );
    assert!(opened.elapsed() >= Duration::from_secs(60));
    server.abort();
}

#[tokio::test]
async fn headers_beyond_the_bound_are_refused() {
    let (address, _stop, server) = start(&Client::new()).await;
    for (bytes, status) in [(60_000, "200"), (70_000, "431")] {
        let mut connection = TcpStream::connect(address).await.expect("it listens");
        let request = format!(
            "GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
            "x".repeat(bytes)
        );
        connection
            .write_all(request.as_bytes())
            .await
            .expect("it reads");
        let mut begun = [0; 12];
        connection.read_exact(&mut begun).await.expect("it answers");
        assert_eq!(begun, *format!("HTTP/1.1 {status}").as_bytes());
    }
    server.abort();
}

#[tokio::test]
async fn shutdown_lets_open_streams_end() {
    let cell = Cell::silent();
    let (mut connection, id, stop, server) = open_stream(&cell).await;
    stop.send(()).expect("the server waits");
    cell.tell(id, finished(FinishReason::Stop));
    let mut rest = String::new();
    connection
        .read_to_string(&mut rest)
        .await
        .expect("the stream ends");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    server.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn body_that_does_not_come_is_not_waited_for() {
    let never = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let reply = call(&app(&Client::new()), request(Method::POST, CHAT, never)).await;
    expect![[r#"408 "invalid_request_error" null "request_timeout" "The request body was not complete after 30s.""#]].assert_eq(&reply.error());
}
