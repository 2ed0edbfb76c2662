//! One step: the forward pass of a batch over a rank's slices.
//!
//! Every rank runs this on the same spans and reaches the same sums, so all hold the same residual stream and the same
//! logits, bit for bit. Nothing here asks which rank it is.

use shoal_fabric::{FabricError, Group, Reduce, Region};
use shoal_kernels::AttentionSpan;
use smallvec::SmallVec;

use crate::error::ModelError;
use crate::load::{Block, LoadConfig, Slab};
use crate::model::Model;
use crate::spec::{Axis, ModelSpec};
use crate::split::SplitPlan;

/// Consecutive new tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The tokens; at least one.
    pub tokens: Vec<u32>,
    /// Position of the first one.
    pub start: u32,
    /// KV pages of the sequence: position `p` lives in `pages[p / page_tokens]`.
    pub pages: Vec<u32>,
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// Logits of a step: one row over the whole vocabulary for each span that wanted them, in order.
pub struct Logits<'a> {
    rows: &'a [f32],
    vocabulary: usize,
}

impl Logits<'_> {
    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.vocabulary
    }

    /// Says whether no span wanted logits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the row of the `i`-th span that wanted logits.
    ///
    /// # Panics
    /// If there are not that many.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.vocabulary..][..self.vocabulary]
    }
}

/// Activations of the largest step, set aside once; those that are summed over the ranks in memory that the group lends.
pub(crate) struct Buffers {
    positions: Vec<u32>,
    residual: Region,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Input of a product whose slice is wider than what the rank owns.
    widened: Vec<f32>,
    partial: Region,
    logits_part: Vec<f32>,
    logits_parts: Vec<f32>,
    /// How many of those each rank has.
    logits_lens: Vec<usize>,
    logits: Vec<f32>,
}

impl Buffers {
    pub(crate) fn new(
        spec: &ModelSpec,
        split: &SplitPlan,
        group: &mut Group,
        tokens_max: usize,
    ) -> Result<Self, FabricError> {
        let rank = group.rank().index();
        let tokens = |width: usize| vec![0.0; tokens_max * width];
        let query = split.part(Axis::Heads, rank).len() * spec.head_dim;
        let key = split.part(Axis::KvHeads, rank).len() * spec.head_dim;
        let ffn = split.part(Axis::Ffn, rank).len();
        Ok(Self {
            positions: Vec::with_capacity(tokens_max),
            residual: group.region(tokens_max * spec.width)?,
            normed: tokens(spec.width),
            query: tokens(query),
            key: tokens(key),
            value: tokens(key),
            attended: tokens(query),
            gate: tokens(ffn),
            up: tokens(ffn),
            widened: Vec::new(),
            partial: group.region(tokens_max * spec.width)?,
            // As many rows as sequences want logits; known only when they do.
            logits_part: Vec::new(),
            logits_parts: Vec::new(),
            logits_lens: Vec::new(),
            logits: Vec::new(),
        })
    }
}

impl Model {
    /// Computes the spans, extends the KV cache, and returns the logits that are wanted.
    ///
    /// Every rank of the group must call this with the same spans. `progress` is called before and after each exchange
    /// with the other ranks, several times a layer, for whoever has to know that a long step goes on.
    ///
    /// # Errors
    /// [`ModelError::BatchTooLarge`] and [`ModelError::Span`] before anything is computed, when the spans do not fit;
    /// [`ModelError::Fabric`] when a rank is lost.
    pub fn forward(
        &mut self,
        spans: &[Span],
        group: &mut Group,
        progress: &mut dyn FnMut(),
    ) -> Result<Logits<'_>, ModelError> {
        let tokens = self.check(spans)?;
        let peers = &mut Peers { group, progress };
        let reads: SmallVec<[AttentionSpan<'_>; SPANS_INLINE]> = spans
            .iter()
            .map(|span| AttentionSpan {
                pages: &span.pages,
                start: span.start,
                tokens: span.tokens.len(),
            })
            .collect();
        self.embed(spans, tokens, peers)?;
        for layer in 0..self.weights.blocks.len() {
            self.attention(layer, &reads, tokens, peers)?;
            self.feed_forward(layer, tokens, peers)?;
        }
        self.head(spans, peers)
    }

