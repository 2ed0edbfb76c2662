//! What the HTTP API answers over a cell whose every token the test decides.

mod common;

use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use common::cell::{Cell, finished, reply, tokens};
use common::{BEGIN_TURN, CONTEXT, END_TURN, MODEL, eventually, generator, get, post, request};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use shoal_engine::client::{Event, Failure, FinishReason, Sampling};
use shoal_server::{ServerConfig, router, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn app(cell: &Cell) -> Router {
    router(generator(cell.client.clone()), ServerConfig::default())
}

fn chat(extra: Value) -> Value {
    with(
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}),
        extra,
    )
}

fn completion(extra: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "once"}), extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().expect("extra is an object") {
        body[key] = value.clone();
    }
    body
}

/// Takes out what differs from run to run, after checking it.
fn redacted(mut body: Value, prefix: &str) -> Value {
    let id = body["id"].as_str().expect("an id");
    assert!(
        id.starts_with(prefix) && id.len() == prefix.len() + 24,
        "{id}"
    );
    body["id"] = prefix.into();
    assert!(
        body["created"]
            .take()
            .as_u64()
            .is_some_and(|seconds| seconds > 1_700_000_000)
    );
    if let Some(performance) = body.get_mut("performance") {
        for key in ["generation_tokens_per_second", "time_to_first_token_ms"] {
            if performance[key].is_f64() {
                performance[key] = "measured".into();
            }
        }
    }
    body
}

fn lines(chunks: Vec<Value>, prefix: &str) -> String {
    chunks
        .into_iter()
        .map(|chunk| format!("{}\n", redacted(chunk, prefix)))
        .collect()
}

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

