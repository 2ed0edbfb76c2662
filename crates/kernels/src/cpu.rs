use std::io;
use std::sync::Mutex;

use crate::arch::Token;
use crate::ops::attention::{self, Attention};
use crate::ops::elementwise::{Add, RmsNorm, SiluMul};
use crate::ops::linear;
use crate::pool::{Pool, lock};
use crate::{
    AttentionSpan, Dtype, HeadMap, Isa, KvCache, Matrix, MatrixError, MlxArrays, MlxFormat, Rotary,
    machine,
};

/// How a [`Cpu`] is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuConfig {
    /// Instruction set to use.
    pub isa: Isa,
    /// Threads to compute with, the caller's included.
    pub threads: usize,
    /// Pins thread `i` to the `first_core + i`-th of the cores this process may use, counting round;
    /// `None` leaves placing to the system, as do a quota of fewer cores, which others may have on the same ones, and a system
    /// that does not pin. Thread 0 is the one that calls [`Cpu::new`]; it stays pinned, as do threads it starts later.
    pub first_core: Option<usize>,
}

/// The CPU as a device: kernels on row-major `f32` slices, run on a pool of threads.
///
/// Activations are `tokens × width`. Results are written to slices of the caller; scratch memory is kept
/// between calls. Calls from several threads take turns. Not-a-number and infinite activations are not
/// errors: in a product they make the outputs of their own token not finite and leave other tokens alone.
/// In attention an infinite key or value, which in half precision is any above 65504, may reach the other queries that are
/// computed together with its own.
pub struct Cpu {
    isa: Isa,
    token: Token,
    pool: Pool,
    linear: Mutex<linear::Scratch>,
    attention: attention::Scratch,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// If there is no thread to start, the processor lacks the instruction set, or the system refuses a thread.
    pub fn new(config: CpuConfig) -> Result<Self, CpuError> {
        let CpuConfig {
            isa,
            threads,
            first_core,
        } = config;
        if threads == 0 {
            return Err(CpuError::NoThreads);
        }
        let token = Token::new(isa).ok_or(CpuError::Unavailable(isa))?;
        // Counted before this thread is pinned, to one of them.
        let cores = machine::available_cores();
        let pinning = first_core.and_then(|first| affinity::Pinning::new(first, cores));
        if first_core.is_some() && pinning.is_none() {
            tracing::info!(
                cores,
                "threads are not pinned: under a quota, or on a system without that, it would not help"
            );
        }
        let pin = move |thread| {
            if let Some(pinning) = pinning
                && let Err(error) = pinning.pin(thread)
            {
                tracing::warn!(thread, %error, "thread not pinned");
            }
        };
        pin(0);
        let crowded = threads > cores;
        let pool = Pool::new(threads, crowded, pin);
        Ok(Self {
            isa,
            token,
            pool: pool.map_err(CpuError::Spawn)?,
            linear: Mutex::new(linear::Scratch::new(threads)),
            attention: attention::Scratch::new(threads),
        })
    }

    /// Returns the instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Returns the number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Does what [`Matrix::new`] does, on all threads.
    ///
    /// # Errors
    /// As there.
    pub fn matrix(
        &self,
        dtype: Dtype,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
    ) -> Result<Matrix, MatrixError> {
        Matrix::pack_gguf(&self.pool, dtype, rows, cols, bytes)
    }

    /// Does what [`Matrix::from_mlx`] does, on all threads.
    ///
    /// # Errors
    /// As there.
    pub fn matrix_from_mlx(
        &self,
        format: MlxFormat,
        rows: usize,
        cols: usize,
        arrays: MlxArrays<'_>,
    ) -> Result<Matrix, MatrixError> {
        Matrix::pack_mlx(&self.pool, format, rows, cols, arrays)
    }