    /// Returns the number of tokens, having made sure that no index below can be out of range.
    fn check(&self, spans: &[Span]) -> Result<usize, ModelError> {
        let LoadConfig {
            context,
            kv_pages,
            page_tokens,
            batch_tokens_max,
            ..
        } = self.config;
        for (i, span) in spans.iter().enumerate() {
            let refused = |what: String| Err(ModelError::Span(format!("span {i} {what}")));
            let end = u64::from(span.start) + span.tokens.len() as u64;
            if span.tokens.is_empty() {
                return refused("has no tokens".to_owned());
            }
            if end > u64::from(context) {
                return refused(format!(
                    "ends at position {end}, beyond the context of {context}"
                ));
            }
            if end > span.pages.len() as u64 * u64::from(page_tokens) {
                return refused(format!("ends at position {end}, beyond its pages"));
            }
            if let Some(page) = span.pages.iter().find(|page| **page >= kv_pages) {
                return refused(format!("has page {page} of {kv_pages}"));
            }
            let vocabulary = self.spec.vocabulary;
            if let Some(token) = span
                .tokens
                .iter()
                .find(|token| **token as usize >= vocabulary)
            {
                return refused(format!("has token {token} of {vocabulary}"));
            }
        }
        let tokens = spans.iter().map(|span| span.tokens.len()).sum();
        match tokens {
            0 => Err(ModelError::Span("there are no spans".to_owned())),
            _ if tokens > batch_tokens_max => Err(ModelError::BatchTooLarge {
                tokens,
                batch_tokens_max,
            }),
            _ => Ok(tokens),
        }
    }

    /// Every rank looks up the tokens of its part of the vocabulary; the sum of one row and zeros is that row.
    fn embed(
        &mut self,
        spans: &[Span],
        tokens: usize,
        peers: &mut Peers<'_>,
    ) -> Result<(), ModelError> {
        let own = self
            .split
            .part(Axis::Vocabulary, peers.group.rank().0.into());
        let width = self.spec.width;
        let residual = &mut self.buffers.residual[..tokens * width];
        let all = spans.iter().flat_map(|span| &span.tokens);
        for (token, row) in all.zip(residual.chunks_exact_mut(width)) {
            match (*token as usize).checked_sub(own.start) {
                Some(local) if local < own.len() => {
                    self.weights.embedding.matrix.dequantize_row(local, row)
                }
                _ => row.fill(0.0),
            }
        }
        self.buffers.positions.clear();
        for span in spans {
            self.buffers
                .positions
                .extend(span.start..span.start + span.tokens.len() as u32);
        }
        peers.sum_exactly(residual)?;
        Ok(())
    }

