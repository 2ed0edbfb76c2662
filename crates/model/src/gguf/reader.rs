//! Reading the header, with every step checked.

use super::GgufError;
use super::value::{Array, Value};

/// A cursor over the file's bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = self
            .at
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(GgufError::Truncated {
            what,
            at: self.at,
            len: self.bytes.len(),
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        Ok(self
            .take(N, what)?
            .try_into()
            .expect("take returns what was asked for"))
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], GgufError> {
        self.array("the magic")
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of things that take at least `least` bytes each, so that it cannot promise more than the file holds.
    pub(super) fn count(&mut self, least: usize, what: &'static str) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => Err(GgufError::Truncated {
                what,
                at: self.at,
                len: self.bytes.len(),
            }),
        }
    }

    /// Reads a length-prefixed string. Vocabularies hold bytes that are not UTF-8; those become U+FFFD.
    pub(super) fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        let len = self.count(1, what)?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    pub(super) fn value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32("a value's type")?;
        self.value_of(kind)
    }

    fn value_of(&mut self, kind: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(WHAT)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Unsigned(u32::from_le_bytes(self.array(WHAT)?).into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            7 => Value::Bool(self.array::<1>(WHAT)? != [0]),
            8 => Value::Text(self.string(WHAT)?),
            9 => Value::Array(self.values()?),
            10 => Value::Unsigned(u64::from_le_bytes(self.array(WHAT)?)),
            11 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            kind => return Err(GgufError::ValueType { kind }),
        })
    }

    fn values(&mut self) -> Result<Array, GgufError> {
        let kind = self.u32("an array's type")?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            // The specification allows arrays of arrays; no model uses them, and they invite bottomless nesting.
            kind => return Err(GgufError::ValueType { kind }),
        };
        let count = self.count(least, "an array")?;
        Ok(match kind {
            8 => Array::Texts(
                (0..count)
                    .map(|_| self.string("an array"))
                    .collect::<Result<_, _>>()?,
            ),
            _ => Array::Numbers(
                (0..count)
                    .map(|_| self.value_of(kind))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}
