//! Model files as they come from anywhere: any bytes are a model or an error, and never a panic.

use shoal_model::{ModelSpec, gguf::Gguf};

/// Reads `data` as a model file, as far as loading goes before any weight is computed with.
pub(crate) fn run(data: &[u8]) {
    if let Ok(gguf) = Gguf::parse(data.to_vec()) {
        let _model_or_error = ModelSpec::from_gguf(&gguf);
    }
}
