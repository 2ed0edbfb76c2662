//! Reading the header, with every step checked.

use super::GgufError;
use super::value::{Numbers, Value};

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
        self.text(len, what)
    }

    fn text(&mut self, len: usize, what: &'static str) -> Result<String, GgufError> {
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    /// Reads a string that names something.
    pub(super) fn name(&mut self, max: usize, what: &'static str) -> Result<String, GgufError> {
        match self.count(1, what)? {
            len if len > max => Err(GgufError::NameTooLong { what, len, max }),
            len => self.text(len, what),
        }
    }

    /// Reads the value of `key`.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32("a value's type")?;
        match kind {
            TEXT => Ok(Value::Text(self.string("a text")?)),
            ARRAY => self.values(key),
            _ => {
                let bytes = self.take(self.width(key, kind)?, "a value")?;
                Ok(Value::decode(kind, bytes))
            }
        }
    }

    /// Reads an array. The specification allows arrays of arrays; no model uses them, and they invite bottomless nesting.
    fn values(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32("an array's type")?;
        if kind == TEXT {
            let count = self.count(size_of::<u64>(), "an array")?;
            let texts = (0..count).map(|_| self.string("a text of an array"));
            return Ok(Value::Texts(texts.collect::<Result<_, _>>()?));
        }
        let width = self.width(key, kind)?;
        let count = self.count(width, "an array")?;
        let bytes = self.take(count * width, "an array")?.to_vec();
        Ok(Value::Numbers(Numbers::new(kind, width, bytes)))
    }

    fn width(&self, key: &str, kind: u32) -> Result<usize, GgufError> {
        Numbers::width(kind).ok_or_else(|| GgufError::ValueType {
            key: key.to_owned(),
            kind,
        })
    }
}

/// `gguf_metadata_value_type` as the specification numbers it; the others are numbers.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
