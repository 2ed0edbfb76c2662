//! What can go wrong with a model.

use shoal_fabric::FabricError;
use thiserror::Error;

use crate::shown::Shown;

/// A model cannot be used, or a step failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The architecture is not supported. Another model is needed.
    #[error(
        "architecture \"{}\" is not supported; supported: {supported}",
        Shown(name)
    )]
    Architecture {
        /// What the file names.
        name: String,
        /// What there is, comma-separated.
        supported: String,
    },
    /// The model uses something that is not supported. Another model is needed.
    #[error("{0} is not supported; use another model")]
    Unsupported(String),
    /// A metadata key is missing or makes no sense. Whoever made the file can fix it.
    #[error("metadata {key} is {problem}; download the model again, or convert it again")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A weight is missing.
    #[error("tensor {name} is missing; download the model again")]
    MissingTensor {
        /// The weight.
        name: String,
    },
    /// The file holds a weight that this architecture does not use, so its output would be wrong without it.
    #[error(
        "tensor {} has no meaning for architecture {architecture}; use a newer release or another model",
        Shown(name)
    )]
    UnknownTensor {
        /// The weight.
        name: String,
        /// The architecture.
        architecture: String,
    },
    /// A weight has the wrong shape.
    #[error(
        "tensor {name} is {found_rows} by {found_cols}, expected {rows} by {cols}; download the model again"
    )]
    TensorShape {
        /// The weight.
        name: String,
        /// Rows it should have.
        rows: usize,
        /// Columns it should have.
        cols: usize,
        /// Rows it has.
        found_rows: usize,
        /// Columns it has.
        found_cols: usize,
    },
    /// The model cannot be divided as asked. Fewer nodes or other shares are needed.
    #[error("{0}")]
    Split(String),
    /// A member received something that rank 0 should not have sent. Both must run the same release.
    #[error(
        "the model's description from rank 0 was not understood ({0}); run the same release of shoal on all machines"
    )]
    Handover(String),
    /// What is to be set aside makes no sense or does not fit the address space.
    #[error("{0}; choose another context or batch size")]
    Config(String),
    /// The system refuses the memory of the KV cache. Less of it, or another machine, is needed.
    #[error("the system refuses {size_mib} MiB for the KV cache; lower --ctx or --batch")]
    KvCache {
        /// What was asked for.
        size_mib: u64,
    },
    /// There is no memory for a weight. More nodes, a smaller model, or another machine, is needed.
    #[error("tensor {name} cannot be held: {reason}; use more nodes or a smaller model")]
    Weights {
        /// The weight.
        name: String,
        /// What the system refused.
        reason: String,
    },
    /// A step has more tokens than was set aside for. The engine is at fault.
    #[error("a step of {tokens} tokens exceeds the batch of {batch_tokens_max}")]
    BatchTooLarge {
        /// Tokens in the step.
        tokens: usize,
        /// What was set aside.
        batch_tokens_max: usize,
    },
    /// A span does not fit the model or what was set aside. The engine is at fault.
    #[error("a step cannot be computed: {0}")]
    Span(String),
    /// The group failed.
    #[error(transparent)]
    Fabric(#[from] FabricError),
}
