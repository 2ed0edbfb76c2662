//! `out[t, r] = Σ x[t, c] × w[r, c]`, for several matrices with the same `x`.
//!
//! The definition is in `f32`, on dequantised weights; [`crate::Isa::Scalar`] computes just that. The other
//! instruction sets round the activations of a quantised product to 8 bits ([`Activations`]) and
//! multiply in integers. With `s` the scale of a block of 32 activations, that moves an output by at most
//! `Σ over blocks of s/2 × Σ |w|`, where `s = max |x| / 127`. Where there are tiles, larger batches round both sides to
//! bfloat16 instead ([`tiled`]), which moves an output by at most `Σ |w x| / 128`, and a little more where it sums in `f32`;
//! those of `f16` and `bf16` weights, too. Products of `f32` weights are never rounded.

mod activations;
mod float;
mod panel;
mod tiled;

use std::ops::Range;
use std::sync::Mutex;

use crate::arch::tiles::{STEP_COLS, TileUnit};
use crate::arch::{Operation, Simd, TiledOperation, Token};
use crate::formats::{Format, Layout, PANEL_ROWS, with_format};
use crate::pool::{Pool, SharedSlice, lock};
use crate::{Dtype, Matrix, machine};

use activations::Activations;
use float::{Bf16, F16};
use tiled::{Floats, Panels, Weights};

/// Weights a task should read at least, to outweigh the handing out of tasks.
const TASK_BYTES: usize = 32 << 10;

/// Rows of two panels.
const PAIR_ROWS: usize = 2 * PANEL_ROWS;

/// Scratch memory, kept between calls.
pub(crate) struct Scratch {
    activations: Activations,
    rounded: tiled::Activations,
    /// Whether few tokens read two panels at once and always ask for what comes ([`panel`]): so on Intel.
    in_pairs: bool,
    /// For each thread of the pool.
    threads: Vec<Mutex<ThreadScratch>>,
}

#[derive(Default)]
struct ThreadScratch {
    /// A row in floats.
    row: Vec<f32>,
    tiled: tiled::Scratch,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            activations: Activations::default(),
            rounded: tiled::Activations::default(),
            in_pairs: machine::is_intel(),
            threads: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }
}

/// Computes all products; shapes were checked by the caller.
pub(crate) fn linear_many<const N: usize>(
    pool: &Pool,
    isa: Token,
    scratch: &mut Scratch,
    x: &[f32],
    products: [(&Matrix, &mut [f32]); N],
) {
    let Some(cols) = products.first().map(|(matrix, _)| matrix.cols()) else {
        return;
    };
    let tokens = x.len() / cols;
    if tokens == 0 {
        return;
    }
    let products = products.map(|(matrix, out)| {
        let arithmetic = Arithmetic::of(matrix, isa, tokens);
        Product::new(matrix, out, pool.threads(), arithmetic)
    });
    multiply(pool, isa, scratch, x, tokens, &products);
}

/// How a product is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    /// In `f32`, of weights as they are.
    Floats,
    /// In integers, of activations rounded to 8 bits.
    Integers,
    /// In tiles, of weights and activations rounded to bfloat16.
    Tiles,
}

impl Arithmetic {
    fn of(matrix: &Matrix, isa: Token, tokens: usize) -> Self {
        let layout = matrix.layout();
        // Whoever keeps 32 bits wants them. Rows of floats need not be whole steps.
        let fits_tiles = isa.has_tiles()
            && layout != Layout::Gguf(Dtype::F32)
            && matrix.cols().is_multiple_of(STEP_COLS);
        if fits_tiles && tokens >= tiled::TOKENS_MIN {
            Self::Tiles
        } else if layout.is_quantized() && !matches!(isa, Token::Scalar(_)) {
            Self::Integers
        } else {
            Self::Floats
        }
    }
}

/// Not generic, so that the kernels are compiled in this crate and nowhere else.
fn multiply(
    pool: &Pool,
    isa: Token,
    scratch: &mut Scratch,
    x: &[f32],
    tokens: usize,
    products: &[Product<'_>],
) {
    let cols = x.len() / tokens;
    let any = |arithmetic| {
        products
            .iter()
            .any(|product| product.arithmetic == arithmetic)
    };
    if any(Arithmetic::Tiles) {
        scratch.rounded.round(pool, isa, x, cols);
    }
    if any(Arithmetic::Integers) {
        scratch.activations.quantize(pool, isa, x, cols);
    }
    let Scratch {
        activations,
        rounded,
        in_pairs,
        threads,
    } = &*scratch;
    let tasks = products.iter().map(Product::tasks).sum();
    pool.run(tasks, |thread, mut task| {
        let mut candidates = products.iter();
        let product = loop {
            let product = candidates
                .next()
                .expect("tasks are the sum of the products' tasks");
            if task < product.tasks() {
                break product;
            }
            task -= product.tasks();
        };
        let scratch = &mut lock(&threads[thread]);
        let (rows, out) = product.task(task, tokens);
        let (matrix, layout) = (rows.matrix, rows.matrix.layout());
        // Chosen here rather than within, so that each format is a function of its own to the compiler.
        macro_rules! multiply_tiles {
            ($weights:expr) => {{
                let (weights, scratch) = ($weights, &mut scratch.tiled);
                isa.run_tiled(MultiplyTiles {
                    weights,
                    activations: rounded,
                    out,
                    scratch,
                })
            }};
        }
        match product.arithmetic {
            Arithmetic::Floats => {
                let row = &mut scratch.row;
                isa.run(MultiplyFloats { x, rows, out, row });
            }
            Arithmetic::Integers => with_format!(
                layout,
                format => {
                    isa.run(MultiplyPanels { format, activations, in_pairs: *in_pairs, rows, out });
                },
                _ => unreachable!("float weights are not multiplied in integers"),
            ),
            Arithmetic::Tiles => with_format!(
                layout,
                format => multiply_tiles!(Panels { format, matrix }),
                dtype => match dtype {
                    Dtype::F16 => multiply_tiles!(Floats::<F16>::new(matrix)),
                    Dtype::Bf16 => multiply_tiles!(Floats::<Bf16>::new(matrix)),
                    _ => unreachable!("no other floats go through tiles"),
                },
            ),
        }
    });
}

/// Rows of a matrix.
pub(crate) struct Rows<'a> {
    matrix: &'a Matrix,
    range: Range<usize>,
}

