//! A model as data: its dimensions, its rotary embedding, and every weight with how it is split.

use serde::{Deserialize, Serialize};
use shoal_kernels::{Dtype, Rotary, RotaryLayout};

use crate::error::ModelError;
use crate::families;
use crate::gguf::Gguf;

/// Everything about a model but its numbers. Rank 0 reads it from the file and sends it to the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Architecture as the file names it, for logs.
    pub architecture: String,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the feed-forward part.
    pub ffn_width: usize,
    /// Tokens the model knows.
    pub vocabulary: usize,
    /// Longest sequence it was trained for.
    pub context_length: u32,
    /// Added to the mean square in RMSNorm.
    pub norm_epsilon: f32,
    /// Factor on query-key products.
    pub attention_scale: f32,
    /// Rotary position embedding.
    pub rotary: RotarySpec,
    /// `vocabulary × width`; also the head when there is none of its own.
    pub embedding: WeightSpec,
    /// The repeated part.
    pub blocks: Vec<BlockSpec>,
    /// Norm before the head.
    pub final_norm: WeightSpec,
    /// `vocabulary × width`; `None` when it is tied to the embedding.
    pub head: Option<WeightSpec>,
}

/// Weights of one transformer block: attention, then a gated feed-forward part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// Norm before attention.
    pub attention_norm: WeightSpec,
    /// `heads × head_dim` by `width`.
    pub query: WeightSpec,
    /// `kv_heads × head_dim` by `width`.
    pub key: WeightSpec,
    /// `kv_heads × head_dim` by `width`.
    pub value: WeightSpec,
    /// `width` by `heads × head_dim`.
    pub output: WeightSpec,
    /// Norm before the feed-forward part.
    pub ffn_norm: WeightSpec,
    /// `ffn_width` by `width`.
    pub gate: WeightSpec,
    /// `ffn_width` by `width`.
    pub up: WeightSpec,
    /// `width` by `ffn_width`.
    pub down: WeightSpec,
}

/// One weight: a matrix of `rows` outputs by `cols` inputs, or a vector of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightSpec {
    /// Name in the file.
    pub name: String,
    /// Element type.
    #[serde(with = "dtype_name")]
    pub dtype: Dtype,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// How it is divided over ranks.
    pub split: Split,
}

/// How one weight is divided over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Split {
    /// Every rank holds all of it.
    Replicate,
    /// Every rank holds the rows of its part of the axis: its outputs are that part.
    Rows(Axis),
    /// Every rank holds the columns of its part of the axis: its inputs are that part, and outputs are summed over ranks.
    Columns(Axis),
}

/// What is divided over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Axis {
    /// Query heads.
    Heads,
    /// Key-value heads that a rank's query heads read; some are held by several ranks.
    KvHeads,
    /// Inner columns of the feed-forward part.
    Ffn,
    /// Tokens of the vocabulary.
    Vocabulary,
}

/// Rotary embedding with its scaling already worked into the frequencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotarySpec {
    /// Radians a position, for each rotated pair.
    pub inverse_frequencies: Vec<f32>,
    /// Factor on the rotated values.
    pub amplitude: f32,
    /// Whether pairs are neighbours (GGUF's llama) or half a head apart (NeoX).
    pub interleaved: bool,
}

impl ModelSpec {
    /// Reads the spec from a file and checks that every weight is there, in the right shape, and none besides.
    ///
    /// # Errors
    /// [`ModelError`] names the architecture, key or tensor at fault.
    pub fn from_gguf(file: &Gguf) -> Result<Self, ModelError> {
        families::spec(file)
    }

    /// Returns the longest sequence that the model was trained for.
    #[must_use]
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Returns the number of tokens that the model knows.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Lists every weight in the order in which weights travel from rank 0 to the others.
    pub fn weights(&self) -> impl Iterator<Item = &WeightSpec> {
        let blocks = self.blocks.iter().flat_map(BlockSpec::weights);
        std::iter::once(&self.embedding)
            .chain(blocks)
            .chain([&self.final_norm])
            .chain(&self.head)
    }
}

impl BlockSpec {
    fn weights(&self) -> [&WeightSpec; 9] {
        [
            &self.attention_norm,
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.ffn_norm,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }
}

impl RotarySpec {
    pub(crate) fn build(&self) -> Rotary {
        let layout = if self.interleaved {
            RotaryLayout::Interleaved
        } else {
            RotaryLayout::Halves
        };
        Rotary::new(self.inverse_frequencies.clone(), self.amplitude, layout)
    }
}

/// Element types travel by name.
mod dtype_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use shoal_kernels::Dtype;

    pub(super) fn serialize<S: Serializer>(
        dtype: &Dtype,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Dtype, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::from_name(&name)
            .ok_or_else(|| D::Error::custom(format!("unknown element type {name}")))
    }
}
