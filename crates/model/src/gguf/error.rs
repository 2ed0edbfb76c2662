//! What can be wrong with a file.

use std::path::PathBuf;

use thiserror::Error;

use crate::shown::Shown;

/// A file is not a GGUF that Shoal can read. Whoever fetched or made the file can fix it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is some other format.
    #[error(
        "not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"; give the path of a .gguf file"
    )]
    Magic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// It was written for big-endian machines.
    #[error(
        "the file is big-endian GGUF, which is not supported; convert it again on a little-endian machine"
    )]
    BigEndian,
    /// Its version is unknown.
    #[error("GGUF version {version} is not supported (2 and 3 are); convert the model again")]
    Version {
        /// The version it claims.
        version: u32,
    },
    /// It ends too early, or a count in it promises more than it holds.
    #[error(
        "the file is truncated or corrupt: {what} at byte {at} does not fit into its {len} bytes; download it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where.
        at: usize,
        /// Length of the file.
        len: usize,
    },
    /// A name is longer than the format allows.
    #[error(
        "the file is corrupt: {what} has {len} bytes, {max} at most are allowed; download it again"
    )]
    NameTooLong {
        /// What was being read.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The most that the format allows.
        max: usize,
    },
    /// A tensor's data is not all there.
    #[error(
        "the file is truncated: tensor {} needs bytes {start}..{end}, but the file has {len}; download it again",
        Shown(name)
    )]
    TensorOutside {
        /// The tensor.
        name: String,
        /// Its first byte.
        start: u64,
        /// The byte after its last one.
        end: u64,
        /// Length of the file.
        len: usize,
    },
    /// A metadata value is of no known type.
    #[error(
        "metadata {} is of type {kind}, which is not supported; download the file again, or use a newer release",
        Shown(key)
    )]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// A tensor is of no known type.
    #[error(
        "tensor {} has type {code}, which is not supported; use a model in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K or IQ4_NL",
        Shown(name)
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        code: u32,
    },
    /// A tensor's entry contradicts itself or another.
    #[error(
        "tensor {} is malformed: {reason}; download the file again",
        Shown(name)
    )]
    Shape {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A name stands twice.
    #[error("{} stands twice in the file; download it again", Shown(name))]
    Duplicate {
        /// The key or tensor.
        name: String,
    },
    /// `general.alignment` is no power of two.
    #[error("the file's alignment is not a power of two up to 1 MiB; download it again")]
    Alignment,
}
