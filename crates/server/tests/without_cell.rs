//! What the HTTP API answers while there is no cell: everything that does not need one.

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use common::{Reply, call, generator, get, post, request};
use expect_test::{Expect, expect};
use serde_json::json;
use shoal_engine::client::Client;
use shoal_server::{ServerConfig, router};

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
            r#"{"status":"starting","reason":"the ranks are being started","model":"org/tiny","world_size":2,"ranks":[],"queue":{"waiting":0,"running":0,"limits":null}}"#
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
            503 "server_error" null "not_ready" "the cell is not ready: the ranks are being started"
            503 "server_error" null "not_ready" "the cell is not ready: the ranks are being started"
            503 "server_error" null "not_ready" "the cell is not ready: the ranks are being started"
            503 "server_error" null "not_ready" "the cell is not ready: the ranks are being started"
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
async fn odd_requests_have_openai_bodies_and_ids() {
    let app = app();
    let mut told = String::new();
    for (method, uri) in [
        ("PUT", "/health"),
        ("OPTIONS", "/v1/completions"),
        ("OPTIONS", "*"),
        ("CONNECT", "localhost:8080"),
        ("TRACE", "http://localhost/v1/models"),
        ("BREW", "/pot"),
        ("GET", "//"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/%ff%fe"),
        ("POST", "/v1/chat/completions"),
    ] {
        let method = method.parse().expect("a method");
        let mut odd = request(method, uri, Body::empty());
        odd.headers_mut()
            .insert("content-type", "text/x-unheard-of".parse().expect("text"));
        let reply = call(&app, odd).await;
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert!(reply.header("x-request-id").is_some());
        told += &format!("{}\n", reply.error());
    }
    check(
        &told,
        &expect![[r#"
        405 "invalid_request_error" null "method_not_allowed" "PUT is not allowed for /health; the Allow header says what is."
        405 "invalid_request_error" null "method_not_allowed" "OPTIONS is not allowed for /v1/completions; the Allow header says what is."
        404 "invalid_request_error" null "unknown_url" "Unknown request URL: OPTIONS *. GET / lists what can be asked."
        404 "invalid_request_error" null "unknown_url" "Unknown request URL: CONNECT . GET / lists what can be asked."
        405 "invalid_request_error" null "method_not_allowed" "TRACE is not allowed for /v1/models; the Allow header says what is."
        404 "invalid_request_error" null "unknown_url" "Unknown request URL: BREW /pot. GET / lists what can be asked."
        404 "invalid_request_error" null "unknown_url" "Unknown request URL: GET //. GET / lists what can be asked."
        404 "invalid_request_error" null "unknown_url" "Unknown request URL: GET /v1/models/. GET / lists what can be asked."
        404 "invalid_request_error" "model" "model_not_found" "The model '' does not exist here; this cell serves 'org/tiny'."
        400 "invalid_request_error" null null "The body of the request is not valid JSON for this endpoint: EOF while parsing a value at line 1 column 0."
    "#]],
    );
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
async fn strange_web_pages_are_refused_without_a_key() {
    let origins = |origins: &[&str]| ServerConfig {
        cors_origins: origins.iter().map(ToString::to_string).collect(),
        ..ServerConfig::default()
    };
    let none = router(generator(Client::new()), origins(&[]));
    let page = router(generator(Client::new()), origins(&["http://page.example"]));
    let all = router(generator(Client::new()), origins(&["*"]));
    let mut told = String::new();
    for headers in [
        &[][..],
        &[("host", "localhost")],
        &[("host", "LOCALHOST:8080")],
        &[("host", "127.0.0.1:8080")],
        &[("host", "[::1]:8080")],
        &[("host", "192.168.1.2")],
        &[("host", "page.example")],
        &[("host", "localhost.page.example:8080")],
        &[("host", "127.0.0.1.page.example")],
        &[("host", "a b")],
        &[
            ("host", "localhost:8080"),
            ("origin", "http://localhost:8080"),
        ],
        &[
            ("host", "127.0.0.1:8080"),
            ("origin", "http://localhost:8080"),
        ],
        &[
            ("host", "localhost:8080"),
            ("origin", "http://localhost:3000"),
        ],
        &[
            ("host", "localhost:8080"),
            ("origin", "http://page.example"),
        ],
        &[("host", "page.example"), ("origin", "http://page.example")],
        &[("host", "localhost:8080"), ("origin", "null")],
        &[("origin", "http://localhost:8080")],
    ] {
        told += &format!("{headers:?}");
        for router in [&none, &page, &all] {
            let reply = call_with(router, Method::GET, "/v1/models", headers).await;
            told += &format!(" {}", reply.status.as_u16());
            let live = call_with(router, Method::GET, "/health/live", headers).await;
            assert_eq!(live.status, StatusCode::OK);
        }
        told += "\n";
    }
    check(
        &told,
        &expect![[r#"
        [] 200 200 200
        [("host", "localhost")] 200 200 200
        [("host", "LOCALHOST:8080")] 200 200 200
        [("host", "127.0.0.1:8080")] 200 200 200
        [("host", "[::1]:8080")] 200 200 200
        [("host", "192.168.1.2")] 200 200 200
        [("host", "page.example")] 403 200 200
        [("host", "localhost.page.example:8080")] 403 403 200
        [("host", "127.0.0.1.page.example")] 403 403 200
        [("host", "a b")] 403 403 200
        [("host", "localhost:8080"), ("origin", "http://localhost:8080")] 200 200 200
        [("host", "127.0.0.1:8080"), ("origin", "http://localhost:8080")] 403 403 200
        [("host", "localhost:8080"), ("origin", "http://localhost:3000")] 403 403 200
        [("host", "localhost:8080"), ("origin", "http://page.example")] 403 200 200
        [("host", "page.example"), ("origin", "http://page.example")] 403 200 200
        [("host", "localhost:8080"), ("origin", "null")] 403 403 200
        [("origin", "http://localhost:8080")] 403 403 200
    "#]],
    );
    let rebound = call_with(&none, Method::GET, "/", &[("host", "page.example")]).await;
    check(
        &rebound.error(),
        &expect![[
            r#"403 "invalid_request_error" null "forbidden_origin" "This server has no API key and does not answer requests for the host \"page.example\", which is neither localhost nor an IP address. Start it with --api-key-file FILE, or name the pages that may ask with --cors-origin ORIGIN.""#
        ]],
    );
    let strange = [("host", "localhost"), ("origin", "http://page.example")];
    let strange = call_with(&none, Method::POST, "/v1/completions", &strange).await;
    check(
        &strange.error(),
        &expect![[
            r#"403 "invalid_request_error" null "forbidden_origin" "This server has no API key and does not answer requests from the web origin \"http://page.example\". Start it with --api-key-file FILE, or name the pages that may ask with --cors-origin ORIGIN.""#
        ]],
    );
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
