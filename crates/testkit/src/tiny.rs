//! Tiny models of the llama family.

use std::io;
use std::path::Path;

use shoal_kernels::Dtype;

use crate::blocks::random_blocks;
use crate::gguf::GgufWriter;
use crate::random::Random;

/// What a tiny model is like.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream; a whole number of `dtype`'s blocks.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head. `heads × head_dim` is a whole number of `dtype`'s blocks.
    pub head_dim: usize,
    /// Width inside the feed-forward part; a whole number of `dtype`'s blocks.
    pub ffn: usize,
    /// Tokens. From 259 on there is a byte-level tokeniser, below none.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: u32,
    /// Format of the matrices; norms are F32.
    pub dtype: Dtype,
    /// Whether the embedding is also the head.
    pub tied: bool,
    /// Rotary base.
    pub rope_base: f32,
    /// Rotary scaling.
    pub rope_scaling: TinyScaling,
    /// Chat template, as Jinja.
    pub chat_template: Option<String>,
    /// Other seeds give other weights.
    pub seed: u64,
}

/// How a tiny model stretches its rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum TinyScaling {
    /// Not at all.
    None,
    /// Every position divided by the factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// YaRN with its usual parameters.
    Yarn {
        /// The factor.
        factor: f32,
        /// The context before stretching.
        original_context: u32,
    },
    /// A divisor for each rotated pair, as files carry the scaling of Llama 3.
    Factors(Vec<f32>),
}

impl Default for TinyConfig {
    /// A model with nine heads over three key-value heads and 512 tokens that loads in milliseconds.
    fn default() -> Self {
        Self {
            layers: 2,
            width: 64,
            heads: 9,
            kv_heads: 3,
            head_dim: 32,
            ffn: 160,
            vocabulary: 512,
            context: 256,
            dtype: Dtype::Q8_0,
            tied: true,
            rope_base: 10_000.0,
            rope_scaling: TinyScaling::None,
            chat_template: Some(CHATML.to_owned()),
            seed: 1,
        }
    }
}

impl TinyConfig {
    /// Returns a model of eight heads over two key-value heads, in which every width is a whole number of any format's
    /// blocks.
    #[must_use]
    pub fn wide(dtype: Dtype) -> Self {
        Self {
            width: 256,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            ffn: 768,
            dtype,
            ..Self::default()
        }
    }

    /// Returns a writer that holds the whole model, for tests that want to spoil it.
    ///
    /// # Panics
    /// If a width is not a whole number of blocks.
    #[must_use]
    pub fn writer(&self) -> GgufWriter {
        let mut file = GgufWriter::default();
        self.write_dimensions(&mut file);
        if self.vocabulary >= FIRST_MERGED {
            self.write_tokenizer(&mut file);
        }
        self.write_weights(&mut file);
        file
    }

