//! The fuzz target `gguf` as an ordinary test.

#[path = "../../../fuzz/cases/gguf.rs"]
mod case;
#[path = "../../../fuzz/damage.rs"]
mod damage;

use shoal_model::{ModelSpec, gguf::Gguf};

#[test]
fn damaged_model_files_are_read_or_refused() {
    damage::feed(&gguf(), 20_000, case::run);
}

#[test]
fn the_file_is_valid_before_it_is_damaged() {
    let gguf = Gguf::parse(gguf()).expect("a whole file");
    let spec = ModelSpec::from_gguf(&gguf).expect("a llama model");
    assert_eq!((spec.context_length(), spec.vocabulary()), (64, 8));
}

/// A whole model file of the llama family: one layer, width 32, two heads over one KV head, eight tokens.
fn gguf() -> Vec<u8> {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama");
    file.text("general.name", "tiny");
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 16),
        ("vocab_size", 8),
    ] {
        file.number(&format!("llama.{key}"), value);
    }
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.float("llama.rope.freq_base", 10_000.0);
    file.text("tokenizer.ggml.model", "gpt2");
    file.texts(
        "tokenizer.ggml.tokens",
        &["a", "b", "c", "d", "e", "f", "g", "<eos>"],
    );
    file.number("tokenizer.ggml.eos_token_id", 7);
    for (name, columns, rows) in [
        ("token_embd.weight", 32, 8),
        ("blk.0.attn_norm.weight", 32, 0),
        ("blk.0.attn_q.weight", 32, 32),
        ("blk.0.attn_k.weight", 32, 16),
        ("blk.0.attn_v.weight", 32, 16),
        ("blk.0.attn_output.weight", 32, 32),
        ("blk.0.ffn_norm.weight", 32, 0),
        ("blk.0.ffn_gate.weight", 32, 64),
        ("blk.0.ffn_up.weight", 32, 64),
        ("blk.0.ffn_down.weight", 64, 32),
        ("output_norm.weight", 32, 0),
    ] {
        file.tensor(name, columns, rows);
    }
    file.finish()
}

/// Writes GGUF version 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>) with zeroed f32 tensors.
#[derive(Default)]
struct GgufWriter {
    pairs: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data_bytes: u64,
}

impl GgufWriter {
    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        string(&mut self.metadata, value);
    }

    fn texts(&mut self, key: &str, values: &[&str]) {
        self.key(key, 9);
        self.metadata.extend(8_u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        for value in values {
            string(&mut self.metadata, value);
        }
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.pairs += 1;
        string(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
    }

    /// Adds a matrix, or a vector when `rows` is 0.
    fn tensor(&mut self, name: &str, columns: u64, rows: u64) {
        self.tensors += 1;
        string(&mut self.infos, name);
        let dimensions = if rows == 0 {
            vec![columns]
        } else {
            vec![columns, rows]
        };
        self.infos.extend((dimensions.len() as u32).to_le_bytes());
        for dimension in dimensions {
            self.infos.extend(dimension.to_le_bytes());
        }
        self.infos.extend(0_u32.to_le_bytes());
        self.infos.extend(self.data_bytes.to_le_bytes());
        self.data_bytes += columns * rows.max(1) * 4;
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.pairs.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.infos);
        file.resize(
            file.len().next_multiple_of(32) + self.data_bytes as usize,
            0,
        );
        file
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
