//! Which prompts the HTTP API refuses, with a cell that would take them.

mod common;

use std::sync::Arc;

use axum::http::StatusCode;
use common::cell::{Cell, reply};
use common::{app, config, post, text};
use expect_test::{Expect, expect};
use serde_json::json;
use shoal_server::{Generator, ServerConfig, router};

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

#[tokio::test]
async fn prompts_without_meaning_name_the_field() {
    let cell = Cell::new(|_| reply(""));
    let app = app(&cell.client);
    let empty = json!({"model": "org/tiny", "prompt": ""});
    check(
        &post(&app, "/v1/completions", &empty).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "prompt" "invalid_value" "the prompt has no tokens; send at least one""#
        ]],
    );
    let unknown_token = json!({"model": "org/tiny", "prompt": [1, 258]});
    check(
        &post(&app, "/v1/completions", &unknown_token).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "prompt" "invalid_value" "token 258 is not in the vocabulary, which has 258 tokens""#
        ]],
    );
}

#[tokio::test]
async fn prompts_that_fill_the_context_are_refused_with_both_numbers() {
    let cell = Cell::new(|_| reply(""));
    let app = app(&cell.client);
    // 255 bytes and the 34 of the template, where each special token counts once.
    let long =
        json!({"model": "org/tiny", "messages": [{"role": "user", "content": "x".repeat(255)}]});
    check(
        &post(&app, "/v1/chat/completions", &long).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "messages" "context_length_exceeded" "This model's maximum context length is 256 tokens. However, your messages resulted in 274 tokens. Please reduce the length of the messages so that at least one token is left for the reply.""#
        ]],
    );
    let full = json!({"model": "org/tiny", "prompt": "x".repeat(256)});
    check(
        &post(&app, "/v1/completions", &full).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "prompt" "context_length_exceeded" "This model's maximum context length is 256 tokens. However, your prompt resulted in 256 tokens. Please reduce the length of the prompt so that at least one token is left for the reply.""#
        ]],
    );
    let fits = json!({"model": "org/tiny", "prompt": "x".repeat(255)});
    assert_eq!(
        post(&app, "/v1/completions", &fits).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn model_without_a_template_points_to_completions() {
    let cell = Cell::silent();
    let generator = Generator::new(cell.client.clone(), Arc::new(text(false)), config());
    let app = router(generator, ServerConfig::default());
    let chat = json!({"model": "org/tiny", "messages": [{"role": "user", "content": "hi"}]});
    check(
        &post(&app, "/v1/chat/completions", &chat).await.error(),
        &expect![[
            r#"400 "invalid_request_error" null "no_chat_template" "this model has no chat template; use /v1/completions, or `shoal run --raw`""#
        ]],
    );
}
