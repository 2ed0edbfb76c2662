//! Maths on buffers: the CPU device of Shoal. This crate names no model.
//!
//! [`Cpu`] owns a thread pool and an instruction set and runs the coarse steps of a transformer on
//! plain `f32` slices: [`Cpu::linear`] over a quantised [`Matrix`], [`Cpu::rms_norm`],
//! [`Cpu::rotary`], [`Cpu::attention`] over the pages of a [`KvCache`]. [`Dtype`] and
//! [`MlxFormat`] name the storage formats (GGUF's and MLX's), [`MappedFile`] reads weights without copying the file, and
//! [`machine`] answers questions about the host.
//!
//! Each kernel is written once, over the small vector traits in `arch`, and each instruction set
//! is a thin shell below it; the scalar shell is always there and is what the others are tested against.
//!
//! ```
//! use shoal_kernels::{Cpu, CpuConfig, Dtype, Isa, Matrix};
//!
//! let cpu = Cpu::new(CpuConfig { isa: Isa::detect(), threads: 1, first_core: None })?;
//! let weights: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|w| w.to_le_bytes()).collect();
//! let matrix = Matrix::new(Dtype::F32, 2, 2, weights)?;
//! let mut out = [0.0; 2];
//! cpu.linear(&[10.0, 1.0], &matrix, &mut out);
//! assert_eq!(out, [12.0, 34.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Vector loads, the hand-over of work to threads, and the file mapping need it; every block says why it is sound.
#![allow(unsafe_code)]

mod arch;
mod cpu;
mod dtype;
mod formats;
mod isa;
mod kv_cache;
/// Facts about the host: memory used by this process, cores it may use.
pub mod machine;
mod mapped_file;
mod matrix;
mod mlx;
mod ops;
mod panels;
mod pool;
mod zeroed;

pub use cpu::{Cpu, CpuConfig, CpuError};
pub use dtype::Dtype;
pub use isa::{AmxRefusal, Isa, IsaError};
pub use kv_cache::{KvCache, KvCacheError, KvFormat, KvShape};
pub use mapped_file::MappedFile;
pub use matrix::{Matrix, MatrixError};
pub use mlx::{MlxArrays, MlxFormat};
pub use ops::attention::{AttentionSpan, HeadMap};
pub use ops::rotary::{Rotary, RotaryLayout};