    fn attention(
        &mut self,
        layer: usize,
        spans: &[AttentionSpan<'_>],
        tokens: usize,
        peers: &mut Peers<'_>,
    ) -> Result<(), ModelError> {
        let Self {
            spec,
            cpu,
            weights,
            rotary,
            heads,
            cache,
            buffers: b,
            ..
        } = self;
        let block: &Block = &weights.blocks[layer];
        let width = tokens * spec.width;
        let kv_width = cache.shape().kv_heads * spec.head_dim;
        let (q_len, kv_len) = (tokens * heads.heads * spec.head_dim, tokens * kv_width);

        let normed = &mut b.normed[..width];
        cpu.rms_norm(
            &b.residual[..width],
            &block.attention_norm,
            spec.norm_epsilon,
            normed,
        );
        let (query, key, value) = (
            &mut b.query[..q_len],
            &mut b.key[..kv_len],
            &mut b.value[..kv_len],
        );
        cpu.linear_many(
            normed,
            [
                (&block.query.matrix, &mut *query),
                (&block.key.matrix, &mut *key),
                (&block.value.matrix, &mut *value),
            ],
        );
        cpu.rotary(query, heads.heads, &b.positions, rotary);
        cpu.rotary(key, cache.shape().kv_heads, &b.positions, rotary);

        let mut done = 0;
        for span in spans {
            let rows = done * kv_width..(done + span.tokens) * kv_width;
            cache.write(
                layer,
                span.pages,
                span.start,
                &key[rows.clone()],
                &value[rows],
            );
            done += span.tokens;
        }
        let attended = &mut b.attended[..q_len];
        cpu.attention(
            query,
            cache,
            layer,
            spans,
            heads,
            spec.attention_scale,
            attended,
        );

        let partial = &mut b.partial[..width];
        let input = widen(&block.output, attended, tokens, &mut b.widened);
        cpu.linear(input, &block.output.matrix, partial);
        peers.sum(partial)?;
        cpu.add(&mut b.residual[..width], partial);
        Ok(())
    }

    fn feed_forward(
        &mut self,
        layer: usize,
        tokens: usize,
        peers: &mut Peers<'_>,
    ) -> Result<(), ModelError> {
        let Self {
            spec,
            cpu,
            weights,
            buffers: b,
            ..
        } = self;
        let block: &Block = &weights.blocks[layer];
        let width = tokens * spec.width;
        let inner = tokens * block.gate.matrix.rows();

        let normed = &mut b.normed[..width];
        cpu.rms_norm(
            &b.residual[..width],
            &block.ffn_norm,
            spec.norm_epsilon,
            normed,
        );
        let (gate, up) = (&mut b.gate[..inner], &mut b.up[..inner]);
        cpu.linear_many(
            normed,
            [
                (&block.gate.matrix, &mut *gate),
                (&block.up.matrix, &mut *up),
            ],
        );
        cpu.silu_mul(gate, up);

        let partial = &mut b.partial[..width];
        let input = widen(&block.down, gate, tokens, &mut b.widened);
        cpu.linear(input, &block.down.matrix, partial);
        peers.sum(partial)?;
        cpu.add(&mut b.residual[..width], partial);
        Ok(())
    }

    /// Norm and head for the last tokens of the spans that want logits, gathered over the vocabulary's parts.
    fn head(&mut self, spans: &[Span], peers: &mut Peers<'_>) -> Result<Logits<'_>, ModelError> {
        let Self {
            spec,
            split,
            cpu,
            weights,
            buffers: b,
            ..
        } = self;
        let (width, vocabulary) = (spec.width, spec.vocabulary);
        let mut rows = 0;
        let mut end = 0;
        for span in spans {
            end += span.tokens.len();
            if span.wants_logits {
                b.partial[rows * width..][..width]
                    .copy_from_slice(&b.residual[(end - 1) * width..][..width]);
                rows += 1;
            }
        }
        b.logits.resize(rows * vocabulary, 0.0);
        if rows > 0 {
            let head = weights.head.as_ref().unwrap_or(&weights.embedding);
            let normed = &mut b.normed[..rows * width];
            cpu.rms_norm(
                &b.partial[..rows * width],
                &weights.final_norm,
                spec.norm_epsilon,
                normed,
            );
            b.logits_part.resize(rows * head.matrix.rows(), 0.0);
            cpu.linear(normed, &head.matrix, &mut b.logits_part);

            let parts = (0..split.world()).map(|rank| split.part(Axis::Vocabulary, rank));
            b.logits_lens.clear();
            b.logits_lens
                .extend(parts.clone().map(|part| rows * part.len()));
            b.logits_parts.resize(rows * vocabulary, 0.0);
            peers.gather(&b.logits_part, &b.logits_lens, &mut b.logits_parts)?;
            // From rank by rank to row by row.
            for part in parts {
                let gathered = &b.logits_parts[rows * part.start..];
                for row in 0..rows {
                    b.logits[row * vocabulary..][part.clone()]
                        .copy_from_slice(&gathered[row * part.len()..][..part.len()]);
                }
            }
        }
        Ok(Logits {
            rows: &b.logits,
            vocabulary,
        })
    }
}

/// The other ranks within a step. Whoever waits for the step hears of it around each wait for them.
struct Peers<'a> {
    group: &'a mut Group,
    progress: &'a mut dyn FnMut(),
}

impl Peers<'_> {
    fn sum(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        self.wait_for(|group| group.all_reduce_sum(data))
    }

    /// Sums as floats, whatever the [exchange](shoal_fabric::Exchange) is.
    fn sum_exactly(&mut self, data: &mut [f32]) -> Result<(), FabricError> {
        self.wait_for(|group| group.all_reduce(Reduce::Sum, data))
    }

    fn gather(&mut self, mine: &[f32], lens: &[usize], out: &mut [f32]) -> Result<(), FabricError> {
        self.wait_for(|group| group.all_gather_f32(mine, lens, out))
    }

    fn wait_for(
        &mut self,
        work: impl FnOnce(&mut Group) -> Result<(), FabricError>,
    ) -> Result<(), FabricError> {
        (self.progress)();
        let outcome = work(self.group);
        (self.progress)();
        outcome
    }
}

/// Sequences up to which a step allocates nothing.
const SPANS_INLINE: usize = 32;

/// Returns the input of a column-split product: as it is, or between the zeros that its widened slice asks for.
fn widen<'a>(slab: &Slab, own: &'a [f32], tokens: usize, widened: &'a mut Vec<f32>) -> &'a [f32] {
    let cols = slab.matrix.cols();
    let own_cols = own.len() / tokens;
    if cols == own_cols {
        return own;
    }
    widened.clear();
    widened.resize(tokens * cols, 0.0);
    for (row, own) in widened
        .chunks_exact_mut(cols)
        .zip(own.chunks_exact(own_cols))
    {
        row[slab.lead..][..own_cols].copy_from_slice(own);
    }
    widened
}
