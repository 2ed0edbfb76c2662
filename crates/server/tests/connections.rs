//! What the HTTP API does with connections: streams that break off, shutdown, and slow bodies.

mod common;

use std::convert::Infallible;

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

/// Starts a server on a free port and a streamed chat on a connection to it, and waits for its first token.
async fn open_stream(
    cell: &Cell,
) -> (
    TcpStream,
    u64,
    oneshot::Sender<()>,
    tokio::task::JoinHandle<std::io::Result<()>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app(&cell.client), async {
        let _ = stopped.await;
    }));
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
    server.await.expect("no panic").expect("a clean end");
}

#[tokio::test(start_paused = true)]
async fn body_that_does_not_come_is_not_waited_for() {
    let never = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let reply = call(&app(&Client::new()), request(Method::POST, CHAT, never)).await;
    expect![[r#"408 "invalid_request_error" null "request_timeout" "The request body was not complete after 30s.""#]].assert_eq(&reply.error());
}