#[tokio::test]
async fn whole_chat_reply() {
    let cell = Cell::new(|_| reply("Hi!"));
    let answer = post(&app(&cell), CHAT, &chat(json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK);
    check(
        &format!("{:#}", redacted(answer.json(), "chatcmpl-")),
        &expect![[r#"
            {
              "choices": [
                {
                  "finish_reason": "stop",
                  "index": 0,
                  "logprobs": null,
                  "message": {
                    "content": "Hi!",
                    "refusal": null,
                    "role": "assistant"
                  }
                }
              ],
              "created": null,
              "id": "chatcmpl-",
              "model": "org/tiny",
              "object": "chat.completion",
              "performance": {
                "cached_tokens": 1,
                "generation_tokens_per_second": "measured",
                "prompt_tokens_per_second": 200.0,
                "time_to_first_token_ms": "measured"
              },
              "usage": {
                "completion_tokens": 3,
                "completion_tokens_details": {
                  "reasoning_tokens": 0
                },
                "prompt_tokens": 21,
                "prompt_tokens_details": {
                  "cached_tokens": 1
                },
                "total_tokens": 24
              }
            }"#]],
    );
    let (_, asked) = cell.submitted().await;
    let turn = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let rendered = [
        vec![BEGIN_TURN],
        turn("user\nhi"),
        vec![END_TURN],
        turn("\n"),
        vec![BEGIN_TURN],
        turn("assistant\n"),
    ];
    assert_eq!(asked.prompt, rendered.concat());
}

#[tokio::test]
async fn streamed_chat_has_the_role_with_the_first_token_and_one_chunk_a_token() {
    let cell = Cell::new(|_| reply("Hé"));
    let answer = post(&app(&cell), CHAT, &chat(json!({"stream": true}))).await;
    check(
        &lines(answer.chunks(), "chatcmpl-"),
        &expect![[r#"
            {"choices":[{"delta":{"content":"H","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk"}
            {"choices":[{"delta":{"content":""},"finish_reason":null,"index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk"}
            {"choices":[{"delta":{"content":"é"},"finish_reason":null,"index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk"}
            {"choices":[{"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk","performance":{"cached_tokens":1,"generation_tokens_per_second":"measured","prompt_tokens_per_second":200.0,"time_to_first_token_ms":"measured"}}
        "#]],
    );
}

#[tokio::test]
async fn streamed_usage_comes_in_a_chunk_without_choices() {
    let cell = Cell::new(|_| reply("H"));
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    check(
        &lines(post(&app(&cell), CHAT, &body).await.chunks(), "chatcmpl-"),
        &expect![[r#"
            {"choices":[{"delta":{"content":"H","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk","usage":null}
            {"choices":[{"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk","usage":null}
            {"choices":[],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk","performance":{"cached_tokens":1,"generation_tokens_per_second":null,"prompt_tokens_per_second":200.0,"time_to_first_token_ms":"measured"},"usage":{"completion_tokens":1,"completion_tokens_details":{"reasoning_tokens":0},"prompt_tokens":21,"prompt_tokens_details":{"cached_tokens":1},"total_tokens":22}}
        "#]],
    );
}

#[tokio::test]
async fn empty_reply_still_begins_with_the_role() {
    let cell = Cell::new(|_| reply(""));
    let answer = post(&app(&cell), CHAT, &chat(json!({"stream": true}))).await;
    check(
        &lines(answer.chunks(), "chatcmpl-"),
        &expect![[r#"
            {"choices":[{"delta":{"content":"","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk"}
            {"choices":[{"delta":{},"finish_reason":"stop","index":0,"logprobs":null}],"created":null,"id":"chatcmpl-","model":"org/tiny","object":"chat.completion.chunk","performance":{"cached_tokens":1,"generation_tokens_per_second":null,"prompt_tokens_per_second":200.0,"time_to_first_token_ms":null}}
        "#]],
    );
}

#[tokio::test]
async fn half_a_character_at_the_end_is_let_go() {
    let cell = Cell::new(|_| {
        vec![
            Event::Token(b'H'.into()),
            Event::Token(0xc3),
            finished(FinishReason::Length),
        ]
    });
    let answer = post(&app(&cell), CHAT, &chat(json!({"stream": true}))).await;
    let news: Vec<Value> = answer
        .chunks()
        .iter()
        .map(|chunk| chunk["choices"][0].clone())
        .collect();
    let contents: Vec<&Value> = news
        .iter()
        .map(|choice| &choice["delta"]["content"])
        .collect();
    assert_eq!(
        contents,
        [&json!("H"), &json!(""), &json!("\u{fffd}"), &Value::Null]
    );
    assert_eq!(news[3]["finish_reason"], "length");
}

#[tokio::test]
async fn completions_have_a_choice_for_each_prompt() {
    // Answers with the prompt itself.
    let cell = Cell::new(|request| {
        let mut events: Vec<Event> = request
            .prompt
            .iter()
            .map(|&token| Event::Token(token))
            .collect();
        events.push(finished(FinishReason::Length));
        events
    });
    let app = app(&cell);
    let one = post(&app, COMPLETIONS, &completion(json!({"prompt": "ab"}))).await;
    check(
        &format!("{:#}", redacted(one.json(), "cmpl-")),
        &expect![[r#"
            {
              "choices": [
                {
                  "finish_reason": "length",
                  "index": 0,
                  "logprobs": null,
                  "text": "ab"
                }
              ],
              "created": null,
              "id": "cmpl-",
              "model": "org/tiny",
              "object": "text_completion",
              "performance": {
                "cached_tokens": 1,
                "generation_tokens_per_second": "measured",
                "prompt_tokens_per_second": 10.0,
                "time_to_first_token_ms": "measured"
              },
              "usage": {
                "completion_tokens": 2,
                "completion_tokens_details": {
                  "reasoning_tokens": 0
                },
                "prompt_tokens": 2,
                "prompt_tokens_details": {
                  "cached_tokens": 1
                },
                "total_tokens": 4
              }
            }"#]],
    );
    assert_eq!(cell.submitted().await.1.max_tokens, 16);

    let two = post(
        &app,
        COMPLETIONS,
        &completion(json!({"prompt": [[97], [98, 99]]})),
    )
    .await
    .json();
    let texts: Vec<&Value> = two["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|c| &c["text"])
        .collect();
    assert_eq!(texts, ["a", "bc"]);
    assert_eq!(two["usage"]["total_tokens"], 6);
    assert_eq!(two["performance"]["cached_tokens"], 2);

    let body = completion(
        json!({"prompt": ["a", "bc"], "stream": true, "stream_options": {"include_usage": true}}),
    );
    let mut chunks = post(&app, COMPLETIONS, &body).await.chunks();
    let last = chunks.pop().expect("a usage chunk");
    check(
        &redacted(last, "cmpl-").to_string(),
        &expect![[
            r#"{"choices":[],"created":null,"id":"cmpl-","model":"org/tiny","object":"text_completion","performance":{"cached_tokens":2,"generation_tokens_per_second":"measured","prompt_tokens_per_second":10.0,"time_to_first_token_ms":"measured"},"usage":{"completion_tokens":3,"completion_tokens_details":{"reasoning_tokens":0},"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2},"total_tokens":6}}"#
        ]],
    );
    let of = |index: u64| {
        chunks
            .iter()
            .map(|c| &c["choices"][0])
            .filter(move |c| c["index"] == index)
    };
    let told = |index| {
        of(index)
            .map(|c| format!("{}{} ", c["text"], c["finish_reason"]))
            .collect::<String>()
    };
    check(
        &format!("{}| {}", told(0), told(1)),
        &expect![[r#""a"null """length" | "b"null "c"null """length" "#]],
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "text_completion" && chunk["usage"].is_null())
    );
}

#[tokio::test]
async fn stop_strings_end_the_reply_and_cancel_the_rest() {
    let cell = Cell::new(|_| tokens("one, two, three"));
    let answer = post(&app(&cell), CHAT, &chat(json!({"stop": [", t", "zzz"]})))
        .await
        .json();
    assert_eq!(answer["choices"][0]["message"]["content"], "one");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    cell.cancelled().await;
}

#[tokio::test]
async fn text_held_back_for_a_stop_string_comes_in_the_end() {
    let cell = Cell::new(|_| reply("wait, "));
    let answer = post(
        &app(&cell),
        CHAT,
        &chat(json!({"stop": ", t", "stream": true})),
    )
    .await;
    let chunks = answer.chunks();
    let contents: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["content"])
        .collect();
    assert_eq!(
        contents,
        [
            &json!("w"),
            &json!("a"),
            &json!("i"),
            &json!("t"),
            &json!(""),
            &json!(""),
            &json!(", "),
            &Value::Null
        ]
    );
}

#[tokio::test]
async fn options_reach_the_cell() {
    let cell = Cell::new(|_| reply(""));
    let app = app(&cell);
    let options = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 1,
        "frequency_penalty": -1, "seed": 7, "max_completion_tokens": 9, "stop_token_ids": [65],
    });
    post(&app, CHAT, &chat(options)).await;
    let (_, asked) = cell.submitted().await;
    let expected = Sampling {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 3,
        min_p: 0.1,
        repetition_penalty: 1.2,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        seed: 7,
    };
    assert_eq!(asked.sampling, expected);
    assert_eq!(
        (asked.max_tokens, asked.stop_tokens),
        (9, vec![END_TURN, 65])
    );

    post(
        &app,
        COMPLETIONS,
        &completion(json!({"prompt": "ab", "ignore_eos": true, "max_tokens": 1000})),
    )
    .await;
    let (_, asked) = cell.submitted().await;
    assert_eq!((asked.max_tokens, asked.stop_tokens), (CONTEXT - 2, vec![]));

    // A chat may fill the context; and without a seed every request draws its own.
    post(&app, CHAT, &chat(json!({}))).await;
    let (_, other) = cell.submitted().await;
    assert_eq!(
        other.max_tokens as usize,
        CONTEXT as usize - other.prompt.len()
    );
    assert_ne!(other.sampling.seed, asked.sampling.seed);
}

#[tokio::test]
async fn health_and_queue_of_a_ready_cell() {
    let cell = Cell::silent();
    let app = app(&cell);
    let health = get(&app, "/health").await;
    assert_eq!(health.status, StatusCode::OK);
    check(
        &health.body,
        &expect![[
            r#"{"status":"ready","model":"org/tiny","world_size":2,"ranks":[{"rank":0,"place":"here","state":"ready"},{"rank":1,"place":"there","state":"ready"}],"queue":{"waiting":0,"running":0,"limits":{"waiting_max":4,"running_max":4,"context":256}}}"#
        ]],
    );

    let busy = tokio::spawn({
        let app = app.clone();
        async move { post(&app, CHAT, &chat(json!({}))).await }
    });
    eventually("the request runs", || cell.client.status().running == 1).await;
    check(
        &get(&app, "/queue").await.body,
        &expect![[
            r#"{"waiting":0,"running":1,"limits":{"waiting_max":4,"running_max":4,"context":256}}"#
        ]],
    );
    cell.tell(cell.submitted().await.0, finished(FinishReason::Stop));
    assert_eq!(busy.await.expect("no panic").status, StatusCode::OK);
}

#[tokio::test]
async fn full_queue_says_when_to_come_back() {
    let cell = Cell::with_limits(1, 0, |_| Vec::new());
    let app = app(&cell);
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
    let app = app(&cell);
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
            r#"503 "server_error" null "not_ready" "the cell is not ready: rank 0 was lost: its process closed the connection to the front; the cell has to form again""#
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
        &post(&app(&cell), CHAT, &chat(json!({}))).await.error(),
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
    let app = app(&cell);
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
    let server = tokio::spawn(serve(listener, app(cell), async {
        let _ = stopped.await;
    }));
    let mut connection = TcpStream::connect(address)
        .await
        .expect("the server listens");
    let body = chat(json!({"stream": true})).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
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
