//! Model files as they come from anywhere: any bytes are a model or an error, and never a panic.

use shoal_model::{ModelSpec, gguf::Gguf};

/// Reads `data` as a model file, as far as loading goes before any weight is computed with. Says whether it is one.
pub(crate) fn run(data: &[u8]) -> bool {
    Gguf::parse(data.to_vec()).is_ok_and(|gguf| ModelSpec::from_gguf(&gguf).is_ok())
}
