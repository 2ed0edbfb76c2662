//! What the HTTP API answers over a cell whose every token the test decides.

mod common;

use axum::http::StatusCode;
use common::cell::{Cell, finished, reply, tokens};
use common::{
    BEGIN_TURN, CHAT, COMPLETIONS, CONTEXT, END_TURN, app, chat, completion, eventually, get, post,
};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use shoal_engine::client::{Event, FinishReason, Sampling};

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
    let answer = post(&app(&cell.client), CHAT, &chat(json!({}))).await;
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
    let answer = post(&app(&cell.client), CHAT, &chat(json!({"stream": true}))).await;
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
        &lines(
            post(&app(&cell.client), CHAT, &body).await.chunks(),
            "chatcmpl-",
        ),
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
    let answer = post(&app(&cell.client), CHAT, &chat(json!({"stream": true}))).await;
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
    let answer = post(&app(&cell.client), CHAT, &chat(json!({"stream": true}))).await;
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
    let app = app(&cell.client);
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
    let answer = post(
        &app(&cell.client),
        CHAT,
        &chat(json!({"stop": [", t", "zzz"]})),
    )
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
        &app(&cell.client),
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
async fn stop_string_that_only_the_end_completes_counts() {
    let cell = Cell::new(|_| {
        let half = Event::Token(0xc3);
        [tokens("H"), vec![half, finished(FinishReason::Length)]].concat()
    });
    let answer = post(&app(&cell.client), CHAT, &chat(json!({"stop": "\u{fffd}"}))).await;
    let choice = &answer.json()["choices"][0];
    assert_eq!(choice["message"]["content"], "H");
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn options_reach_the_cell() {
    let cell = Cell::new(|_| reply(""));
    let app = app(&cell.client);
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
    let app = app(&cell.client);
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
