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
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of numbers or truth values.
    Numbers(Numbers),
}

/// An array of numbers as it stands in the file, so that a large one takes no more memory than there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    kind: u32,
    width: usize,
    bytes: Vec<u8>,
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
            Self::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// Returns its integers, if it is an array of nothing else.
    #[must_use]
    pub fn integers(&self) -> Option<Vec<i64>> {
        match self {
            Self::Numbers(numbers) => numbers.iter().map(|value| value.as_i64()).collect(),
            _ => None,
        }
    }

    /// Returns its numbers as floats, if it is an array of nothing else.
    #[must_use]
    pub fn floats(&self) -> Option<Vec<f32>> {
        match self {
            Self::Numbers(numbers) => numbers
                .iter()
                .map(|value| value.as_f64().map(|value| value as f32))
                .collect(),
            _ => None,
        }
    }

    /// Decodes a number or truth value of a kind that [`Numbers::width`] knows, from as many bytes.
    pub(super) fn decode(kind: u32, bytes: &[u8]) -> Self {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(eight);
        match kind {
            1 => Self::Signed((unsigned as i8).into()),
            3 => Self::Signed((unsigned as i16).into()),
            5 => Self::Signed((unsigned as i32).into()),
            6 => Self::Float(f32::from_bits(unsigned as u32).into()),
            7 => Self::Bool(unsigned != 0),
            11 => Self::Signed(unsigned as i64),
            12 => Self::Float(f64::from_bits(unsigned)),
            _ => Self::Unsigned(unsigned),
        }
    }
}

impl Numbers {
    /// Takes whole values of `width` bytes each.
    pub(super) fn new(kind: u32, width: usize, bytes: Vec<u8>) -> Self {
        Self { kind, width, bytes }
    }

    /// Returns the bytes of one value of a kind, as the specification numbers kinds; `None` for what is no number.
    pub(super) fn width(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }

    /// Returns the values in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        self.bytes
            .chunks_exact(self.width)
            .map(|bytes| Value::decode(self.kind, bytes))
    }
}
