//! From the file on rank 0 to slices in every rank's memory.
//!
//! Rank 0 goes through the weights in the spec's order, a few rows at a time. Of these it sends every other rank what
//! belongs to that rank's slice, keeps its own, and gives the mapped pages back, so that no process ever holds much more
//! than its slice. Members know the order and the sizes from the spec, so the stream carries nothing but bytes.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use shoal_fabric::{Exchange, Group, Rank};
use shoal_kernels::{Cpu, KvFormat, Matrix};

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::spec::{BlockSpec, ModelSpec, WeightSpec};
use crate::split::{Slice, SplitPlan};

/// What a rank sets aside besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadConfig {
    /// Longest sequence.
    pub context: u32,
    /// Pages of the KV cache, shared by all sequences.
    pub kv_pages: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// What the KV cache keeps its numbers as.
    pub kv_format: KvFormat,
    /// What partial sums travel as between the ranks.
    pub exchange: Exchange,
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
    cpu: &Cpu,
    group: &mut Group,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights, ModelError> {
    let bytes = |weight: &WeightSpec| weight.rows as u64 * row_bytes(weight, weight.cols) as u64;
    let total_bytes = spec.weights().map(bytes).sum();
    let mut done_bytes = 0;
    let mut piece = Vec::new();
    Weights::assemble(spec, &mut |weight| {
        let tensor = file
            .tensor(&weight.name)
            .expect("the spec lists what the file holds");
        let stride = row_bytes(weight, weight.cols);
        let slices: Vec<Slice> = (0..plan.world())
            .map(|rank| plan.slice(weight, rank))
            .collect();
        let mut own = slices[0].buffer(weight)?;
        let rows_max = (PIECE_BYTES / stride).max(1);
        for first in (0..weight.rows).step_by(rows_max) {
            let rows = first..weight.rows.min(first + rows_max);
            let data = &file.data(tensor)[rows.start * stride..rows.end * stride];
            for (rank, slice) in slices.iter().enumerate() {
                if rank == 0 {
                    slice.cut(weight, rows.clone(), data, &mut own);
                    continue;
                }
                piece.clear();
                slice.cut(weight, rows.clone(), data, &mut piece);
                if !piece.is_empty() {
                    group.send(Rank(rank as u16), &piece)?;
                }
            }
            let start = tensor.range.start + rows.start * stride;
            file.release(start..start + data.len());
            done_bytes += data.len() as u64;
            progress(done_bytes, total_bytes);
        }
        slab(cpu, weight, &slices[0], own)
    })
}

/// Any other rank: receives its slices.
pub(crate) fn receive(
    spec: &ModelSpec,
    plan: &SplitPlan,
    cpu: &Cpu,
    group: &mut Group,
) -> Result<Weights, ModelError> {
    let rank = usize::from(group.rank().0);
    let mut piece = Vec::new();
    Weights::assemble(spec, &mut |weight| {
        let slice = plan.slice(weight, rank);
        let len = slice.bytes(weight);
        let mut bytes = slice.buffer(weight)?;
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
        slab(cpu, weight, &slice, bytes)
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

    fn buffer(&self, weight: &WeightSpec) -> Result<Vec<u8>, ModelError> {
        Matrix::buffer(weight.dtype, self.rows.len(), self.cols.len()).map_err(|error| {
            ModelError::Weights {
                name: weight.name.clone(),
                reason: error.to_string(),
            }
        })
    }

    /// Appends to `out` what belongs to the slice of `data`, which holds the given rows of the weight.
    fn cut(&self, weight: &WeightSpec, rows: Range<usize>, data: &[u8], out: &mut Vec<u8>) {
        let stride = row_bytes(weight, weight.cols);
        let own =
            self.rows.start.clamp(rows.start, rows.end)..self.rows.end.clamp(rows.start, rows.end);
        let data = &data[(own.start - rows.start) * stride..(own.end - rows.start) * stride];
        let columns = row_bytes(weight, self.cols.start)..row_bytes(weight, self.cols.end);
        if columns.len() == stride {
            out.extend_from_slice(data);
        } else {
            data.chunks_exact(stride)
                .for_each(|row| out.extend_from_slice(&row[columns.clone()]));
        }
    }
}

fn slab(cpu: &Cpu, weight: &WeightSpec, slice: &Slice, bytes: Vec<u8>) -> Result<Slab, ModelError> {
    let matrix = cpu
        .matrix(weight.dtype, slice.rows.len(), slice.cols.len(), bytes)
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

/// Large enough that a piece's overhead vanishes, small enough that what is in flight does not count in memory.
const PIECE_BYTES: usize = 1 << 20;
