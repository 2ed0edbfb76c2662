//! What the HTTP API answers while there is no cell: everything that does not need one.

mod common;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use common::{Reply, call, generator, get, post, request, text};
use expect_test::{Expect, expect};
use serde_json::json;
use shoal_engine::client::Client;
use shoal_server::{Generator, ServerConfig, router};

fn app() -> Router {
    router(generator(Client::new()), ServerConfig::default())
}

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(actual);
}

async fn call_with(
    router: &Router,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Reply {
    let mut request = request(method, path, Body::empty());
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, value.parse().expect("a header value"));
    }
    call(router, request).await
}

#[tokio::test]
async fn root_lists_every_endpoint() {
    let app = app();
    let root = get(&app, "/").await.json();
    check(
        &format!("{root:#}"),
        &expect![[r#"
        {
          "endpoints": [
            "GET /",
            "GET /health",
            "GET /health/live",
            "GET /queue",
            "GET /v1/models",
            "GET /v1/models/{id}",
            "POST /v1/chat/completions",
            "POST /v1/completions"
          ],
          "model": "org/tiny",
          "service": "shoal",
          "version": "0.1.0"
        }"#]],
    );
    for endpoint in root["endpoints"].as_array().expect("a list") {
        let (method, path) = endpoint
            .as_str()
            .and_then(|line| line.split_once(' '))
            .expect("METHOD path");
        let method = method.parse().expect("a method");
        let reply = call(
            &app,
            request(method, &path.replace("{id}", common::MODEL), Body::empty()),
        )
        .await;
        assert!(
            !matches!(reply.status.as_u16(), 404 | 405),
            "{endpoint}: {}",
            reply.body
        );
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_names_with_slashes() {
    let app = app();
    let mut list = get(&app, "/v1/models").await.json();
    assert!(list["data"][0]["created"].take().is_u64());
    check(
        &list.to_string(),
        &expect![[
            r#"{"data":[{"created":null,"id":"org/tiny","max_model_len":256,"object":"model","owned_by":"shoal"}],"object":"list"}"#
        ]],
    );

    let mut one = get(&app, "/v1/models/org/tiny").await.json();
    one["created"].take();
    assert_eq!(one, list["data"][0]);
    assert_eq!(
        get(&app, "/v1/models/org%2Ftiny").await.status,
        StatusCode::OK
    );
    check(
        &get(&app, "/v1/models/other").await.error(),
        &expect![[
            r#"404 "invalid_request_error" "model" "model_not_found" "The model 'other' does not exist here; this cell serves 'org/tiny'.""#
        ]],
    );
    check(
        &get(&app, "/v1/models/%ff").await.error(),
        &expect![[
            r#"404 "invalid_request_error" "model" "model_not_found" "The model '' does not exist here; this cell serves 'org/tiny'.""#
        ]],
    );
}

#[tokio::test]
async fn health_says_why_it_is_not_ready() {
    let app = app();
    let health = get(&app, "/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    check(
        &health.body,
        &expect![[
            r#"{"status":"starting","reason":"the ranks are being started","model":"org/tiny","world_size":0,"ranks":[],"queue":{"waiting":0,"running":0,"limits":null}}"#
        ]],
    );
    assert_eq!(get(&app, "/health/live").await.status, StatusCode::OK);
    check(
        &get(&app, "/queue").await.body,
        &expect![[r#"{"waiting":0,"running":0,"limits":null}"#]],
    );
}

#[tokio::test]
async fn requests_before_the_cell_is_ready_are_told_to_come_back() {
    let app = app();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut told = String::new();
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({"model": "org/tiny", "messages": messages}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "org/tiny", "messages": messages, "stream": true}),
        ),
        (
            "/v1/completions",
            json!({"model": "org/tiny", "prompt": "hi"}),
        ),
        (
            "/v1/completions",
            json!({"model": "org/tiny", "prompt": "hi", "stream": true}),
        ),
    ] {
        let reply = post(&app, path, &body).await;
        assert_eq!(reply.header("retry-after"), Some("2"));
        told += &format!("{}\n", reply.error());
    }
    check(
        &told,
        &expect![[r#"
        503 "server_error" null "not_ready" "the cell is not ready: its ranks are starting"
        503 "server_error" null "not_ready" "the cell is not ready: its ranks are starting"
        503 "server_error" null "not_ready" "the cell is not ready: its ranks are starting"
        503 "server_error" null "not_ready" "the cell is not ready: its ranks are starting"
    "#]],
    );
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let app = app();
    let malformed = call(
        &app,
        request(Method::POST, "/v1/chat/completions", "{\"model\": "),
    )
    .await;
    check(
        &malformed.error(),
        &expect![[
            r#"400 "invalid_request_error" null null "The body of the request is not valid JSON for this endpoint: EOF while parsing a value at line 1 column 10.""#
        ]],
    );
    let hot = json!({"model": "org/tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 3});
    check(
        &post(&app, "/v1/chat/completions", &hot).await.error(),
        &expect![[
            r#"400 "invalid_request_error" "temperature" "invalid_value" "Invalid value for 'temperature': 3 is outside 0 to 2.""#
        ]],
    );
    let other = json!({"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]});
    check(
        &post(&app, "/v1/chat/completions", &other).await.error(),
        &expect![[
            r#"404 "invalid_request_error" "model" "model_not_found" "The model 'gpt-5' does not exist here; this cell serves 'org/tiny'.""#
        ]],
    );
    let other = json!({"model": "gpt-5", "prompt": "hi"});
    assert_eq!(
        post(&app, "/v1/completions", &other).await.status,
        StatusCode::NOT_FOUND
    );
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
    let app = app();
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
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn model_without_a_template_points_to_completions() {
    let generator = Generator::new(Client::new(), Arc::new(text(false)), common::config());
    let app = router(generator, ServerConfig::default());
    let chat = json!({"model": "org/tiny", "messages": [{"role": "user", "content": "hi"}]});
    check(
        &post(&app, "/v1/chat/completions", &chat).await.error(),
        &expect![[
            r#"400 "invalid_request_error" null "no_chat_template" "this model has no chat template; use /v1/completions, or `shoal run --raw`""#
        ]],
    );
}

#[tokio::test]
async fn wrong_paths_methods_and_sizes_have_openai_bodies() {
    let app = app();
    check(
        &get(&app, "/v1/nope").await.error(),
        &expect![[
            r#"404 "invalid_request_error" null "unknown_url" "Unknown request URL: GET /v1/nope. GET / lists what can be asked.""#
        ]],
    );
    let wrong_method = get(&app, "/v1/chat/completions").await;
    check(
        &wrong_method.error(),
        &expect![[
            r#"405 "invalid_request_error" null "method_not_allowed" "GET is not allowed for /v1/chat/completions; the Allow header says what is.""#
        ]],
    );
    assert_eq!(wrong_method.header("allow"), Some("POST"));

    let config = ServerConfig {
        body_limit_bytes: 100,
        ..ServerConfig::default()
    };
    let app = router(generator(Client::new()), config);
    let large = call(
        &app,
        request(Method::POST, "/v1/completions", "x".repeat(101)),
    )
    .await;
    check(
        &large.error(),
        &expect![[
            r#"413 "invalid_request_error" null "request_too_large" "The request body is longer than 100 bytes.""#
        ]],
    );
    let at_limit = call(
        &app,
        request(Method::POST, "/v1/completions", "x".repeat(100)),
    )
    .await;
    assert_eq!(at_limit.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn api_key_guards_every_path_but_liveness() {
    let config = ServerConfig {
        api_key: Some("sesame".into()),
        ..ServerConfig::default()
    };
    let app = router(generator(Client::new()), config);
    let missing = get(&app, "/v1/models").await;
    check(
        &missing.error(),
        &expect![[
            r#"401 "invalid_request_error" null "invalid_api_key" "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.""#
        ]],
    );
    assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
    let wrong = call_with(
        &app,
        Method::GET,
        "/v1/models",
        &[("authorization", "Bearer sesam")],
    )
    .await;
    check(
        &wrong.error(),
        &expect![[
            r#"401 "invalid_request_error" null "invalid_api_key" "Incorrect API key provided. Send it in the header 'Authorization: Bearer YOUR_KEY'.""#
        ]],
    );
    for path in [
        "/",
        "/health",
        "/queue",
        "/v1/models/org/tiny",
        "/v1/nope",
        "/v1/chat/completions",
    ] {
        assert_eq!(
            get(&app, path).await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    assert_eq!(get(&app, "/health/live").await.status, StatusCode::OK);
    for key in ["Bearer sesame", "bearer sesame"] {
        let reply = call_with(&app, Method::GET, "/v1/models", &[("authorization", key)]).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn request_ids_are_on_every_reply_and_sane_ones_are_kept() {
    let app = app();
    let made = get(&app, "/v1/nope").await;
    assert!(
        made.header("x-request-id")
            .is_some_and(|id| id.starts_with("req_") && id.len() == 28)
    );
    let kept = call_with(&app, Method::GET, "/", &[("x-request-id", "mine-1")]).await;
    assert_eq!(kept.header("x-request-id"), Some("mine-1"));
    for insane in ["", "two words", &"x".repeat(129)] {
        let replaced = call_with(&app, Method::GET, "/", &[("x-request-id", insane)]).await;
        assert!(
            replaced
                .header("x-request-id")
                .is_some_and(|id| id.starts_with("req_"))
        );
    }
}

#[tokio::test]
async fn cors_is_off_until_origins_are_named() {
    const ALLOWED: &str = "access-control-allow-origin";
    let page = [("origin", "http://page.example")];
    assert_eq!(
        call_with(&app(), Method::GET, "/", &page)
            .await
            .header(ALLOWED),
        None
    );

    for (origins, expected) in [
        (["http://page.example"], Some("http://page.example")),
        (["http://other.example"], None),
        (["*"], Some("http://page.example")),
    ] {
        let config = ServerConfig {
            cors_origins: origins.map(String::from).to_vec(),
            api_key: Some("sesame".into()),
            ..ServerConfig::default()
        };
        let app = router(generator(Client::new()), config);
        // Also on errors, or the page could not read them; and before the key, which a preflight has not.
        let refused = call_with(&app, Method::GET, "/", &page).await;
        assert_eq!(
            (refused.status, refused.header(ALLOWED)),
            (StatusCode::UNAUTHORIZED, expected)
        );
        let preflight = [
            page[0],
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,content-type",
            ),
        ];
        let preflight = call_with(&app, Method::OPTIONS, "/v1/chat/completions", &preflight).await;
        assert_eq!(
            (preflight.status, preflight.header(ALLOWED)),
            (StatusCode::OK, expected)
        );
        assert_eq!(
            preflight.header("access-control-allow-headers"),
            Some("authorization,content-type")
        );
    }
}
