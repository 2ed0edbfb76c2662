//! One rank's part of a loaded model, and the step over it.

use shoal_fabric::{Exchange, Group, Rank};
use shoal_kernels::{Cpu, HeadMap, KvCache, KvCacheError, KvShape, Rotary};

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
    /// [`ModelError`] when the model is not supported or cannot be split this way, or a rank is lost. The caller then
    /// aborts the group, so that the other ranks learn why.
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
        let mut message = serde_json::to_vec(&handover).expect("a spec is plain data");
        group.broadcast(ROOT, &mut message)?;
        Self::load(&message, cpu, group, |spec, split, cpu, group| {
            load::distribute(file, spec, split, cpu, group, progress)
        })
    }

    /// Any other rank: learns from rank 0 what the model is, and receives its slices.
    ///
    /// # Errors
    /// [`ModelError`] when rank 0 is lost or of another release.
    pub fn load_member(cpu: Cpu, group: &mut Group) -> Result<Self, ModelError> {
        let mut message = Vec::new();
        group.broadcast(ROOT, &mut message)?;
        Self::load(&message, cpu, group, load::receive)
    }

    /// Every rank, rank 0 included, takes the description from the same bytes, so that all compute with the same numbers.
    /// Returns when the last rank has its weights.
    fn load(
        message: &[u8],
        cpu: Cpu,
        group: &mut Group,
        fetch: impl FnOnce(&ModelSpec, &SplitPlan, &Cpu, &mut Group) -> Result<Weights, ModelError>,
    ) -> Result<Self, ModelError> {
        let Handover {
            spec,
            shares,
            config,
        } = serde_json::from_slice(message)
            .map_err(|error| ModelError::Handover(error.to_string()))?;
        let shares = Shares::new(shares)?;
        if shares.world() != group.world() {
            let (given, world) = (shares.world(), group.world());
            return Err(ModelError::Split(format!(
                "{given} shares for {world} nodes; give one for each"
            )));
        }
        check_exchange(config.exchange, spec.width, group.world())?;
        let split = SplitPlan::new(&spec, &shares)?;
        let rank = usize::from(group.rank().0);
        let cache = KvCache::new(kv_shape(&spec, &split, rank, &config)?)
            .map_err(|KvCacheError { size_mib }| ModelError::KvCache { size_mib })?;
        let weights = fetch(&spec, &split, &cpu, group)?;
        group.barrier()?;
        group.set_exchange(config.exchange);
        let buffers = Buffers::new(&spec, &split, group, config.batch_tokens_max)?;

        let heads = split.part(Axis::Heads, rank);
        let group = spec.heads / spec.kv_heads;
        Ok(Self {
            buffers,
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
        })
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

/// Refuses blocks that would hold values of two tokens: one's could spoil the other's.
fn check_exchange(exchange: Exchange, width: usize, world: usize) -> Result<(), ModelError> {
    let block = Exchange::BLOCK_LEN;
    match exchange {
        Exchange::Q8 if world > 1 && !width.is_multiple_of(block) => {
            Err(ModelError::Config(format!(
                "sums of {width} values cannot be exchanged in blocks of {block}; leave out the exchange q8"
            )))
        }
        Exchange::Q8 | Exchange::F32 => Ok(()),
    }
}

/// Returns the shape of a rank's KV cache; its memory is only taken as pages are used.
fn kv_shape(
    spec: &ModelSpec,
    split: &SplitPlan,
    rank: usize,
    config: &LoadConfig,
) -> Result<KvShape, ModelError> {
    let LoadConfig {
        context,
        kv_pages,
        page_tokens,
        kv_format,
        exchange: _,
        batch_tokens_max,
    } = *config;
    if [context, kv_pages, page_tokens].contains(&0) || batch_tokens_max == 0 {
        return Err(ModelError::Config(
            "context, KV pages, page and batch hold at least one token each".to_owned(),
        ));
    }
    let batch_bytes =
        batch_tokens_max.checked_mul(size_of::<f32>() * spec.vocabulary.max(spec.ffn_width));
    if batch_bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(ModelError::Config(format!(
            "a batch of {batch_tokens_max} tokens does not fit the address space"
        )));
    }
    Ok(KvShape {
        layers: spec.blocks.len(),
        pages: kv_pages as usize,
        page_tokens: page_tokens as usize,
        kv_heads: split.part(Axis::KvHeads, rank).len(),
        head_dim: spec.head_dim,
        format: kv_format,
    })
}

/// The rank that has the file.
const ROOT: Rank = Rank(0);
