//! `POST /v1/chat/completions`.

use serde::Serialize;
use serde_json::Value;

use crate::field::{self, BadField, Fields};
use crate::options::{Options, StreamOptions, Unsupported, refuse};
use crate::{FinishReason, Null, Performance, Usage};

/// A valid request to answer a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The name of the model; never empty.
    pub model: String,
    /// The conversation so far; never empty.
    pub messages: Vec<Message>,
    /// How to choose tokens and when to end.
    pub options: Options,
    /// Whether and how to stream.
    pub stream: Option<StreamOptions>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// The text; parts are joined by line breaks.
    pub content: String,
    /// A name for the speaker, for templates that show one.
    pub name: Option<String>,
}

impl Message {
    /// Makes a message without a name.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            name: None,
        }
    }
}

/// Who said a message. OpenAI's newer `developer` is read as `system`, which is what templates know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Returns its name on the wire and in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Parses the body of a chat request.
///
/// # Errors
/// Names the first field that is missing, of the wrong type, out of range or unsupported.
pub fn parse(body: &[u8]) -> Result<ChatRequest, BadField> {
    let map = field::object(body)?;
    let fields = Fields::root(&map);
    refuse(&fields, UNSUPPORTED)?;
    Ok(ChatRequest {
        model: model(&fields)?,
        messages: messages(fields.required("messages")?)?,
        options: Options::parse(&fields)?,
        stream: StreamOptions::parse(&fields)?,
    })
}

pub(crate) fn model(fields: &Fields<'_>) -> Result<String, BadField> {
    match fields.string("model")? {
        None | Some("") => Err(BadField::missing("model")),
        Some(model) => Ok(model.to_owned()),
    }
}

fn messages(value: &Value) -> Result<Vec<Message>, BadField> {
    let items = value
        .as_array()
        .ok_or_else(|| BadField::wrong_type("messages", "an array of messages", value))?;
    if items.is_empty() {
        return Err(BadField::invalid(
            "messages",
            "at least one message is needed",
        ));
    }
    items
        .iter()
        .enumerate()
        .map(|(i, item)| message(&Fields::at(&format!("messages[{i}]"), item)?))
        .collect()
}

fn message(fields: &Fields<'_>) -> Result<Message, BadField> {
    let role = match fields.string("role")? {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(other @ ("tool" | "function")) => {
            return Err(BadField::unsupported(
                fields.path("role"),
                format_args!("system, developer, user and assistant, not yet '{other}'"),
            ));
        }
        Some(other) => {
            return Err(BadField::invalid(
                fields.path("role"),
                format_args!("'{other}' is not one of system, developer, user and assistant"),
            ));
        }
        None => return Err(BadField::missing(fields.path("role"))),
    };
    refuse(fields, UNSUPPORTED_IN_MESSAGE)?;
    let content = match fields.value("content") {
        Some(value) => content(&fields.path("content"), value)?,
        // An assistant's turn may have been empty, or a refusal.
        None if role == Role::Assistant => String::new(),
        None => return Err(BadField::missing(fields.path("content"))),
    };
    let name = fields.string("name")?.map(str::to_owned);
    Ok(Message {
        role,
        content,
        name,
    })
}

fn content(path: &str, value: &Value) -> Result<String, BadField> {
    let parts = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => {
            return Err(BadField::wrong_type(
                path,
                "a string or an array of text parts",
                other,
            ));
        }
    };
    let part = |(i, part): (usize, &'_ Value)| {
        let fields = Fields::at(&format!("{path}[{i}]"), part)?;
        match fields.string("type")? {
            Some("text") => {}
            Some(other) => {
                return Err(BadField::unsupported(
                    fields.path("type"),
                    format_args!("only text parts, not '{other}'"),
                ));
            }
            None => return Err(BadField::missing(fields.path("type"))),
        }
        let text = fields.string("text")?;
        text.map(str::to_owned)
            .ok_or_else(|| BadField::missing(fields.path("text")))
    };
    let texts: Vec<String> = parts
        .iter()
        .enumerate()
        .map(part)
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::unless_false("logprobs"),
    Unsupported::new("top_logprobs", |value| value == 0, "only 0"),
    Unsupported::unless_empty("tools"),
    Unsupported::new("tool_choice", is_no_tool, "only \"none\" and \"auto\""),
    Unsupported::unless_empty("functions"),
    Unsupported::new("function_call", is_no_tool, "only \"none\" and \"auto\""),
    Unsupported::new(
        "modalities",
        |value| {
            value
                .as_array()
                .is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
        },
        "only [\"text\"]",
    ),
    Unsupported::always("audio"),
    Unsupported::always("web_search_options"),
    // vLLM's extensions.
    Unsupported::always("chat_template"),
    Unsupported::unless_empty("chat_template_kwargs"),
    Unsupported::new("add_generation_prompt", |value| value == true, "only true"),
    Unsupported::unless_false("continue_final_message"),
];

const UNSUPPORTED_IN_MESSAGE: &[Unsupported] = &[
    Unsupported::unless_empty("tool_calls"),
    Unsupported::always("function_call"),
    Unsupported::always("audio"),
];

fn is_no_tool(value: &Value) -> bool {
    value == "none" || value == "auto"
}

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// When the request was accepted, in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// Always one.
    pub choices: Vec<Choice>,
    /// Token counts.
    pub usage: Usage,
    /// How quickly it was served.
    pub performance: Performance,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Always 0.
    pub index: usize,
    /// What the model said.
    pub message: Reply,
    /// Always `null`.
    pub logprobs: Null,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// Always `assistant`.
    pub role: Role,
    /// The text.
    pub content: String,
    /// Always `null`.
    pub refusal: Null,
}

/// One chunk of a streamed reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChunk {
    /// `chatcmpl-…`, the same in every chunk.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// When the request was accepted, in seconds since 1970; the same in every chunk.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// One, or none in the chunk that carries the usage.
    pub choices: Vec<ChunkChoice>,
    /// Absent unless the request set `include_usage`; then `null` in all but the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Only in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
}

/// How an answer goes on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// Always 0.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Always `null`.
    pub logprobs: Null,
    /// Why it ended; `null` while it goes on.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in a chunk; empty in the one that ends the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Delta {
    /// Only in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The new text, which is empty when a token ends inside a character or may begin a stop string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
