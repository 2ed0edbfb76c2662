//! `POST /v1/completions`.

use serde::Serialize;
use serde_json::Value;

use crate::field::{self, BadField, Fields};
use crate::options::{Options, StreamOptions, Unsupported, at_most, refuse, token_ids};
use crate::{FinishReason, Null, Performance, Usage};

/// A valid request to continue some text.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The name of the model; never empty.
    pub model: String,
    /// What to continue, one choice each; at least one and at most [`PROMPTS_MAX`].
    pub prompts: Vec<Prompt>,
    /// How to choose tokens and when to end. OpenAI's default for `max_tokens` here is [`MAX_TOKENS_DEFAULT`].
    pub options: Options,
    /// Whether and how to stream.
    pub stream: Option<StreamOptions>,
}

/// One text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, still to be encoded.
    Text(String),
    /// Token ids, taken as they are; never empty.
    Tokens(Vec<u32>),
}

/// Most prompts in one request.
pub const PROMPTS_MAX: usize = 32;

/// How many tokens a completion has when the request does not say.
pub const MAX_TOKENS_DEFAULT: u32 = 16;

/// Parses the body of a completion request.
///
/// # Errors
/// Names the first field that is missing, of the wrong type, out of range or unsupported.
pub fn parse(body: &[u8]) -> Result<CompletionRequest, BadField> {
    let map = field::object(body)?;
    let fields = Fields::root(&map);
    refuse(&fields, UNSUPPORTED)?;
    let mut options = Options::parse(&fields)?;
    options.max_tokens.get_or_insert(MAX_TOKENS_DEFAULT);
    Ok(CompletionRequest {
        model: crate::chat::model(&fields)?,
        prompts: prompts(fields.required("prompt")?)?,
        options,
        stream: StreamOptions::parse(&fields)?,
    })
}

fn prompts(value: &Value) -> Result<Vec<Prompt>, BadField> {
    const EXPECTED: &str =
        "a string, an array of strings, an array of token ids or an array of arrays of token ids";
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(items) => items,
        other => return Err(BadField::wrong_type("prompt", EXPECTED, other)),
    };
    let prompt = |(i, item): (usize, &Value)| {
        let path = format!("prompt[{i}]");
        match item {
            Value::String(text) => Ok(Prompt::Text(text.clone())),
            Value::Array(_) => tokens(&path, item),
            other => Err(BadField::wrong_type(
                path,
                "a string or an array of token ids",
                other,
            )),
        }
    };
    match items.first() {
        None => Err(BadField::invalid("prompt", "it must not be empty")),
        Some(Value::Number(_)) => Ok(vec![tokens("prompt", value)?]),
        Some(_) => {
            at_most("prompt", items, PROMPTS_MAX, "prompts")?;
            items.iter().enumerate().map(prompt).collect()
        }
    }
}

fn tokens(path: &str, value: &Value) -> Result<Prompt, BadField> {
    let ids = token_ids(path, value)?;
    if ids.is_empty() {
        return Err(BadField::invalid(path, "it must not be empty"));
    }
    Ok(Prompt::Tokens(ids))
}

const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::always("logprobs"),
    Unsupported::unless_empty("suffix"),
];

/// A whole reply, or one chunk of a streamed one: OpenAI gives both the same shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Completion {
    /// `cmpl-…`, the same in every chunk.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// When the request was accepted, in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// One for each prompt; in a chunk, the one that goes on.
    pub choices: Vec<Choice>,
    /// Absent in chunks unless the request set `include_usage`; then `null` in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Only in whole replies and in a stream's last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
}

/// The continuation of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The new text.
    pub text: String,
    /// Which prompt it continues.
    pub index: usize,
    /// Always `null`.
    pub logprobs: Null,
    /// Why it ended; `null` while it goes on.
    pub finish_reason: Option<FinishReason>,
}
