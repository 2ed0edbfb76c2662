//! What the HTTP API answers when a cell is full, slow, or lost.

mod common;

use std::time::Duration;

use axum::http::{Method, StatusCode};
use common::cell::{Cell, reply};
use common::{CHAT, COMPLETIONS, app, chat, completion, eventually, generator, get, post, request};
use expect_test::{Expect, expect};
use serde_json::json;
use shoal_engine::client::{Event, Failure};
use shoal_server::{ServerConfig, router};
use tower::ServiceExt;

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

#[tokio::test]
async fn full_queue_says_when_to_come_back() {
    let cell = Cell::with_limits(1, 0, |_| Vec::new());
    let app = app(&cell.client);
    let stream = request(
        Method::POST,
        CHAT,
        chat(json!({"stream": true})).to_string(),
    );
    let open = app.clone().oneshot(stream).await.expect("infallible");
    assert_eq!(open.status(), StatusCode::OK);
    let refused = post(&app, CHAT, &chat(json!({}))).await;
    check(
        &refused.error(),
        &expect![[
            r#"429 "rate_limit_error" null "rate_limit_exceeded" "the queue is full; try again in 1 s""#
        ]],
    );
    assert!(
        refused
            .header("retry-after")
            .is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s >= 1))
    );
}

#[tokio::test]
async fn lost_rank_is_named_whole_streamed_and_after() {
    let cell = Cell::silent();
    let app = app(&cell.client);
    let rank = cell.client.status().ranks[1].rank;
    for stream in [false, true] {
        let open = tokio::spawn({
            let app = app.clone();
            async move { post(&app, CHAT, &chat(json!({"stream": stream}))).await }
        });
        let (id, _) = cell.submitted().await;
        cell.tell(id, Event::Token(b'H'.into()));
        let reason = "connection closed".to_owned();
        cell.tell(id, Event::Failed(Failure::RankLost { rank, reason }));
        let answer = open.await.expect("no panic");
        if stream {
            let events = answer.events();
            assert_eq!(events.len(), 2, "{events:?}");
            check(
                events[1],
                &expect![[
                    r#"{"error":{"message":"rank 1 was lost: connection closed; try again when the cell is ready","type":"server_error","param":null,"code":"rank_lost"}}"#
                ]],
            );
        } else {
            check(
                &answer.error(),
                &expect![[
                    r#"503 "server_error" null "rank_lost" "rank 1 was lost: connection closed; try again when the cell is ready""#
                ]],
            );
            assert_eq!(answer.header("retry-after"), Some("2"));
        }
    }

    let open = tokio::spawn({
        let app = app.clone();
        async move { post(&app, CHAT, &chat(json!({}))).await }
    });
    cell.submitted().await;
    cell.die();
    check(
        &open.await.expect("no panic").error(),
        &expect![[
            r#"503 "server_error" null "rank_lost" "rank 0 was lost: its process closed the connection to the front; try again when the cell is ready""#
        ]],
    );
    check(
        &post(&app, CHAT, &chat(json!({}))).await.error(),
        &expect![[
            r#"503 "server_error" null "not_ready" "the cell is not ready: rank 0 was lost: its process closed the connection to the front""#
        ]],
    );
    let health = get(&app, "/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    check(
        &health.body,
        &expect![[
            r#"{"status":"lost","reason":"rank 0 was lost: its process closed the connection to the front","model":"org/tiny","world_size":2,"ranks":[{"rank":0,"place":"here","state":"lost"},{"rank":1,"place":"there","state":"stopping"}],"queue":{"waiting":0,"running":0,"limits":{"waiting_max":4,"running_max":4,"context":256}}}"#
        ]],
    );
}

#[tokio::test]
async fn failure_inside_the_cell_is_a_500() {
    let failure = Event::Failed(Failure::Internal("no more pages".into()));
    let cell = Cell::new(move |_| vec![failure.clone()]);
    check(
        &post(&app(&cell.client), CHAT, &chat(json!({})))
            .await
            .error(),
        &expect![[
            r#"500 "server_error" null "internal_error" "the cell could not complete the request: no more pages""#
        ]],
    );
}

#[tokio::test]
async fn time_limit_ends_the_request() {
    let cell = Cell::silent();
    let config = ServerConfig {
        request_timeout: Some(Duration::from_millis(1)),
        ..ServerConfig::default()
    };
    let app = router(generator(cell.client.clone()), config);
    check(
        &post(&app, CHAT, &chat(json!({}))).await.error(),
        &expect![[
            r#"504 "server_error" null "timeout" "the request was not complete after 1ms, the longest this server allows""#
        ]],
    );
    cell.cancelled().await;
    assert_eq!(
        post(&app, CHAT, &chat(json!({"stream": true})))
            .await
            .events()
            .len(),
        1
    );
    cell.cancelled().await;
}

#[tokio::test]
async fn dropped_replies_are_cancelled() {
    let cell = Cell::silent();
    let app = app(&cell.client);
    let stream = request(
        Method::POST,
        COMPLETIONS,
        completion(json!({"prompt": ["a", "b"], "stream": true})).to_string(),
    );
    drop(app.clone().oneshot(stream).await.expect("infallible"));
    cell.cancelled().await;
    cell.cancelled().await;

    let whole = tokio::spawn(async move { post(&app, CHAT, &chat(json!({}))).await.status });
    eventually("the request runs", || cell.client.status().running == 1).await;
    whole.abort();
    cell.cancelled().await;
    assert_eq!(cell.client.status().running, 0);
}

#[tokio::test]
async fn more_prompts_than_can_be_open_are_a_bad_request() {
    let cell = Cell::with_limits(2, 1, |_| reply("x"));
    let app = app(&cell.client);
    let four = completion(json!({"prompt": ["a", "b", "c", "d"]}));
    check(
        &post(&app, COMPLETIONS, &four).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "prompt" "invalid_value" "Invalid value for 'prompt': at most 3 prompts fit this server's batch and queue, but got 4.""#
        ]],
    );
    let three = completion(json!({"prompt": ["a", "b", "c"]}));
    assert_eq!(post(&app, COMPLETIONS, &three).await.status, StatusCode::OK);
}
