//! The body of every error reply.

use serde::Serialize;

use crate::BadField;

/// `{"error": {…}}`, sent with every status that is not a success, and as a stream's last event when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong; all four keys are always present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorDetail {
    /// For a person: what happened and what to do.
    pub message: String,
    /// The broad class, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The request field at fault, if one is.
    pub param: Option<String>,
    /// The exact case, for programs, such as `context_length_exceeded`.
    pub code: Option<&'static str>,
}

impl From<BadField> for ErrorDetail {
    fn from(bad: BadField) -> Self {
        Self {
            message: bad.message,
            kind: "invalid_request_error",
            param: bad.param,
            code: bad.code,
        }
    }
}
