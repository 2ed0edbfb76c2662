//! The device's operations against their definitions in `f64`, on every instruction set of this
//! processor, with one thread and with more threads than tasks.

use proptest::prelude::*;
use shoal_kernels::{
    AttentionSpan, Cpu, CpuConfig, Dtype, HeadMap, Isa, KvCache, KvFormat, KvShape, Matrix,
    MlxArrays, MlxFormat, Rotary, RotaryLayout,
};

fn cpu(isa: Isa, threads: usize) -> Cpu {
    let config = CpuConfig {
        isa,
        threads,
        first_core: None,
    };
    Cpu::new(config).unwrap()
}

fn cpus() -> impl Iterator<Item = Cpu> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [1, 3].map(|threads| cpu(isa, threads)))
}

fn close(got: &[f32], expected: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), expected.len());
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        prop_assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{i}: {got} for {expected}"
        );
    }
    Ok(())
}

proptest! {
    // The default heeds PROPTEST_CASES, which asks for fewer where the processor is emulated.
    #![proptest_config(ProptestConfig::with_cases(64.min(ProptestConfig::default().cases)))]

    #[test]
    fn rms_norm_agrees(width in 1..100_usize, x in prop::collection::vec(-9.0_f32..9.0, 1..600)) {
        let width = width.min(x.len());
        let x = &x[..x.len() / width * width];
        let weight: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 * 0.01).collect();
        let mut expected = Vec::new();
        for row in x.chunks_exact(width) {
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            let factor = 1.0 / (mean + f64::from(1e-5_f32)).sqrt();
            expected.extend(row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)));
        }
        for cpu in cpus() {
            let mut out = vec![0.0; x.len()];
            cpu.rms_norm(x, &weight, 1e-5, &mut out);
            close(&out, &expected, 1e-5)?;
        }
    }

    #[test]
    fn elementwise_operations_agree(x in prop::collection::vec((-100.0_f32..100.0, -4.0_f32..4.0), 1..200)) {
        let (gate, up): (Vec<f32>, Vec<f32>) = x.iter().copied().unzip();
        let exact = |(g, u): (f32, f32)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u);
        let gated: Vec<f64> = x.iter().copied().map(exact).collect();
        let sums: Vec<f64> = x.iter().map(|&(g, u)| f64::from(g + u)).collect();
        for cpu in cpus() {
            let mut out = gate.clone();
            cpu.silu_mul(&mut out, &up);
            close(&out, &gated, 1e-6)?;
            let mut out = gate.clone();
            cpu.add(&mut out, &up);
            close(&out, &sums, 0.0)?;
        }
    }

    #[test]
    fn attention_agrees(case in attention_case()) {
        let expected = case.expected();
        for cpu in cpus() {
            close(&case.run(&cpu), &expected, 2e-5)?;
        }
    }

    /// A key off by 1/254 moves a score by that part of `Σ |q|`, and two scores can move apart by twice that.
    #[test]
    fn attention_to_integers_is_near_that_to_halves(case in attention_case()) {
        let of = |format| {
            let shape = KvShape { format, ..case.shape };
            AttentionCase { shape, ..case.clone() }.run(&cpu(Isa::detect(), 1))
        };
        let [halves, integers] = KvFormat::ALL.map(of);
        let queries = case.queries();
        let rows = queries.chunks_exact(case.shape.head_dim);
        let pairs = halves.chunks_exact(case.shape.head_dim).zip(integers.chunks_exact(case.shape.head_dim));
        for (q, (halves, integers)) in rows.zip(pairs) {
            // Keys and values are below 2.
            let of_score = 0.3 * q.iter().map(|q| q.abs()).sum::<f32>() * 2.0 / 254.0;
            let most = 2.0 * ((2.0 * of_score).exp() - 1.0) + 2.0 / 254.0 + 1e-4;
            for (half, integer) in halves.iter().zip(integers) {
                prop_assert!((half - integer).abs() <= most, "{half} and {integer}, {most} apart at most");
            }
        }
    }
}

#[derive(Debug, Clone)]
struct AttentionCase {
    shape: KvShape,
    heads: HeadMap,
    /// Pages, start and tokens of each span.
    spans: Vec<(Vec<u32>, u32, usize)>,
    seed: u32,
}

