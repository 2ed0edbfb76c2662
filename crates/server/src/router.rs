//! The routes, and what lies around all of them.

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{Method, StatusCode, header};
use axum::middleware;
use axum::routing::{get, post};
use bytes::BytesMut;
use shoal_api::BadField;
use tokio::time::timeout;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::auth::{self, ApiKey};
use crate::browser::{self, Origins};
use crate::error::ApiError;
use crate::generator::Generator;
use crate::stream::TextStream;
use crate::{chat, completions, request_id, status};

/// How the HTTP API behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What clients must send as a bearer token, on every path but `/health/live`. Without it every program on this
    /// machine may ask, and of web pages only those of `cors_origins` and the server's own.
    pub api_key: Option<String>,
    /// Web origins whose pages may ask, such as `http://localhost:3000`; `*` means all. Empty switches CORS off.
    pub cors_origins: Vec<String>,
    /// Longest request body.
    pub body_limit_bytes: usize,
    /// Longest time for one reply, streamed or not.
    pub request_timeout: Option<Duration>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            cors_origins: Vec::new(),
            body_limit_bytes: 4 << 20,
            request_timeout: None,
        }
    }
}

/// Puts the HTTP API over `generator`.
pub fn router(generator: Generator, config: ServerConfig) -> Router {
    let front = Front {
        generator,
        request_timeout: config.request_timeout,
        body_limit_bytes: config.body_limit_bytes,
    };
    let mut router = Router::new()
        .route("/", get(status::service))
        .route("/health", get(status::health))
        .route(auth::OPEN_PATH, get(status::live))
        .route("/queue", get(status::queue))
        .route("/v1/models", get(status::models))
        .route("/v1/models/{*id}", get(status::model))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(front)
        .layer(DefaultBodyLimit::max(config.body_limit_bytes));
    let origins = Origins::new(&config.cors_origins);
    router = match &config.api_key {
        Some(key) => router.layer(middleware::from_fn_with_state(
            ApiKey::new(key),
            auth::require_key,
        )),
        None => router.layer(middleware::from_fn_with_state(
            origins.clone(),
            browser::refuse_strange_pages,
        )),
    };
    // Outside the key: a browser's preflight request carries none.
    if !config.cors_origins.is_empty() {
        router = router.layer(cors(origins));
    }
    router.layer(middleware::from_fn(request_id::assign))
}

/// What every handler is given.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) generator: Generator,
    request_timeout: Option<Duration>,
    body_limit_bytes: usize,
}

impl Front {
    /// Refuses every model but the one this cell serves.
    pub(crate) fn require_model(&self, wanted: &str) -> Result<(), ApiError> {
        let served = self.generator.model_name();
        if wanted == served {
            return Ok(());
        }
        let message =
            format!("The model '{wanted}' does not exist here; this cell serves '{served}'.");
        Err(ApiError::client(StatusCode::NOT_FOUND, "model_not_found", message).about("model"))
    }

    pub(crate) fn limit_time(&self, stream: &mut TextStream) {
        if let Some(limit) = self.request_timeout {
            stream.set_time_limit(limit);
        }
    }
}

/// Longest time for a request body to arrive.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The bytes of a request body, whatever its content type says: many a shell one-liner leaves it out.
pub(crate) struct Body(BytesMut);

impl Body {
    /// Reads the request out of the bytes, which are then let go: the reply may take minutes.
    pub(crate) fn parse<R>(
        self,
        parse: impl FnOnce(&[u8]) -> Result<R, BadField>,
    ) -> Result<R, ApiError> {
        Ok(parse(&self.0)?)
    }
}

impl FromRequest<Front> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, front: &Front) -> Result<Self, ApiError> {
        // Into one buffer: as a list of what arrived, a body in chunks of one byte would take thirty times its length.
        let body = timeout(BODY_TIMEOUT, BytesMut::from_request(request, front)).await;
        let rejection: BytesRejection = match body {
            Ok(Ok(bytes)) => return Ok(Self(bytes)),
            Ok(Err(rejection)) => rejection,
            Err(_) => {
                let message = format!("The request body was not complete after {BODY_TIMEOUT:?}.");
                let status = StatusCode::REQUEST_TIMEOUT;
                return Err(ApiError::client(status, "request_timeout", message));
            }
        };
        Err(match rejection.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!(
                    "The request body is longer than {} bytes.",
                    front.body_limit_bytes
                );
                ApiError::client(status, "request_too_large", message)
            }
            status => ApiError::client(status, "unreadable_body", rejection.body_text()),
        })
    }
}

async fn unknown_path(request: Request) -> ApiError {
    let message = format!(
        "Unknown request URL: {} {}. GET / lists what can be asked.",
        request.method(),
        request.uri().path()
    );
    ApiError::client(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!(
        "{} is not allowed for {}; the Allow header says what is.",
        request.method(),
        request.uri().path()
    );
    ApiError::client(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}

fn cors(origins: Origins) -> CorsLayer {
    let allowed = AllowOrigin::predicate(move |origin, _| origins.allow(origin.as_bytes()));
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's own JavaScript client sends a row of x-stainless-… headers.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([request_id::X_REQUEST_ID, header::RETRY_AFTER])
}
