//! Template values as JSON, byte for byte as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The `tojson` filter as the `transformers` package defines it: no HTML escapes, and the options
/// of Python's `json.dumps` with `ensure_ascii` off by default.
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let (comma, colon) = match options.get::<Option<&Value>>("separators")? {
        Some(pair) => (
            pair.get_item_by_index(0)?.to_string(),
            pair.get_item_by_index(1)?.to_string(),
        ),
        None => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let mut writer = Writer {
        json: String::new(),
        indent,
        comma,
        colon,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.json)
}

struct Writer {
    json: String,
    indent: Option<usize>,
    comma: String,
    colon: String,
    ascii: bool,
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "value nested too deep for JSON",
            ));
        }
        match value.kind() {
            ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self
                .json
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.json.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.list('[', ']', &items, depth, |writer, item| {
                    writer.value(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list('{', '}', &keys, depth, |writer, key| {
                    writer.string(&key.to_string());
                    writer.json.push_str(&writer.colon);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                let message = format!("cannot write {kind} as JSON");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.json.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.json.push_str(&self.comma);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.json.push(close);
        Ok(())
    }

    /// Begins a line, if the JSON is to have lines.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.json.push('\n');
            self.json.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for char in text.chars() {
            match char {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                _ if char < ' ' || (self.ascii && char > '~') => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.json, "\\u{unit:04x}");
                    }
                }
                _ => self.json.push(char),
            }
        }
        self.json.push('"');
    }
}

/// Deeper than any tool's schema, and well within a thread's stack.
const DEPTH_MAX: usize = 128;
