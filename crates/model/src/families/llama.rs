//! The llama family: grouped-query attention, rotary embedding, SwiGLU, RMSNorm. SmolLM, Llama 2 and 3, and many more.

use super::{Source, rope};
use crate::error::ModelError;
use crate::spec::{Axis, BlockSpec, ModelSpec, Split};

pub(super) fn spec(source: &Source<'_>) -> Result<ModelSpec, ModelError> {
    if source
        .optional_count("expert_count")?
        .is_some_and(|experts| experts > 0)
    {
        return Err(ModelError::Unsupported("a mixture of experts".to_owned()));
    }
    let width = source.count("embedding_length")?;
    let heads = source.count("attention.head_count")?;
    let kv_heads = source
        .optional_count("attention.head_count_kv")?
        .unwrap_or(heads);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(source.bad("attention.head_count_kv", "not a divisor of the head count"));
    }
    let head_dim = source
        .optional_count("attention.key_length")?
        .unwrap_or(width / heads);
    if head_dim == 0 {
        return Err(source.bad("attention.head_count", "larger than the width"));
    }
    if source
        .optional_count("attention.value_length")?
        .is_some_and(|length| length != head_dim)
    {
        return Err(ModelError::Unsupported(
            "a value head of another width than its key head".to_owned(),
        ));
    }
    let ffn_width = source.count("feed_forward_length")?;
    let vocabulary = source
        .file
        .tensor("token_embd.weight")
        .map_or(0, |tensor| tensor.rows);
    let weight = |name: &str, rows, cols, split| source.weight(name, rows, cols, split);
    let head_split = Split::Rows(Axis::Vocabulary);

    let block = |layer: usize| {
        let weight = |name: &str, rows, cols, split| {
            weight(&format!("blk.{layer}.{name}"), rows, cols, split)
        };
        Ok::<_, ModelError>(BlockSpec {
            attention_norm: weight("attn_norm", 1, width, Split::Replicate)?,
            query: weight("attn_q", heads * head_dim, width, Split::Rows(Axis::Heads))?,
            key: weight(
                "attn_k",
                kv_heads * head_dim,
                width,
                Split::Rows(Axis::KvHeads),
            )?,
            value: weight(
                "attn_v",
                kv_heads * head_dim,
                width,
                Split::Rows(Axis::KvHeads),
            )?,
            output: weight(
                "attn_output",
                width,
                heads * head_dim,
                Split::Columns(Axis::Heads),
            )?,
            ffn_norm: weight("ffn_norm", 1, width, Split::Replicate)?,
            gate: weight("ffn_gate", ffn_width, width, Split::Rows(Axis::Ffn))?,
            up: weight("ffn_up", ffn_width, width, Split::Rows(Axis::Ffn))?,
            down: weight("ffn_down", width, ffn_width, Split::Columns(Axis::Ffn))?,
        })
    };
    Ok(ModelSpec {
        architecture: source.architecture.to_owned(),
        width,
        heads,
        kv_heads,
        head_dim,
        ffn_width,
        vocabulary,
        context_length: source.count("context_length")? as u32,
        norm_epsilon: source
            .optional_float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| source.bad("attention.layer_norm_rms_epsilon", "missing"))?,
        attention_scale: source
            .optional_float("attention.scale")?
            // As llama.cpp has it: nothing was said.
            .filter(|scale| *scale != 0.0)
            .unwrap_or_else(|| (head_dim as f32).sqrt().recip()),
        embedding: weight("token_embd", vocabulary, width, head_split)?,
        blocks: (0..source.count("block_count")?)
            .map(block)
            .collect::<Result<_, _>>()?,
        // The converter puts this family's query and key rows into interleaved order. After the blocks, whose tensors vouch for
        // the width of a head: there is a frequency for each two of it.
        rotary: rope::rotary(source, head_dim, true)?,
        final_norm: weight("output_norm", 1, width, Split::Replicate)?,
        head: source
            .has_weight("output")
            .then(|| weight("output", vocabulary, width, head_split))
            .transpose()?,
    })
}
