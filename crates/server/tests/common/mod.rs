//! What the tests of the HTTP API share.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod cell;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use shoal_engine::client::Client;
use shoal_server::{Generator, GeneratorConfig, ModelText, ServerConfig, router};
use shoal_text::{ChatTemplate, Tokenizer, Vocabulary, VocabularyKind};
use tower::ServiceExt;

pub(crate) const MODEL: &str = "org/tiny";
pub(crate) const CONTEXT: u32 = 256;
/// The vocabulary: one token a byte, then these two.
pub(crate) const BEGIN_TURN: u32 = 256;
pub(crate) const END_TURN: u32 = 257;

/// A generator over `client` with byte-sized tokens.
pub(crate) fn generator(client: Client) -> Generator {
    Generator::new(client, Arc::new(text(true)), config())
}

/// The API over `client`, with default bounds.
pub(crate) fn app(client: &Client) -> Router {
    router(generator(client.clone()), ServerConfig::default())
}

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// A chat request with the fields of `extra` put over it.
pub(crate) fn chat(extra: Value) -> Value {
    with(
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}),
        extra,
    )
}

/// A completion request with the fields of `extra` put over it.
pub(crate) fn completion(extra: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "once"}), extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().expect("extra is an object") {
        body[key] = value.clone();
    }
    body
}

pub(crate) fn config() -> GeneratorConfig {
    GeneratorConfig {
        model_name: MODEL.into(),
        context: CONTEXT,
        world: 2,
    }
}

/// A tokenizer with one token a byte, and ChatML's template if wanted.
pub(crate) fn text(with_template: bool) -> ModelText {
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| byte_symbol(byte).to_string())
        .collect();
    tokens.extend(["<|im_start|>".into(), "<|im_end|>".into()]);
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3]);
    let vocabulary = Vocabulary {
        kind: VocabularyKind::Bpe {
            pre: "default".into(),
        },
        scores: Vec::new(),
        token_types,
        merges: Vec::new(),
        bos: None,
        eos: Some(END_TURN),
        end_of_turn: Vec::new(),
        unknown: None,
        padding: None,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        tokens,
    };
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    ModelText {
        tokenizer: Tokenizer::new(vocabulary).expect("the vocabulary is sound"),
        template: with_template
            .then(|| ChatTemplate::new(template, "", "").expect("the template parses")),
    }
}

/// GPT-2's printable stand-in for a byte.
fn byte_symbol(byte: u8) -> char {
    let stands_for_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if stands_for_itself(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&byte| !stands_for_itself(byte)).count() as u32;
    char::from_u32(256 + before).expect("small code points are characters")
}

/// A whole reply.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(
            self.headers
                .get(name)?
                .to_str()
                .expect("header values here are text"),
        )
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// The status and the four keys of an error.
    pub(crate) fn error(&self) -> String {
        let body = self.json();
        let error = body["error"].as_object().expect("an error body");
        assert_eq!(
            error.keys().collect::<Vec<_>>(),
            ["code", "message", "param", "type"]
        );
        format!(
            "{} {} {} {} {}",
            self.status.as_u16(),
            error["type"],
            error["param"],
            error["code"],
            error["message"]
        )
    }

    /// The data lines of an event stream, in order.
    pub(crate) fn events(&self) -> Vec<&str> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let data = |event| str::strip_prefix(event, "data: ");
        self.body
            .split_terminator("\n\n")
            .filter_map(data)
            .collect()
    }

    /// The chunks of an event stream that ended as it should.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"));
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("a chunk is JSON"))
            .collect()
    }
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body.into())
        .expect("a sound request")
}

pub(crate) async fn call(router: &Router, request: Request<Body>) -> Reply {
    let response = router
        .clone()
        .oneshot(request)
        .await
        .expect("the router never fails");
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 24).await.expect("the body can be read");
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).expect("bodies are UTF-8"),
    }
}

pub(crate) async fn get(router: &Router, path: &str) -> Reply {
    call(router, request(Method::GET, path, Body::empty())).await
}

pub(crate) async fn post(router: &Router, path: &str, body: &Value) -> Reply {
    call(router, request(Method::POST, path, body.to_string())).await
}

/// Waits until `condition` holds; a test that waits for ever fails instead.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < patience,
            "{what} did not come about"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
