//! The forward pass written out plainly in `f64`, one token at a time, with nothing split, cached in pages or shared with
//! the code under test but the reading of single weights.

use shoal_kernels::Matrix;
use shoal_model::gguf::Gguf;
use shoal_testkit::{TinyConfig, TinyScaling};

/// Returns the logits after the last token.
pub(crate) fn logits(config: &TinyConfig, file: &Gguf, tokens: &[u32]) -> Vec<f32> {
    let weight = |name: &str| Weight::read(file, name);
    let (head_dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let embedding = weight("token_embd");
    let mut keys = vec![Vec::new(); config.layers];
    let mut values = vec![Vec::new(); config.layers];
    let mut x = Vec::new();
    for (position, &token) in tokens.iter().enumerate() {
        x = embedding.rows[token as usize].clone();
        for layer in 0..config.layers {
            let weight = |name: &str| weight(&format!("blk.{layer}.{name}"));
            let h = norm(&x, &weight("attn_norm"));
            let mut q = weight("attn_q").times(&h);
            let mut k = weight("attn_k").times(&h);
            q.chunks_exact_mut(head_dim)
                .for_each(|head| rotate(config, head, position));
            k.chunks_exact_mut(head_dim)
                .for_each(|head| rotate(config, head, position));
            keys[layer].push(k);
            values[layer].push(weight("attn_v").times(&h));

            let mut attended = vec![0.0; q.len()];
            for head in 0..config.heads {
                let own = head * head_dim..(head + 1) * head_dim;
                let kv = head / group * head_dim..(head / group + 1) * head_dim;
                let scores = keys[layer].iter().map(|k: &Vec<f64>| {
                    let products = q[own.clone()]
                        .iter()
                        .zip(&k[kv.clone()])
                        .map(|(q, k)| q * k);
                    (products.sum::<f64>() / (head_dim as f64).sqrt()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let sum: f64 = scores.iter().sum();
                for (score, v) in scores.iter().zip(&values[layer]) {
                    for (out, v) in attended[own.clone()].iter_mut().zip(&v[kv.clone()]) {
                        *out += score / sum * v;
                    }
                }
            }
            add(&mut x, &weight("attn_output").times(&attended));

            let h = norm(&x, &weight("ffn_norm"));
            let gate = weight("ffn_gate").times(&h);
            let up = weight("ffn_up").times(&h);
            let gated: Vec<f64> = gate
                .iter()
                .zip(&up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            add(&mut x, &weight("ffn_down").times(&gated));
        }
    }
    let head = if config.tied {
        embedding
    } else {
        weight("output")
    };
    let logits = head.times(&norm(&x, &weight("output_norm")));
    logits.into_iter().map(|logit| logit as f32).collect()
}

struct Weight {
    rows: Vec<Vec<f64>>,
}

impl Weight {
    fn read(file: &Gguf, name: &str) -> Self {
        let tensor = file
            .tensor(&format!("{name}.weight"))
            .expect("a weight of the model");
        let (rows, cols) = (tensor.rows, tensor.cols);
        let matrix =
            Matrix::new(tensor.dtype, rows, cols, file.data(tensor).to_vec()).expect("a matrix");
        let row = |row| {
            let mut values = vec![0.0; cols];
            matrix.dequantize_row(row, &mut values);
            values.into_iter().map(f64::from).collect()
        };
        Self {
            rows: (0..rows).map(row).collect(),
        }
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        let product = |row: &Vec<f64>| row.iter().zip(x).map(|(w, x)| w * x).sum();
        self.rows.iter().map(product).collect()
    }
}

fn norm(x: &[f64], weight: &Weight) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + 1e-5).sqrt();
    x.iter()
        .zip(&weight.rows[0])
        .map(|(x, w)| x * scale * w)
        .collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Turns neighbouring pairs; YaRN as in the paper's appendix, with its usual parameters.
fn rotate(config: &TinyConfig, head: &mut [f64], position: usize) {
    let dims = head.len() as f64;
    let base = f64::from(config.rope_base);
    for (pair, values) in head.chunks_exact_mut(2).enumerate() {
        let mut frequency = base.powf(-2.0 * pair as f64 / dims);
        let mut amplitude = 1.0;
        match &config.rope_scaling {
            TinyScaling::None => {}
            TinyScaling::Linear { factor } => frequency /= f64::from(*factor),
            TinyScaling::Factors(factors) => frequency /= f64::from(factors[pair]),
            TinyScaling::Yarn {
                factor,
                original_context,
            } => {
                let factor = f64::from(*factor);
                let turns = f64::from(*original_context) / std::f64::consts::TAU;
                let pair_with =
                    |rotations: f64| dims * (turns / rotations).ln() / (2.0 * base.ln());
                let low = pair_with(32.0).floor().max(0.0);
                let high = pair_with(1.0).ceil().min(dims - 1.0);
                let interpolated = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency *= 1.0 - interpolated + interpolated / factor;
                amplitude = 0.1 * factor.ln() + 1.0;
            }
        }
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (a, b) = (values[0], values[1]);
        values[0] = (a * cos - b * sin) * amplitude;
        values[1] = (a * sin + b * cos) * amplitude;
    }
}
