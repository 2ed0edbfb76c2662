//! Wire types of the public HTTP API: what clients send and what Shoal answers, in OpenAI's shapes.
//!
//! Requests are *parsed at the edge*: [`chat::parse`] and [`completion::parse`] take the bytes of a
//! body and either give a request in which every value is valid, or a [`BadField`] that names the
//! field and says what would be accepted. Unknown fields are ignored, as OpenAI does; a known field
//! whose meaning Shoal cannot honour is refused by name rather than dropped in silence. `null`
//! always means "absent".
//!
//! Replies are plain `Serialize` structs whose field order is the order on the wire.
//!
//! ```
//! let body = br#"{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "temperature": 9}"#;
//! let bad = shoal_api::chat::parse(body).unwrap_err();
//! assert_eq!(bad.param.as_deref(), Some("temperature"));
//! assert_eq!(bad.message, "Invalid value for 'temperature': 9 is outside 0 to 2.");
//! ```
#![forbid(unsafe_code)]

pub mod chat;
pub mod completion;
mod error;
mod field;
mod model;
mod options;
mod status;
mod usage;

pub use error::{ErrorBody, ErrorDetail};
pub use field::BadField;
pub use model::{Model, ModelList};
pub use options::{Options, StreamOptions};
pub use status::{Health, Limits, Queue, RankHealth, Service};
pub use usage::{CompletionTokensDetails, Performance, PromptTokensDetails, Usage};

use serde::Serialize;

/// A field that every reply carries and that is always `null` here (`logprobs`, `refusal`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Null;

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string appeared.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}