fn attention_case() -> impl Strategy<Value = AttentionCase> {
    let sizes = (1..40_usize, 1..37_usize, 1..6_usize, 1..8_usize, 0..5_usize);
    let spans = prop::collection::vec((0..50_u32, 1..12_usize), 1..4);
    let format = prop::sample::select(KvFormat::ALL.to_vec());
    (sizes, spans, format, any::<u32>()).prop_map(
        |((page_tokens, head_dim, group, heads, phase), spans, format, seed)| {
            let heads = HeadMap {
                heads,
                group,
                phase: phase % group,
            };
            let mut free = 0..;
            // Pages interleave in reverse, so that order in memory is not order of position.
            let spans: Vec<_> = spans
                .into_iter()
                .map(|(start, tokens)| {
                    let count = (start as usize + tokens).div_ceil(page_tokens);
                    let pages: Vec<u32> = free.by_ref().take(count).collect();
                    (pages.into_iter().rev().collect(), start, tokens)
                })
                .collect();
            let pages = free.next().unwrap() as usize;
            let kv_heads = (heads.phase + heads.heads).div_ceil(group);
            let shape = KvShape {
                layers: 2,
                pages,
                page_tokens,
                kv_heads,
                head_dim,
                format,
            };
            AttentionCase {
                shape,
                heads,
                spans,
                seed,
            }
        },
    )
}

impl AttentionCase {
    /// A fixed number in -2..2, exact in half precision, for each index.
    fn value(&self, kind: u32, index: usize) -> f32 {
        let mixed = (index as u32 ^ kind << 28 ^ self.seed).wrapping_mul(0x9e37_79b9);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b);
        (mixed >> 23) as f32 / 128.0 - 2.0
    }

    /// Key or value of a position of a span.
    fn cached(&self, kind: u32, span: usize, position: usize) -> Vec<f32> {
        let width = self.shape.kv_heads * self.shape.head_dim;
        (0..width)
            .map(|i| self.value(kind, (span * 1000 + position) * width + i))
            .collect()
    }

    /// What is kept of a row of a head.
    fn kept(&self, row: &[f32]) -> Vec<f32> {
        match self.shape.format {
            KvFormat::F16 => row.to_vec(),
            KvFormat::Q8 => {
                let unit = largest(row) / 127.0;
                let count = |x: &f32| if unit > 0.0 { (x / unit).round() } else { 0.0 };
                row.iter().map(|x| count(x) * unit).collect()
            }
        }
    }

    fn queries(&self) -> Vec<f32> {
        let tokens: usize = self.spans.iter().map(|span| span.2).sum();
        (0..tokens * self.heads.heads * self.shape.head_dim)
            .map(|i| self.value(3, i))
            .collect()
    }

    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let mut cache = KvCache::new(self.shape).expect("memory");
        for (i, (pages, start, tokens)) in self.spans.iter().enumerate() {
            let end = *start as usize + tokens;
            let rows = |kind| {
                (0..end)
                    .flat_map(|p| self.cached(kind, i, p))
                    .collect::<Vec<_>>()
            };
            cache.write(1, pages, 0, &rows(1), &rows(2));
        }
        let spans: Vec<_> = self
            .spans
            .iter()
            .map(|(pages, start, tokens)| AttentionSpan {
                pages,
                start: *start,
                tokens: *tokens,
            })
            .collect();
        let q = self.queries();
        let mut out = vec![f32::NAN; q.len()];
        cpu.attention(&q, &cache, 1, &spans, &self.heads, 0.3, &mut out);
        out
    }

    fn expected(&self) -> Vec<f64> {
        let (head_dim, queries) = (self.shape.head_dim, self.queries());
        let mut rows = queries.chunks_exact(head_dim);
        let mut out = Vec::new();
        for (i, (_, start, tokens)) in self.spans.iter().enumerate() {
            for token in 0..*tokens {
                for head in 0..self.heads.heads {
                    let kv = (self.heads.phase + head) / self.heads.group * head_dim;
                    let q = rows.next().unwrap();
                    let mut sums = vec![0.0; head_dim];
                    let mut total = 0.0;
                    for position in 0..=*start as usize + token {
                        let [key, value] = [1, 2].map(|kind| {
                            self.kept(&self.cached(kind, i, position)[kv..][..head_dim])
                        });
                        let score: f64 = q
                            .iter()
                            .zip(&key)
                            .map(|(&q, &k)| f64::from(q) * f64::from(k))
                            .sum();
                        let weight = (score * f64::from(0.3_f32)).exp();
                        total += weight;
                        for (sum, v) in sums.iter_mut().zip(value) {
                            *sum += weight * f64::from(v);
                        }
                    }
                    out.extend(sums.iter().map(|sum| sum / total));
                }
            }
        }
        out
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

/// A long context is computed in parts, side by side where there are more threads than tiles.
#[test]
fn long_attention_agrees_and_does_not_depend_on_the_number_of_threads() {
    for format in KvFormat::ALL {
        long_attention_agrees(format);
    }
}

fn long_attention_agrees(format: KvFormat) {
    let pages = |first: u32, count: u32| (first..first + count).rev().collect();
    let case = AttentionCase {
        shape: KvShape {
            layers: 2,
            pages: 300,
            page_tokens: 7,
            kv_heads: 1,
            head_dim: 24,
            format,
        },
        heads: HeadMap {
            heads: 3,
            group: 3,
            phase: 0,
        },
        spans: vec![(pages(0, 220), 1530, 2), (pages(220, 80), 555, 1)],
        seed: 1,
    };
    let expected = case.expected();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let alone = case.run(&cpu(isa, 1));
        close(&alone, &expected, 2e-5).expect("it agrees");
        for threads in [2, 5] {
            assert_eq!(
                case.run(&cpu(isa, threads)),
                alone,
                "{isa} on {threads} threads"
            );
        }
    }
}