    fn write_dimensions(&self, file: &mut GgufWriter) {
        file.text("general.architecture", "llama");
        file.text("general.name", "tiny");
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.context as usize),
            ("embedding_length", self.width),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocabulary),
        ] {
            file.number(&format!("llama.{key}"), value as u32);
        }
        file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
        file.float("llama.rope.freq_base", self.rope_base);
        match &self.rope_scaling {
            TinyScaling::None => {}
            TinyScaling::Linear { factor } => {
                file.text("llama.rope.scaling.type", "linear");
                file.float("llama.rope.scaling.factor", *factor);
            }
            TinyScaling::Yarn {
                factor,
                original_context,
            } => {
                file.text("llama.rope.scaling.type", "yarn");
                file.float("llama.rope.scaling.factor", *factor);
                file.number(
                    "llama.rope.scaling.original_context_length",
                    *original_context,
                );
            }
            TinyScaling::Factors(factors) => {
                let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes());
                let count = factors.len() as u64;
                file.tensor("rope_freqs.weight", &[count], Dtype::F32, bytes.collect());
            }
        }
    }

    fn write_tokenizer(&self, file: &mut GgufWriter) {
        let bytes = (0..=255).map(|byte| byte_letter(byte).to_string());
        let mut tokens: Vec<String> = SPECIAL
            .iter()
            .map(|&text| text.to_owned())
            .chain(bytes)
            .collect();
        let letters = || 'a'..='z';
        let pairs = letters().flat_map(|first| letters().map(move |second| (first, second)));
        let pairs: Vec<_> = pairs.take(self.vocabulary - FIRST_MERGED).collect();
        tokens.extend(
            pairs
                .iter()
                .map(|(first, second)| format!("{first}{second}")),
        );
        // Whatever is still missing can be produced but not written.
        tokens.extend((tokens.len()..self.vocabulary).map(|id| format!("<|unused_{id}|>")));

        let is_control = |id: usize| id < SPECIAL.len() || id >= FIRST_MERGED + pairs.len();
        let kinds: Vec<i32> = (0..self.vocabulary)
            .map(|id| if is_control(id) { 3 } else { 1 })
            .collect();
        let merges: Vec<String> = pairs
            .iter()
            .map(|(first, second)| format!("{first} {second}"))
            .collect();
        file.text("tokenizer.ggml.model", "gpt2");
        file.text("tokenizer.ggml.pre", "gpt-2");
        file.texts("tokenizer.ggml.tokens", &tokens);
        file.integers("tokenizer.ggml.token_type", &kinds);
        file.texts("tokenizer.ggml.merges", &merges);
        file.number("tokenizer.ggml.bos_token_id", 0);
        file.number("tokenizer.ggml.eos_token_id", 2);
        file.boolean("tokenizer.ggml.add_bos_token", false);
        if let Some(template) = &self.chat_template {
            file.text("tokenizer.chat_template", template);
        }
    }

    fn write_weights(&self, file: &mut GgufWriter) {
        let mut random = Random::new(self.seed);
        let mut matrix = |name: String, rows: usize, cols: usize| {
            // Keeps the outputs of a product about as large as its inputs.
            let amplitude = (3.0 / cols as f32).sqrt();
            let data = random_blocks(self.dtype, rows * cols, amplitude, &mut random);
            (name, [cols as u64, rows as u64], data)
        };
        let (attention, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut matrices = vec![matrix(
            "token_embd.weight".to_owned(),
            self.vocabulary,
            self.width,
        )];
        for layer in 0..self.layers {
            for (name, rows, cols) in [
                ("attn_q", attention, self.width),
                ("attn_k", kv, self.width),
                ("attn_v", kv, self.width),
                ("attn_output", self.width, attention),
                ("ffn_gate", self.ffn, self.width),
                ("ffn_up", self.ffn, self.width),
                ("ffn_down", self.width, self.ffn),
            ] {
                matrices.push(matrix(format!("blk.{layer}.{name}.weight"), rows, cols));
            }
        }
        if !self.tied {
            matrices.push(matrix(
                "output.weight".to_owned(),
                self.vocabulary,
                self.width,
            ));
        }
        for (name, dimensions, data) in matrices {
            file.tensor(&name, &dimensions, self.dtype, data);
        }
        let norms = (0..self.layers)
            .flat_map(|layer| {
                ["attn_norm", "ffn_norm"].map(|name| format!("blk.{layer}.{name}.weight"))
            })
            .chain(["output_norm.weight".to_owned()]);
        for name in norms {
            let weights = (0..self.width).flat_map(|_| (1.0 + 0.2 * random.signed()).to_le_bytes());
            file.tensor(&name, &[self.width as u64], Dtype::F32, weights.collect());
        }
    }
}

/// Returns a GGUF file of the model.
///
/// # Panics
/// If a width is not a whole number of blocks.
#[must_use]
pub fn tiny_llama(config: &TinyConfig) -> Vec<u8> {
    config.writer().finish()
}

/// Writes the model's GGUF file.
///
/// # Errors
/// If the file cannot be written.
///
/// # Panics
/// If a width is not a whole number of blocks.
pub fn write_to(config: &TinyConfig, path: &Path) -> io::Result<()> {
    std::fs::write(path, tiny_llama(config))
}

/// The letter that stands for a byte in byte-level vocabularies: printable ones for themselves, the others for letters
/// from U+0100 on ([GPT-2's encoder](https://github.com/openai/gpt-2/blob/master/src/encoder.py)).
fn byte_letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte.into();
    }
    let others_before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + others_before)
        .expect("fewer than 256 letters from U+0100 on are all letters")
}

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const FIRST_MERGED: usize = SPECIAL.len() + 256;
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
