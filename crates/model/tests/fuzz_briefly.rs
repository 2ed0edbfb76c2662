//! The fuzz target `gguf` as an ordinary test.

#[path = "../../../fuzz/cases/gguf.rs"]
mod case;
#[path = "../../../fuzz/damage.rs"]
mod damage;

use shoal_kernels::Dtype;
use shoal_testkit::{TinyConfig, tiny_llama};

#[test]
fn damaged_model_files_are_read_or_refused() {
    damage::feed(&tiny_llama(&smallest()), 200_000, case::run);
}

/// Small, so that damage hits the header as often as the weights behind it.
fn smallest() -> TinyConfig {
    TinyConfig {
        layers: 1,
        width: 32,
        heads: 1,
        kv_heads: 1,
        ffn: 32,
        vocabulary: 8,
        dtype: Dtype::Q4_0,
        ..TinyConfig::default()
    }
}