/// The columns of an output, `tokens × rows`, that belong to one task.
pub(crate) struct Columns<'a> {
    out: &'a SharedSlice<'a, f32>,
    rows: usize,
    tokens: usize,
    range: Range<usize>,
}

impl Columns<'_> {
    /// Sets the outputs of `token` from row `first` on.
    #[inline(always)]
    fn write(&self, token: usize, first: usize, values: &[f32]) {
        assert!(self.range.start <= first && first + values.len() <= self.range.end);
        let start = token * self.rows + first;
        // SAFETY: `Product` gives each task rows of its own, `values` lies within them as just
        // asserted, and the part is not kept.
        unsafe { self.out.slice(start..start + values.len()) }.copy_from_slice(values);
    }
}

/// One product, cut into tasks of `task_rows` rows.
struct Product<'a> {
    matrix: &'a Matrix,
    out: SharedSlice<'a, f32>,
    arithmetic: Arithmetic,
    task_rows: usize,
}

impl<'a> Product<'a> {
    /// Cuts it for so many threads.
    fn new(matrix: &'a Matrix, out: &'a mut [f32], threads: usize, arithmetic: Arithmetic) -> Self {
        let rows = matrix.rows();
        let row_bytes = (matrix.bytes_len() / rows.max(1)).max(1);
        // Several tasks a thread, so that one that is held up can leave some to the others.
        let fair = rows.div_ceil(4 * threads);
        // Rows of a group share what they read of the activations. Two panels fill the tiles.
        let group = if arithmetic == Arithmetic::Tiles {
            tiled::GROUP_ROWS.min(rows / (2 * threads)) / PAIR_ROWS * PAIR_ROWS
        } else {
            0
        };
        let task_rows = if threads == 1 {
            rows
        } else {
            fair.max(group).max(TASK_BYTES / row_bytes)
        };
        Self {
            matrix,
            out: SharedSlice::new(out),
            arithmetic,
            task_rows: task_rows.max(1).next_multiple_of(PAIR_ROWS),
        }
    }

    fn tasks(&self) -> usize {
        self.matrix.rows().div_ceil(self.task_rows)
    }

    fn task(&self, i: usize, tokens: usize) -> (Rows<'_>, Columns<'_>) {
        let range = i * self.task_rows..self.matrix.rows().min((i + 1) * self.task_rows);
        let columns = Columns {
            out: &self.out,
            rows: self.matrix.rows(),
            tokens,
            range: range.clone(),
        };
        let matrix = self.matrix;
        (Rows { matrix, range }, columns)
    }
}

struct MultiplyFloats<'a> {
    x: &'a [f32],
    rows: Rows<'a>,
    out: Columns<'a>,
    row: &'a mut Vec<f32>,
}

impl Operation for MultiplyFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        float::multiply(s, &self.rows, self.x, self.row, &self.out);
    }
}

/// The same in integers.
struct MultiplyPanels<'a, F> {
    format: F,
    activations: &'a Activations,
    in_pairs: bool,
    rows: Rows<'a>,
    out: Columns<'a>,
}

impl<F: Format> Operation for MultiplyPanels<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A constant, which spares the compiler every integer kernel of the scalar instruction set.
        if !S::INTEGERS {
            unreachable!("the scalar instruction set multiplies floats");
        }
        let Self {
            format, rows, out, ..
        } = self;
        panel::multiply(s, format, &rows, self.activations, self.in_pairs, &out);
    }
}

/// The same in bfloat16, with tiles.
struct MultiplyTiles<'a, W> {
    weights: W,
    activations: &'a tiled::Activations,
    out: Columns<'a>,
    scratch: &'a mut tiled::Scratch,
}

impl<W: Weights> TiledOperation for MultiplyTiles<'_, W> {
    #[inline(always)]
    fn run<S: Simd, U: TileUnit>(self, s: S, unit: U) {
        if !S::INTEGERS {
            unreachable!("tiles come with wider vectors");
        }
        let (weights, activations) = (self.weights, self.activations);
        tiled::multiply(s, unit, weights, activations, self.scratch, &self.out);
    }
}

#[cfg(test)]
mod tests;