    /// Computes `out[t, r] = Σ x[t, c] × w[r, c]`.
    ///
    /// With [`Isa::Scalar`] or float weights this is in `f32`. Otherwise activations are rounded to 8 bits
    /// in blocks of 32, which moves an output by at most `Σ over blocks of max |x| / 254 × Σ |w|`. With [`Isa::Amx`] and 32 tokens or
    /// more, both sides are rounded to bfloat16 instead, which moves it by about `Σ |w x| / 128` at most; not those of `f32` weights,
    /// nor of floats whose number of columns is no multiple of 32.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn linear(&self, x: &[f32], w: &Matrix, out: &mut [f32]) {
        self.linear_many(x, [(w, out)]);
    }

    /// Computes [`linear`](Self::linear) of the same `x` with several matrices, preparing `x` once.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn linear_many<const N: usize>(&self, x: &[f32], products: [(&Matrix, &mut [f32]); N]) {
        for (w, out) in &products {
            assert_eq!(x.len() % w.cols(), 0, "x holds whole tokens");
            let tokens = x.len() / w.cols();
            assert_eq!(out.len(), tokens * w.rows(), "out is tokens × rows");
            assert_eq!(w.cols(), products[0].0.cols(), "matrices share x");
        }
        let scratch = &mut lock(&self.linear);
        linear::linear_many(&self.pool, self.token, scratch, x, products);
    }

    /// Computes `out = x / sqrt(mean(x²) + eps) × weight` for each row of `weight.len()` elements.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        assert_eq!(x.len(), out.len());
        assert_eq!(x.len() % width, 0, "x holds whole rows");
        let chunk = width * (CHUNK_ELEMENTS / width).max(1);
        self.pool.for_each_chunk(out, chunk, |_, i, out| {
            let x = x[i * chunk..][..out.len()].chunks_exact(width);
            for (x, out) in x.zip(out.chunks_exact_mut(width)) {
                self.token.run(RmsNorm {
                    x,
                    weight,
                    eps,
                    out,
                });
            }
        });
    }

    /// Computes `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        self.pool.for_each_chunk(x, CHUNK_ELEMENTS, |_, i, x| {
            let y = &y[i * CHUNK_ELEMENTS..][..x.len()];
            self.token.run(Add { x, y });
        });
    }

    /// Computes `gate = silu(gate) × up`, where `silu(x) = x / (1 + e^-x)`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        self.pool
            .for_each_chunk(gate, CHUNK_ELEMENTS, |_, i, gate| {
                let up = &up[i * CHUNK_ELEMENTS..][..gate.len()];
                self.token.run(SiluMul { gate, up });
            });
    }

    /// Rotates `x`, `tokens × heads × head_dim`, in place; token `t` is at `positions[t]`.
    ///
    /// # Panics
    /// If the shapes do not fit or a head is narrower than the rotation.
    pub fn rotary(&self, x: &mut [f32], heads: usize, positions: &[u32], rotary: &Rotary) {
        let rows = heads * positions.len();
        if rows == 0 {
            assert!(x.is_empty());
            return;
        }
        assert_eq!(x.len() % rows, 0, "x is tokens × heads × head_dim");
        let head_dim = x.len() / rows;
        assert!(
            rotary.rotated_dims() <= head_dim,
            "a head holds the rotation"
        );
        if head_dim == 0 {
            return;
        }
        self.pool
            .for_each_chunk(x, heads * head_dim, |_, token, x| {
                rotary.rotate(x, head_dim, positions[token]);
            });
    }

    /// Computes causal attention of `q`, `tokens × heads × head_dim` over all spans in order, into `out` of
    /// the same shape. A query at position `p` sees the cached positions `0..=p` of its span's pages, which
    /// must have been written; `scale` multiplies the scores.
    ///
    /// This is in `f32`. With [`Isa::Amx`], queries, keys, values and their weights of a span of 32 tokens or more are rounded to
    /// bfloat16, which moves a score by about `scale × Σ |q k| / 128` at most, and an output by as much of the largest value, and by what
    /// the scores have moved; what is not finite there counts as NaN.
    ///
    /// # Panics
    /// If the shapes do not fit or a position has no page.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call of the transformer's largest step"
    )]
    pub fn attention(
        &self,
        q: &[f32],
        cache: &KvCache,
        layer: usize,
        spans: &[AttentionSpan<'_>],
        heads: &HeadMap,
        scale: f32,
        out: &mut [f32],
    ) {
        let shape = cache.shape();
        let tokens: usize = spans.iter().map(|span| span.tokens).sum();
        assert_eq!(
            q.len(),
            tokens * heads.heads * shape.head_dim,
            "q is tokens × heads × head_dim"
        );
        assert_eq!(q.len(), out.len());
        assert!(heads.phase < heads.group && heads.kv_heads() <= shape.kv_heads);
        for span in spans {
            let end = span.start as usize + span.tokens;
            assert!(
                end <= span.pages.len() * shape.page_tokens,
                "every position has a page"
            );
        }
        let attention = Attention {
            q,
            cache,
            layer,
            spans,
            heads,
            scale,
            in_pairs: machine::is_intel(),
        };
        attention.run(&self.pool, self.token, &self.attention, out);
    }
}

/// Why a device could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The configuration asks for no threads.
    #[error("0 threads asked for; give at least 1")]
    NoThreads,
    /// The processor lacks the instruction set.
    #[error("this processor cannot run {0}; {best} is the best it has", best = Isa::detect())]
    Unavailable(Isa),
    /// The system refused a thread.
    #[error("cannot start a thread ({0}); ask for fewer")]
    Spawn(#[source] io::Error),
}

/// Elements below which handing work to another thread takes longer than doing it.
const CHUNK_ELEMENTS: usize = 16 << 10;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod affinity {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The cores this process may use, from the first to be used on.
    #[derive(Clone, Copy)]
    pub(super) struct Pinning {
        allowed: CpuSet,
        first: usize,
    }

    impl Pinning {
        /// Nothing where the system does not tell, or grants but `cores` of them.
        pub(super) fn new(first: usize, cores: usize) -> Option<Self> {
            let allowed = sched_getaffinity(None).ok()?;
            (allowed.count() as usize == cores).then_some(Self { allowed, first })
        }

        /// Pins the calling thread.
        pub(super) fn pin(&self, thread: usize) -> io::Result<()> {
            let allowed = (0..CpuSet::MAX_CPU).filter(|&core| self.allowed.is_set(core));
            let count = (self.allowed.count() as usize).max(1);
            let nth = (self.first % count + thread) % count;
            let mut set = CpuSet::new();
            set.set(allowed.into_iter().nth(nth).unwrap_or(0));
            Ok(sched_setaffinity(None, &set)?)
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod affinity {
    use std::io;

    /// Threads cannot be pinned on this system; asking for it changes nothing.
    #[derive(Clone, Copy)]
    pub(super) struct Pinning;

    impl Pinning {
        pub(super) fn new(_first: usize, _cores: usize) -> Option<Self> {
            None
        }

        pub(super) fn pin(&self, _thread: usize) -> io::Result<()> {
            Ok(())
        }
    }
}
