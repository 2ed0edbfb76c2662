//! The fields that chat and completion requests share, and the ones Shoal refuses by name.

use serde_json::Value;

use crate::field::{BadField, Fields};

/// How to choose tokens and when to end; every value is within its range.
///
/// Besides OpenAI's fields it reads vLLM's `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `stop_token_ids`.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// 0 to 2; 0 always takes the likeliest token.
    pub temperature: f32,
    /// 0 to 1: the smallest set of tokens that holds this much probability.
    pub top_p: f32,
    /// How many of the likeliest tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// 0 to 1: tokens less likely than this fraction of the likeliest are dropped.
    pub min_p: f32,
    /// Above 1 discourages tokens already in the prompt or the reply.
    pub repetition_penalty: f32,
    /// −2 to 2, once for every token already in the reply.
    pub presence_penalty: f32,
    /// −2 to 2, for each time the token is already in the reply.
    pub frequency_penalty: f32,
    /// The same seed and request give the same reply; drawn afresh when absent.
    pub seed: Option<u64>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: Option<u32>,
    /// Texts that end the reply, at most four, none empty or longer than 1024 bytes. They are not part of the reply.
    pub stop: Vec<String>,
    /// More tokens that end the reply, at most 128.
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's own end-of-text tokens; for benchmarks.
    pub ignore_eos: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl Options {
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, BadField> {
        refuse(fields, UNSUPPORTED)?;
        let default = Self::default();
        Ok(Self {
            temperature: fields
                .number("temperature", 0.0..=2.0)?
                .unwrap_or(default.temperature),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(default.top_p),
            // vLLM's clients switch it off with −1 as well as 0.
            top_k: fields
                .integer("top_k", -1..=u32::MAX.into())?
                .map_or(0, |k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
            repetition_penalty: fields
                .number("repetition_penalty", 0.01..=100.0)?
                .unwrap_or(default.repetition_penalty),
            presence_penalty: fields
                .number("presence_penalty", -2.0..=2.0)?
                .unwrap_or(default.presence_penalty),
            frequency_penalty: fields
                .number("frequency_penalty", -2.0..=2.0)?
                .unwrap_or(default.frequency_penalty),
            seed: seed(fields)?,
            max_tokens: max_tokens(fields)?,
            stop: stop(fields)?,
            stop_token_ids: match fields.value("stop_token_ids") {
                Some(value) => stop_token_ids(&fields.path("stop_token_ids"), value)?,
                None => Vec::new(),
            },
            ignore_eos: fields.boolean("ignore_eos", false)?,
        })
    }
}

/// What a stream carries besides its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// End with one more chunk that has the usage and no choices.
    pub include_usage: bool,
}

impl StreamOptions {
    /// Reads `stream` and `stream_options`; `None` when the reply is not to be streamed.
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Option<Self>, BadField> {
        let stream = fields.boolean("stream", false)?;
        let Some(value) = fields.value("stream_options") else {
            return Ok(stream.then(Self::default));
        };
        if !stream {
            return Err(BadField::invalid(
                "stream_options",
                "it is only allowed when 'stream' is true",
            ));
        }
        let inner = Fields::at("stream_options", value)?;
        Ok(Some(Self {
            include_usage: inner.boolean("include_usage", false)?,
        }))
    }
}

/// A field that is known but cannot be honoured, unless its value asks for nothing.
pub(crate) struct Unsupported {
    name: &'static str,
    asks_nothing: fn(&Value) -> bool,
    accepted: &'static str,
}

impl Unsupported {
    pub(crate) const fn new(
        name: &'static str,
        asks_nothing: fn(&Value) -> bool,
        accepted: &'static str,
    ) -> Self {
        Self {
            name,
            asks_nothing,
            accepted,
        }
    }

    /// A field that is refused whatever its value.
    pub(crate) const fn always(name: &'static str) -> Self {
        Self::new(name, |_| false, "requests without it")
    }

    /// A field that may be present as long as it is empty.
    pub(crate) const fn unless_empty(name: &'static str) -> Self {
        Self::new(name, is_empty, "it only when empty")
    }

    /// A switch that may be present as long as it is off.
    pub(crate) const fn unless_false(name: &'static str) -> Self {
        Self::new(name, |value| value == false, "only false")
    }
}

