//! The GGUF container, versions 2 and 3, little-endian
//! ([specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)).
//!
//! A file comes from anywhere, so nothing in it is believed: every count, length, offset and shape is checked against
//! the bytes that are there before it is used, and no memory is set aside on a file's word alone.

mod error;
mod reader;
mod value;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use shoal_kernels::{Dtype, MappedFile};

pub use error::GgufError;
pub use value::{Numbers, Value};

use reader::Reader;

/// A parsed GGUF file. Weights stay in the file until they are asked for.
pub struct Gguf {
    bytes: Bytes,
    metadata: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// One tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Elements in a row: the first of GGUF's dimensions.
    pub cols: usize,
    /// Number of rows: all other dimensions together.
    pub rows: usize,
    /// Where its bytes lie in the file.
    pub range: Range<usize>,
}

enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Gguf {
    /// Maps a file and parses its header.
    ///
    /// # Errors
    /// [`GgufError`] says what is wrong with the file; `Open` if it cannot be read at all.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let mapped = MappedFile::open(path).map_err(|source| GgufError::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::build(Bytes::Mapped(mapped))
    }

    /// Parses a file that is in memory.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::build(Bytes::Owned(bytes))
    }

    fn build(bytes: Bytes) -> Result<Self, GgufError> {
        let Header { metadata, tensors } = Header::read(bytes.as_slice())?;
        let by_name = tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name.clone(), index))
            .collect();
        let gguf = Self {
            bytes,
            metadata,
            tensors,
            by_name,
        };
        // Vocabularies are large and have just been copied out.
        gguf.release(0..usize::MAX);
        Ok(gguf)
    }

    /// Returns a metadata value.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Returns the directory of tensors, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Finds a tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// Returns a tensor's bytes; for a mapped file they are read as they are touched.
    #[must_use]
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        // Ranges were checked against the file when the directory was read.
        &self.bytes.as_slice()[tensor.range.clone()]
    }

    /// Gives back the memory that reading this part of a mapped file took.
    pub fn release(&self, range: Range<usize>) {
        if let Bytes::Mapped(file) = &self.bytes {
            file.release(range);
        }
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file.bytes(),
            Self::Owned(bytes) => bytes,
        }
    }
}

struct Header {
    metadata: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.magic()?;
        if magic != *b"GGUF" {
            return Err(GgufError::Magic { found: magic });
        }
        match reader.u32("the version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
            version => return Err(GgufError::Version { version }),
        }
        let tensor_count = reader.count(TENSOR_ENTRY_MIN, "the tensor count")?;
        let metadata_count = reader.count(METADATA_ENTRY_MIN, "the metadata count")?;

        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = reader.name(KEY_BYTES_MAX, "a metadata key")?;
            let value = reader.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Duplicate { name: key });
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= ALIGNMENT_MAX)
                .ok_or(GgufError::Alignment)? as usize,
        };
        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            entries.push(Entry::read(&mut reader)?);
        }
        let data_start = reader.position().next_multiple_of(alignment);
        let mut tensors = Vec::with_capacity(entries.len());
        for entry in entries {
            tensors.push(entry.locate(data_start, alignment, bytes.len())?);
        }
        check_layout(&tensors)?;
        Ok(Self { metadata, tensors })
    }
}

/// A directory entry as written, before it is held against the file.
struct Entry {
    name: String,
    dtype: Dtype,
    cols: usize,
    rows: usize,
    offset: u64,
}

impl Entry {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let name = reader.name(TENSOR_NAME_BYTES_MAX, "a tensor's name")?;
        let dimensions = reader.u32("a tensor's dimensions")?;
        let malformed = |reason: &'static str| GgufError::Shape {
            name: name.clone(),
            reason,
        };
        if !(1..=4).contains(&dimensions) {
            return Err(malformed("it has no dimensions, or more than four"));
        }
        let mut shape = [1; 4];
        for size in shape.iter_mut().take(dimensions as usize) {
            *size = usize::try_from(reader.u64("a tensor's shape")?)
                .ok()
                .filter(|size| *size > 0)
                .ok_or_else(|| malformed("a dimension is zero or too large"))?;
        }
        let rows = shape[1]
            .checked_mul(shape[2])
            .and_then(|rows| rows.checked_mul(shape[3]))
            .ok_or_else(|| malformed("it has more elements than can be counted"))?;
        let code = reader.u32("a tensor's type")?;
        let dtype = dtype_of(code).ok_or_else(|| GgufError::TensorType {
            name: name.clone(),
            code,
        })?;
        let offset = reader.u64("a tensor's offset")?;
        Ok(Self {
            name,
            dtype,
            cols: shape[0],
            rows,
            offset,
        })
    }

    fn locate(
        self,
        data_start: usize,
        alignment: usize,
        file_len: usize,
    ) -> Result<TensorInfo, GgufError> {
        let Self {
            name,
            dtype,
            cols,
            rows,
            offset,
        } = self;
        let malformed = |reason: &'static str| GgufError::Shape {
            name: name.clone(),
            reason,
        };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(|| {
            malformed("its rows are not whole quantisation blocks, or too long to be counted")
        })?;
        let len = rows
            .checked_mul(row_bytes)
            .ok_or_else(|| malformed("it has more bytes than can be counted"))?;
        if offset % alignment as u64 != 0 {
            return Err(malformed("its data is not aligned"));
        }
        let start = offset.saturating_add(data_start as u64);
        let end = start.saturating_add(len as u64);
        if end > file_len as u64 {
            return Err(GgufError::TensorOutside {
                name,
                start,
                end,
                len: file_len,
            });
        }
        Ok(TensorInfo {
            name,
            dtype,
            cols,
            rows,
            range: start as usize..end as usize,
        })
    }
}

/// Refuses directories in which a name or a byte stands for two tensors.
fn check_layout(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut ordered: Vec<&TensorInfo> = tensors.iter().collect();
    ordered.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = ordered.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(GgufError::Duplicate {
            name: pair[0].name.clone(),
        });
    }
    ordered.sort_by_key(|tensor| tensor.range.start);
    if let Some(pair) = ordered
        .windows(2)
        .find(|pair| pair[0].range.end > pair[1].range.start)
    {
        return Err(GgufError::Shape {
            name: pair[1].name.clone(),
            reason: "its data overlaps another tensor's",
        });
    }
    Ok(())
}

/// `ggml_type` as the specification numbers it.
fn dtype_of(code: u32) -> Option<Dtype> {
    Some(match code {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Q4_1,
        6 => Dtype::Q5_0,
        7 => Dtype::Q5_1,
        8 => Dtype::Q8_0,
        12 => Dtype::Q4K,
        13 => Dtype::Q5K,
        14 => Dtype::Q6K,
        20 => Dtype::Iq4Nl,
        30 => Dtype::Bf16,
        _ => return None,
    })
}

/// The longest names, as the specification has them.
const KEY_BYTES_MAX: usize = 65535;
const TENSOR_NAME_BYTES_MAX: usize = 64;
const DEFAULT_ALIGNMENT: usize = 32;
/// No writer goes beyond a page; a huge one would only serve to overflow the arithmetic.
const ALIGNMENT_MAX: u64 = 1 << 20;
/// Name length, dimension count, one dimension, type, offset.
const TENSOR_ENTRY_MIN: usize = 8 + 4 + 8 + 4 + 8;
/// Key length, type, one byte.
const METADATA_ENTRY_MIN: usize = 8 + 4 + 1;
