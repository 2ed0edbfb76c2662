//! `GET /v1/models`.

use serde::Serialize;

/// One model that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The name to send as `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Always `shoal`.
    pub owned_by: &'static str,
    /// Longest prompt and reply together, in tokens; vLLM's name for it.
    pub max_model_len: u32,
}

impl Model {
    /// Describes a model by its name, load time and context length.
    pub fn new(id: impl Into<String>, created: u64, max_model_len: u32) -> Self {
        Self {
            id: id.into(),
            object: "model",
            created,
            owned_by: "shoal",
            max_model_len,
        }
    }
}

/// Every model that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<Model>,
}

impl ModelList {
    /// Lists `data`.
    pub fn new(data: Vec<Model>) -> Self {
        Self {
            object: "list",
            data,
        }
    }
}