/// Refuses the first field of `table` that asks for something.
pub(crate) fn refuse(fields: &Fields<'_>, table: &[Unsupported]) -> Result<(), BadField> {
    let asks = |entry: &&Unsupported| {
        fields
            .value(entry.name)
            .is_some_and(|value| !(entry.asks_nothing)(value))
    };
    match table.iter().find(asks) {
        Some(entry) => Err(BadField::unsupported(
            fields.path(entry.name),
            entry.accepted,
        )),
        None => Ok(()),
    }
}

/// Reads an array of token ids.
pub(crate) fn token_ids(path: &str, value: &Value) -> Result<Vec<u32>, BadField> {
    let items = value
        .as_array()
        .ok_or_else(|| BadField::wrong_type(path, "an array of token ids", value))?;
    let id = |(i, item): (usize, &Value)| {
        item.as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| BadField::wrong_type(format!("{path}[{i}]"), "a token id", item))
    };
    items.iter().enumerate().map(id).collect()
}

/// Refuses a list that is longer than the server wants to look through.
pub(crate) fn at_most(path: &str, items: &[Value], max: usize, what: &str) -> Result<(), BadField> {
    match items.len() {
        len if len > max => Err(BadField::invalid(
            path,
            format_args!("at most {max} {what} are allowed, but got {len}"),
        )),
        _ => Ok(()),
    }
}

fn stop_token_ids(path: &str, value: &Value) -> Result<Vec<u32>, BadField> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    at_most(path, items, STOP_TOKENS_MAX, "token ids")?;
    token_ids(path, value)
}

fn seed(fields: &Fields<'_>) -> Result<Option<u64>, BadField> {
    let Some(value) = fields.value("seed") else {
        return Ok(None);
    };
    // Any 64-bit integer, signed or not; only its bits matter.
    let bits = value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned));
    bits.map(Some)
        .ok_or_else(|| BadField::wrong_type(fields.path("seed"), "a 64-bit integer", value))
}

fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, BadField> {
    let range = 1..=u32::MAX.into();
    let old = fields.integer("max_tokens", range.clone())?;
    let new = fields.integer("max_completion_tokens", range)?;
    Ok(new.or(old).map(|tokens| tokens as u32))
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, BadField> {
    let Some(value) = fields.value("stop") else {
        return Ok(Vec::new());
    };
    let texts = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(texts) => texts,
        other => {
            return Err(BadField::wrong_type(
                "stop",
                "a string or an array of strings",
                other,
            ));
        }
    };
    at_most("stop", texts, STOPS_MAX, "strings")?;
    let text = |text: &Value| match text {
        Value::String(text) if text.is_empty() => {
            Err(BadField::invalid("stop", "a stop string must not be empty"))
        }
        Value::String(text) if text.len() > STOP_BYTES_MAX => Err(BadField::invalid(
            "stop",
            format_args!(
                "a stop string of at most {STOP_BYTES_MAX} bytes is allowed, but got {}",
                text.len()
            ),
        )),
        Value::String(text) => Ok(text.clone()),
        other => Err(BadField::wrong_type(
            "stop",
            "a string or an array of strings",
            other,
        )),
    };
    texts.iter().map(text).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

const STOPS_MAX: usize = 4;
/// Every piece of the reply is searched for them, which begins with a pass over the stop string.
const STOP_BYTES_MAX: usize = 1024;
/// Every token of the reply is looked up in them.
const STOP_TOKENS_MAX: usize = 128;

const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::new("n", |value| value == 1, "only 1"),
    Unsupported::new("best_of", |value| value == 1, "only 1"),
    Unsupported::new(
        "response_format",
        |value| value["type"] == "text",
        "only {\"type\": \"text\"}",
    ),
    Unsupported::unless_empty("logit_bias"),
    Unsupported::unless_false("echo"),
    // vLLM's extensions.
    Unsupported::unless_empty("allowed_token_ids"),
    Unsupported::unless_empty("bad_words"),
    Unsupported::always("guided_choice"),
    Unsupported::always("guided_grammar"),
    Unsupported::always("guided_json"),
    Unsupported::always("guided_regex"),
    Unsupported::always("structured_outputs"),
    Unsupported::unless_false("include_stop_str_in_output"),
    Unsupported::new(
        "length_penalty",
        |value| value.as_f64() == Some(1.0),
        "only 1",
    ),
    Unsupported::new("min_tokens", |value| value == 0, "only 0"),
    Unsupported::always("prompt_logprobs"),
    Unsupported::new("skip_special_tokens", |value| value == true, "only true"),
    Unsupported::always("truncate_prompt_tokens"),
    Unsupported::unless_false("use_beam_search"),
];
