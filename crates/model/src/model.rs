//! One rank's part of a loaded model, and the step over it.

use shoal_fabric::{Group, Rank};
use shoal_kernels::{Cpu, HeadMap, KvCache, KvShape, Rotary};

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::load::{self, Handover, LoadConfig, Weights};
use crate::spec::{Axis, ModelSpec};
use crate::split::{Shares, SplitPlan};
use crate::step::Buffers;

/// One rank's slices, its KV cache, and what a step needs.
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) split: SplitPlan,
    pub(crate) config: LoadConfig,
    pub(crate) cpu: Cpu,
    pub(crate) weights: Weights,
    pub(crate) rotary: Rotary,
    pub(crate) heads: HeadMap,
    pub(crate) cache: KvCache,
    pub(crate) buffers: Buffers,
}

impl Model {
    /// Rank 0: reads the file, sends every other rank its slices, and keeps its own. `progress` is told the bytes of the
    /// file dealt with and in all.
    ///
    /// # Errors
    /// [`ModelError`] when the model is not supported or cannot be split this way, or a rank is lost.
    pub fn load_root(
        file: &Gguf,
        shares: &Shares,
        config: LoadConfig,
        cpu: Cpu,
        group: &mut Group,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let handover = Handover {
            spec: ModelSpec::from_gguf(file)?,
            shares: shares.weights().to_vec(),
            config,
        };
        let split = handover.plan()?;
        let mut message = serde_json::to_vec(&handover).expect("a spec is plain data");
        group.broadcast(Rank(0), &mut message)?;
        let weights = load::distribute(file, &handover.spec, &split, group, progress)?;
        Ok(Self::new(handover, split, cpu, weights, group.rank()))
    }

    /// Any other rank: learns from rank 0 what the model is, and receives its slices.
    ///
    /// # Errors
    /// [`ModelError`] when rank 0 is lost or of another release.
    pub fn load_member(cpu: Cpu, group: &mut Group) -> Result<Self, ModelError> {
        let mut message = Vec::new();
        group.broadcast(Rank(0), &mut message)?;
        let handover: Handover = serde_json::from_slice(&message)
            .map_err(|error| ModelError::Handover(error.to_string()))?;
        let split = handover.plan()?;
        let weights = load::receive(&handover.spec, &split, group)?;
        Ok(Self::new(handover, split, cpu, weights, group.rank()))
    }

    fn new(handover: Handover, split: SplitPlan, cpu: Cpu, weights: Weights, rank: Rank) -> Self {
        let Handover { spec, config, .. } = handover;
        let rank = usize::from(rank.0);
        let heads = split.part(Axis::Heads, rank);
        let group = spec.heads / spec.kv_heads;
        let cache = KvCache::new(KvShape {
            layers: spec.blocks.len(),
            pages: config.kv_pages as usize,
            page_tokens: config.page_tokens as usize,
            kv_heads: split.part(Axis::KvHeads, rank).len(),
            head_dim: spec.head_dim,
        });
        Self {
            buffers: Buffers::new(&spec, &split, rank, config.batch_tokens_max),
            rotary: spec.rotary.build(),
            heads: HeadMap {
                heads: heads.len(),
                group,
                phase: heads.start % group,
            },
            spec,
            split,
            config,
            cpu,
            weights,
            cache,
        }
    }

    /// Returns the model's description.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Returns how the model is divided.
    #[must_use]
    pub fn split(&self) -> &SplitPlan {
        &self.split
    }

    /// Returns what was set aside.
    #[must_use]
    pub fn config(&self) -> LoadConfig {
        self.config
    }

    /// Returns the bytes of this rank's weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Returns the bytes of this rank's KV cache once every page is in use.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.cache.bytes() as u64
    }
}
