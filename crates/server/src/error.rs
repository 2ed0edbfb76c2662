//! What can go wrong, and what the client is told about it.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shoal_api::{BadField, ErrorBody, ErrorDetail};
use shoal_engine::client::{Failure, SubmitError};
use shoal_text::TextError;
use thiserror::Error;
use tracing::error;

/// Why a reply could not be begun.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The model cannot hold conversations.
    #[error("this model has no chat template; use /v1/completions, or `shoal run --raw`")]
    NoTemplate,
    /// The prompt could not be rendered or encoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// There is nothing to continue.
    #[error("the prompt has no tokens; send at least one")]
    EmptyPrompt,
    /// The prompt holds an id that is not in the vocabulary.
    #[error("token {token} is not in the vocabulary, which has {vocabulary} tokens")]
    UnknownToken {
        /// The id.
        token: u32,
        /// How many tokens there are.
        vocabulary: usize,
    },
    /// The prompt leaves no room for a reply. Programs match the beginning of this message.
    #[error(
        "This model's maximum context length is {context} tokens. However, your {field} resulted in {prompt_tokens} \
         tokens. Please reduce the length of the {field} so that at least one token is left for the reply."
    )]
    TooLong {
        /// The context length, in tokens.
        context: u32,
        /// What to shorten: `messages` or `prompt`.
        field: &'static str,
        /// The prompt's length, in tokens.
        prompt_tokens: u64,
    },
    /// The cell does not take the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A bug: preparing the prompt panicked.
    #[error("preparing the prompt failed inside the server")]
    Panicked,
}

/// Why a reply broke off.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The cell could not go on.
    #[error(transparent)]
    Cell(Failure),
    /// The request took longer than the server allows.
    #[error("the request was not complete after {limit:?}, the longest this server allows")]
    TimeLimit {
        /// The limit.
        limit: Duration,
    },
    /// The cell's client is gone.
    #[error("the cell stopped before the reply was complete")]
    Cut,
}

/// A cell re-forms within seconds; clients that retry by themselves should not hammer it meanwhile.
const RETRY_AFTER_LOSS_S: u64 = 2;

/// An error on its way to the client: a status and OpenAI's body.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    detail: ErrorDetail,
    retry_after_s: Option<u64>,
}

impl ApiError {
    /// An error that the client can fix.
    pub(crate) fn client(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(status, "invalid_request_error", Some(code), message.into())
    }

    /// The cell cannot serve now but is expected to soon.
    fn unavailable(code: &'static str, message: String) -> Self {
        Self::server(StatusCode::SERVICE_UNAVAILABLE, code, message)
            .retry_after_s(RETRY_AFTER_LOSS_S)
    }

    /// A bug, or a damaged model: logged, because the client can do nothing about it.
    fn internal(message: String) -> Self {
        error!(message, "request failed");
        Self::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    fn server(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, "server_error", Some(code), message)
    }

    /// Names the request field at fault.
    pub(crate) fn about(mut self, param: &str) -> Self {
        self.detail.param = Some(param.to_owned());
        self
    }

    /// Says when to try again.
    pub(crate) fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// Returns the body, for a stream whose status has already been sent.
    pub(crate) fn into_body(self) -> ErrorBody {
        ErrorBody { error: self.detail }
    }

    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: String,
    ) -> Self {
        Self {
            status,
            detail: ErrorDetail {
                message,
                kind,
                param: None,
                code,
            },
            retry_after_s: None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.detail })).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<BadField> for ApiError {
    fn from(bad: BadField) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            detail: bad.into(),
            retry_after_s: None,
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let bad = |code, message| Self::client(StatusCode::BAD_REQUEST, code, message);
        let message = error.to_string();
        match error {
            GenerateError::NoTemplate => bad("no_chat_template", message),
            GenerateError::Text(TextError::TemplateRefused(_)) => {
                bad("invalid_value", message).about("messages")
            }
            GenerateError::Text(TextError::SplitTooCostly) => bad("invalid_value", message),
            GenerateError::EmptyPrompt | GenerateError::UnknownToken { .. } => {
                bad("invalid_value", message).about("prompt")
            }
            GenerateError::TooLong { field, .. } => {
                bad("context_length_exceeded", message).about(field)
            }
            GenerateError::Submit(error) => error.into(),
            GenerateError::Text(_) | GenerateError::Panicked => Self::internal(message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull {
                retry_after_seconds,
            } => {
                let code = Some("rate_limit_exceeded");
                Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    code,
                    message,
                )
                .retry_after_s(retry_after_seconds)
            }
            SubmitError::NotReady(_) => Self::unavailable("not_ready", message),
            SubmitError::TooLong { .. } => {
                Self::client(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            SubmitError::Invalid(_) => {
                Self::client(StatusCode::BAD_REQUEST, "invalid_value", message)
            }
        }
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        let message = error.to_string();
        match error {
            StreamError::Cell(Failure::RankLost { .. }) => Self::unavailable("rank_lost", message),
            StreamError::Cell(Failure::Refused(_)) | StreamError::Cut => {
                Self::unavailable("not_ready", message)
            }
            StreamError::Cell(Failure::Internal(_)) => Self::internal(message),
            StreamError::TimeLimit { .. } => {
                Self::server(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
            }
        }
    }
}
