//! From the file on rank 0 to slices in every rank's memory.
//!
//! Rank 0 goes through the weights in the spec's order. Of each it sends every other rank that rank's slice, keeps its
//! own, and gives the mapped pages back, so that no process ever holds much more than its slice. Members know the order
//! and the sizes from the spec, so the stream carries nothing but bytes.

use serde::{Deserialize, Serialize};
use shoal_fabric::{Group, Rank};
use shoal_kernels::Matrix;

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::spec::{BlockSpec, ModelSpec, WeightSpec};
use crate::split::{Shares, Slice, SplitPlan};

/// What a rank sets aside besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadConfig {
    /// Longest sequence.
    pub context: u32,
    /// Pages of the KV cache, shared by all sequences.
    pub kv_pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// Tokens in a step at most.
    pub batch_tokens_max: usize,
}

/// A model's slices on one rank.
pub(crate) struct Weights {
    pub(crate) embedding: Slab,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) head: Option<Slab>,
}

pub(crate) struct Block {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) query: Slab,
    pub(crate) key: Slab,
    pub(crate) value: Slab,
    pub(crate) output: Slab,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) gate: Slab,
    pub(crate) up: Slab,
    pub(crate) down: Slab,
}

/// A slice of a matrix, and where the rank's own columns begin in it.
pub(crate) struct Slab {
    pub(crate) matrix: Matrix,
    pub(crate) lead: usize,
}

/// What members are told before the weights.
#[derive(Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) spec: ModelSpec,
    pub(crate) shares: Vec<u32>,
    pub(crate) config: LoadConfig,
}

/// Rank 0: sends every rank its slices and returns its own.
pub(crate) fn distribute(
    file: &Gguf,
    spec: &ModelSpec,
    plan: &SplitPlan,
    group: &mut Group,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights, ModelError> {
    let total_bytes = spec
        .weights()
        .filter_map(|weight| file.tensor(&weight.name))
        .map(|t| t.range.len() as u64)
        .sum();
    let mut done_bytes = 0;
    Weights::assemble(spec, &mut |weight| {
        let tensor = file
            .tensor(&weight.name)
            .ok_or_else(|| ModelError::MissingTensor {
                name: weight.name.clone(),
            })?;
        let data = file.data(tensor);
        for rank in 1..plan.world() {
            let mut piece = Vec::new();
            cut(data, weight, &plan.slice(weight, rank), &mut |bytes| {
                piece.extend_from_slice(bytes);
                if piece.len() >= PIECE_BYTES {
                    send(group, rank, &mut piece)?;
                }
                Ok(())
            })?;
            if !piece.is_empty() {
                send(group, rank, &mut piece)?;
            }
        }
        let slice = plan.slice(weight, 0);
        let mut own = Vec::with_capacity(slice.bytes(weight));
        cut(data, weight, &slice, &mut |bytes| {
            own.extend_from_slice(bytes);
            Ok(())
        })?;
        file.release(tensor.range.clone());
        done_bytes += tensor.range.len() as u64;
        progress(done_bytes, total_bytes);
        slab(weight, &slice, own)
    })
}

/// Any other rank: receives its slices.
pub(crate) fn receive(
    spec: &ModelSpec,
    plan: &SplitPlan,
    group: &mut Group,
) -> Result<Weights, ModelError> {
    let rank = usize::from(group.rank().0);
    let mut piece = Vec::new();
    Weights::assemble(spec, &mut |weight| {
        let slice = plan.slice(weight, rank);
        let len = slice.bytes(weight);
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            group.recv(Rank(0), &mut piece)?;
            if piece.is_empty() || piece.len() > len - bytes.len() {
                return Err(ModelError::Handover(format!(
                    "{} came with the wrong size",
                    weight.name
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        slab(weight, &slice, bytes)
    })
}

impl Weights {
    /// Fetches every weight in the spec's order.
    fn assemble(
        spec: &ModelSpec,
        fetch: &mut dyn FnMut(&WeightSpec) -> Result<Slab, ModelError>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            embedding: fetch(&spec.embedding)?,
            blocks: spec
                .blocks
                .iter()
                .map(|block| Block::assemble(block, fetch))
                .collect::<Result<_, _>>()?,
            final_norm: vector(&fetch(&spec.final_norm)?),
            head: spec.head.as_ref().map(fetch).transpose()?,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        let blocks = self.blocks.iter().flat_map(|block| {
            [
                &block.query,
                &block.key,
                &block.value,
                &block.output,
                &block.gate,
                &block.up,
                &block.down,
            ]
        });
        blocks
            .chain([&self.embedding])
            .chain(&self.head)
            .map(|slab| slab.matrix.bytes_len() as u64)
            .sum()
    }
}

impl Block {
    fn assemble(
        spec: &BlockSpec,
        fetch: &mut dyn FnMut(&WeightSpec) -> Result<Slab, ModelError>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            attention_norm: vector(&fetch(&spec.attention_norm)?),
            query: fetch(&spec.query)?,
            key: fetch(&spec.key)?,
            value: fetch(&spec.value)?,
            output: fetch(&spec.output)?,
            ffn_norm: vector(&fetch(&spec.ffn_norm)?),
            gate: fetch(&spec.gate)?,
            up: fetch(&spec.up)?,
            down: fetch(&spec.down)?,
        })
    }
}

impl Slice {
    fn bytes(&self, weight: &WeightSpec) -> usize {
        self.rows.len() * row_bytes(weight, self.cols.len())
    }
}

/// Hands the bytes of a slice to `sink`, in order, as runs of the file.
fn cut(
    data: &[u8],
    weight: &WeightSpec,
    slice: &Slice,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let stride = row_bytes(weight, weight.cols);
    if slice.cols.len() == weight.cols {
        let run = &data[slice.rows.start * stride..slice.rows.end * stride];
        return run.chunks(PIECE_BYTES).try_for_each(sink);
    }
    let columns = row_bytes(weight, slice.cols.start)..row_bytes(weight, slice.cols.end);
    slice
        .rows
        .clone()
        .try_for_each(|row| sink(&data[row * stride..][columns.clone()]))
}

fn send(group: &mut Group, rank: usize, piece: &mut Vec<u8>) -> Result<(), ModelError> {
    group.send(Rank(rank as u16), piece)?;
    piece.clear();
    Ok(())
}

fn slab(weight: &WeightSpec, slice: &Slice, bytes: Vec<u8>) -> Result<Slab, ModelError> {
    let matrix = Matrix::new(weight.dtype, slice.rows.len(), slice.cols.len(), bytes)
        .map_err(|error| ModelError::Handover(format!("{}: {error}", weight.name)))?;
    Ok(Slab {
        matrix,
        lead: slice.lead,
    })
}

/// Norms are vectors, and small: they are kept as floats.
fn vector(slab: &Slab) -> Vec<f32> {
    let mut values = vec![0.0; slab.matrix.cols()];
    slab.matrix.dequantize_row(0, &mut values);
    values
}

fn row_bytes(weight: &WeightSpec, cols: usize) -> usize {
    weight
        .dtype
        .row_bytes(cols)
        .expect("rows were whole blocks in the file, and slices are widened to whole blocks")
}

impl Handover {
    pub(crate) fn plan(&self) -> Result<SplitPlan, ModelError> {
        SplitPlan::new(&self.spec, &Shares::new(self.shares.clone())?)
    }
}

/// Large enough that a piece's overhead vanishes, small enough that pieces in flight do not count in memory.
const PIECE_BYTES: usize = 1 << 20;