#[test]
fn rotary_rotates_each_token_by_its_position() {
    let rotary = Rotary::new(vec![0.5, 0.01], 1.0, RotaryLayout::Interleaved);
    for cpu in cpus() {
        let mut x: Vec<f32> = (0..2 * 3 * 5).map(|i| i as f32).collect();
        cpu.rotary(&mut x, 3, &[0, 7], &rotary);
        assert!(
            x[..15].iter().enumerate().all(|(i, &x)| x == i as f32),
            "position 0 stays"
        );
        let (sin, cos) = 3.5_f32.sin_cos();
        assert!((x[20] - (20.0 * cos - 21.0 * sin)).abs() < 1e-4);
        assert!((x[21] - (20.0 * sin + 21.0 * cos)).abs() < 1e-4);
        assert_eq!(x[24], 24.0, "unrotated dimension");
    }
}

#[test]
fn a_token_that_is_not_finite_spoils_only_its_own_outputs() {
    for cpu in cpus() {
        for dtype in Dtype::ALL {
            let cols = 256;
            let bytes = vec![1; dtype.row_bytes(cols).unwrap() * 33];
            let matrix = Matrix::new(dtype, 33, cols, bytes).unwrap();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for tokens in [1, 2, 6, 40] {
                    let mut x = vec![1.0; tokens * cols];
                    x[cols - 1] = bad;
                    let mut out = vec![0.0; tokens * 33];
                    cpu.linear(&x, &matrix, &mut out);
                    assert!(out[..33].iter().all(|x| !x.is_finite()), "{dtype} {bad}");
                    assert!(out[33..].iter().all(|x| x.is_finite()), "{dtype} {bad}");
                }
            }
        }
        let mut gate = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
        cpu.silu_mul(&mut gate, &[1.0; 4]);
        assert!(gate[0].is_nan() && gate[3].is_finite());
    }
}

#[test]
fn products_that_share_activations_equal_single_ones_bit_for_bit() {
    for cpu in cpus() {
        for tokens in [1, 5, 40] {
            let x: Vec<f32> = (0..tokens * 256).map(|i| (i % 19) as f32 - 9.0).collect();
            let matrices =
                [(Dtype::Q4_1, 130), (Dtype::F16, 7), (Dtype::Q6K, 64)].map(|(dtype, rows)| {
                    let bytes = (0..dtype.row_bytes(256).unwrap() * rows).map(|i| (i % 60) as u8);
                    Matrix::new(dtype, rows, 256, bytes.collect()).unwrap()
                });
            let single = matrices.each_ref().map(|matrix| {
                let mut out = vec![0.0; tokens * matrix.rows()];
                cpu.linear(&x, matrix, &mut out);
                out
            });
            let mut many = matrices
                .each_ref()
                .map(|matrix| vec![0.0; tokens * matrix.rows()]);
            let mut outs = many.iter_mut();
            let products = matrices
                .each_ref()
                .map(|matrix| (matrix, outs.next().unwrap().as_mut_slice()));
            cpu.linear_many(&x, products);
            assert_eq!(many, single);
        }
    }
}

/// Also across instruction sets, which all sum in the order of the columns.
#[test]
fn integer_products_do_not_depend_on_the_batch() {
    let (rows, cols) = (37, 512);
    let bytes = |len: usize| (0..len).map(|i| (i * 7 % 61) as u8).collect::<Vec<u8>>();
    let gguf = Dtype::ALL[3..].iter().map(|&dtype| {
        let bytes = bytes(dtype.row_bytes(cols).unwrap() * rows);
        Matrix::new(dtype, rows, cols, bytes).unwrap()
    });
    let mlx = mlx_formats().map(|(format, code_bits, scale_bits)| {
        let codes = bytes(rows * cols * code_bits / 8);
        let scales = bytes(rows * cols / 32 * scale_bits / 8);
        let affine = matches!(format, MlxFormat::Affine { .. });
        let arrays = MlxArrays {
            codes: &codes,
            scales: &scales,
            biases: if affine { &scales } else { &[] },
            global_scale: None,
        };
        Matrix::from_mlx(format, rows, cols, arrays).unwrap()
    });
    let cpus: Vec<_> = Isa::ALL
        .into_iter()
        .filter(|&isa| isa != Isa::Scalar && isa.is_available())
        .map(|isa| cpu(isa, 1))
        .collect();
    let x: Vec<f32> = (0..19 * cols).map(|i| (i as f32).sin()).collect();
    for matrix in gguf.chain(mlx) {
        let product = |cpu: &Cpu, x: &[f32]| {
            let mut out = vec![0.0; x.len() / cols * rows];
            cpu.linear(x, &matrix, &mut out);
            out
        };
        let alone: Vec<f32> = cpus.first().map_or(vec![], |cpu| {
            x.chunks(cols).flat_map(|x| product(cpu, x)).collect()
        });
        assert!(alone.iter().all(|x| x.is_finite()));
        for cpu in &cpus {
            for batch in [2, 3, 4, 7, 8, 11, 19] {
                let together = x.chunks(batch * cols).flat_map(|x| product(cpu, x));
                assert_eq!(
                    together.collect::<Vec<_>>(),
                    alone,
                    "{} by {batch}",
                    cpu.isa()
                );
            }
        }
    }
}

