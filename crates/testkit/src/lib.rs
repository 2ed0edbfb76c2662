//! For tests only: tiny models with seeded random weights, so that no test needs a download.
//!
//! [`tiny_llama`] returns a whole GGUF file: a model of a few thousand weights in any format, with a tokeniser and a chat
//! template. It talks nonsense, but the same nonsense on every machine. [`GgufWriter`] makes files of any other kind,
//! malformed ones included.
//!
//! ```
//! use shoal_testkit::{TinyConfig, tiny_llama};
//!
//! let file = tiny_llama(&TinyConfig { layers: 1, ..TinyConfig::default() });
//! assert!(file.starts_with(b"GGUF"));
//! ```

#![forbid(unsafe_code)]

mod blocks;
mod gguf;
mod random;
mod tiny;

pub use blocks::random_blocks;
pub use gguf::GgufWriter;
pub use random::Random;
pub use tiny::{TinyConfig, TinyScaling, tiny_llama, write_to};
