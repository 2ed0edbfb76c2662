//! A language model over several ranks: what it is, how it is divided, and the step that computes it.
//!
//! - [`gguf`] reads model files and believes nothing in them.
//! - [`ModelSpec`] is a model as data. Families ([`ModelSpec::from_gguf`]) make it; one interpreter, [`Model::forward`],
//!   runs it.
//! - [`SplitPlan`] says which part of every weight each rank holds, for any [`Shares`].
//! - [`Model`] is one rank's part: [`Model::load_root`] on rank 0 streams every other rank its slices,
//!   [`Model::load_member`] receives them.
//!
//! The arithmetic is `shoal-kernels`', the exchange between ranks `shoal-fabric`'s. Tokens come in and logits go out;
//! what they mean, and which sequences make a batch, is decided by others.
#![forbid(unsafe_code)]

mod error;
mod families;
pub mod gguf;
mod load;
mod model;
mod shown;
mod spec;
mod split;
mod step;

pub use error::ModelError;
pub use load::LoadConfig;
pub use model::Model;
pub use spec::{Axis, BlockSpec, ModelSpec, RotarySpec, Split, WeightSpec};
pub use split::{Shares, Slice, SplitPlan};
pub use step::{Logits, Span};
