//! Metadata values.

/// A metadata value. Integers of all widths become one of two kinds, floats one.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Several values of one kind.
    Array(Array),
}

/// An array of metadata values.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Texts.
    Texts(Vec<String>),
    /// Numbers or truth values.
    Numbers(Vec<Value>),
}

impl Value {
    /// Returns it as an unsigned integer, if it is one.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Returns it as a signed integer, if it is one.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => value.try_into().ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// Returns it as a float, if it is a number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// Returns it as a truth value, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns its text, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns its texts, if it is an array of them.
    #[must_use]
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// Returns its numbers, if it is an array of them.
    #[must_use]
    pub fn as_numbers(&self) -> Option<&[Self]> {
        match self {
            Self::Array(Array::Numbers(numbers)) => Some(numbers),
            _ => None,
        }
    }
}
