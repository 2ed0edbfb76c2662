//! Reading one JSON object field by field, with errors that name the field.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use thiserror::Error;

/// Why a request body was refused. The client can fix it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct BadField {
    /// Path of the field, such as `messages[1].content`; `None` when the body is not a JSON object at all.
    pub param: Option<String>,
    /// The exact case, such as `invalid_type` or `unsupported_parameter`.
    pub code: Option<&'static str>,
    /// What is wrong and what would be accepted.
    pub message: String,
}

impl BadField {
    pub(crate) fn wrong_type(param: impl Into<String>, expected: &str, got: &Value) -> Self {
        let param = param.into();
        Self {
            message: format!(
                "Invalid type for '{param}': expected {expected}, but got {} instead.",
                type_name(got)
            ),
            param: Some(param),
            code: Some("invalid_type"),
        }
    }

    pub(crate) fn invalid(param: impl Into<String>, why: impl Display) -> Self {
        let param = param.into();
        Self {
            message: format!("Invalid value for '{param}': {why}."),
            param: Some(param),
            code: Some("invalid_value"),
        }
    }

    pub(crate) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        Self {
            message: format!("Missing required parameter: '{param}'."),
            param: Some(param),
            code: Some("missing_required_parameter"),
        }
    }

    pub(crate) fn unsupported(param: impl Into<String>, accepted: impl Display) -> Self {
        let param = param.into();
        Self {
            message: format!("Unsupported parameter: '{param}'; this server accepts {accepted}."),
            param: Some(param),
            code: Some("unsupported_parameter"),
        }
    }
}

/// Parses a body that must be one JSON object.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, BadField> {
    let problem = match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(other) => format!("expected an object, but got {}", type_name(&other)),
        Err(error) => error.to_string(),
    };
    Err(BadField {
        param: None,
        code: None,
        message: format!("The body of the request is not valid JSON for this endpoint: {problem}."),
    })
}

/// One JSON object and where it sits in the body; `null` reads as absent.
pub(crate) struct Fields<'a> {
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn root(map: &'a Map<String, Value>) -> Self {
        Self {
            prefix: String::new(),
            map,
        }
    }

    /// Reads `value`, found at `path`, which must be an object.
    pub(crate) fn at(path: &str, value: &'a Value) -> Result<Self, BadField> {
        let map = value
            .as_object()
            .ok_or_else(|| BadField::wrong_type(path, "an object", value))?;
        Ok(Self {
            prefix: format!("{path}."),
            map,
        })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn required(&self, name: &str) -> Result<&'a Value, BadField> {
        self.value(name)
            .ok_or_else(|| BadField::missing(self.path(name)))
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, BadField> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(crate) fn boolean(&self, name: &str, default: bool) -> Result<bool, BadField> {
        Ok(self
            .typed(name, "a boolean", Value::as_bool)?
            .unwrap_or(default))
    }

    pub(crate) fn number(
        &self,
        name: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, BadField> {
        let Some(number) = self.typed(name, "a number", Value::as_f64)? else {
            return Ok(None);
        };
        let (low, high) = (f64::from(*range.start()), f64::from(*range.end()));
        if !(low..=high).contains(&number) {
            return Err(self.out_of_range(name, number, range.start(), range.end()));
        }
        Ok(Some(number as f32))
    }

    pub(crate) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, BadField> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match value.as_i64() {
            Some(integer) if range.contains(&integer) => Ok(Some(integer)),
            _ if value.is_i64() || value.is_u64() => {
                Err(self.out_of_range(name, value, range.start(), range.end()))
            }
            _ => Err(BadField::wrong_type(self.path(name), "an integer", value)),
        }
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, BadField> {
        self.value(name)
            .map(|value| {
                read(value).ok_or_else(|| BadField::wrong_type(self.path(name), expected, value))
            })
            .transpose()
    }

    fn out_of_range(
        &self,
        name: &str,
        got: impl Display,
        low: impl Display,
        high: impl Display,
    ) -> BadField {
        BadField::invalid(
            self.path(name),
            format_args!("{got} is outside {low} to {high}"),
        )
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