/// The formats that are multiplied in integers, with the bits of a code and of the scales of 32 weights.
fn mlx_formats() -> impl Iterator<Item = (MlxFormat, usize, usize)> {
    let floats = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(move |bits| {
        // A group of its own for each kind of scales.
        floats
            .into_iter()
            .zip([32, 64, 128])
            .map(move |(floats, group)| {
                let format = MlxFormat::Affine {
                    bits,
                    group,
                    floats,
                };
                (format, bits, floats.block_bytes() * 8 * 32 / group)
            })
    });
    affine.chain([(MlxFormat::MxFp4, 4, 8), (MlxFormat::NvFp4, 4, 16)])
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let isa = Isa::detect();
    let x: Vec<f32> = (0..9 * 64).map(|i| (i as f32).sin()).collect();
    let bytes = (0..Dtype::Q8_0.row_bytes(64).unwrap() * 3000).map(|i| (i % 50) as u8);
    let bytes: Vec<u8> = bytes.collect();
    let format = MlxFormat::Affine {
        bits: 8,
        group: 64,
        floats: Dtype::Bf16,
    };
    let arrays = MlxArrays {
        codes: &bytes[..3000 * 64],
        scales: &bytes[..3000 * 2],
        biases: &bytes[1..][..3000 * 2],
        global_scale: None,
    };
    let products = |cpu: &Cpu, [gguf, mlx]: [Matrix; 2]| {
        [gguf, mlx].map(|matrix| {
            let mut out = vec![0.0; 9 * 3000];
            cpu.linear(&x, &matrix, &mut out);
            out
        })
    };
    let alone = [
        Matrix::new(Dtype::Q8_0, 3000, 64, bytes.clone()).unwrap(),
        Matrix::from_mlx(format, 3000, 64, arrays).unwrap(),
    ];
    let expected = products(&cpu(isa, 1), alone);
    for threads in [1, 2, 5] {
        let cpu = cpu(isa, threads);
        let matrices = [
            cpu.matrix(Dtype::Q8_0, 3000, 64, bytes.clone()).unwrap(),
            cpu.matrix_from_mlx(format, 3000, 64, arrays).unwrap(),
        ];
        assert_eq!(products(&cpu, matrices), expected, "{threads} threads");
    }
}

#[test]
fn empty_inputs_are_no_work() {
    let cpu = cpu(Isa::detect(), 2);
    let matrix = Matrix::new(Dtype::F32, 2, 4, vec![0; 32]).unwrap();
    cpu.linear(&[], &matrix, &mut []);
    cpu.linear_many(&[], []);
    cpu.add(&mut [], &[]);
    cpu.rms_norm(&[], &[1.0], 1e-5, &mut []);
    let shape = KvShape {
        layers: 1,
        pages: 1,
        page_tokens: 4,
        kv_heads: 1,
        head_dim: 4,
        format: KvFormat::F16,
    };
    let heads = HeadMap {
        heads: 1,
        group: 1,
        phase: 0,
    };
    let cache = KvCache::new(shape).expect("memory");
    cpu.attention(&[], &cache, 0, &[], &heads, 1.0, &mut []);
}

#[test]
fn threads_can_be_pinned_and_bad_configurations_say_what_to_do() {
    let config = CpuConfig {
        isa: Isa::Scalar,
        threads: 5,
        first_core: Some(1),
    };
    let pinned = std::thread::spawn(move || {
        let cpu = Cpu::new(config).unwrap();
        let mut x = vec![1.0; 200_000];
        let y = x.clone();
        cpu.add(&mut x, &y);
        x.iter().all(|&x| x == 2.0)
    });
    assert!(pinned.join().unwrap());
    let error = Cpu::new(CpuConfig {
        threads: 0,
        ..config
    })
    .err()
    .unwrap();
    assert_eq!(error.to_string(), "0 threads asked for; give at least 1");
}
