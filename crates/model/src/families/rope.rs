//! Rotary frequencies and the ways in which models stretch them to longer contexts.

use std::f32::consts::TAU;

use super::Source;
use crate::error::ModelError;
use crate::shown::Shown;
use crate::spec::RotarySpec;

/// Per-frequency divisors, as the converter writes Llama 3's scaling.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Reads the base, the scaling and the factors, and works them into one list of frequencies.
pub(super) fn rotary(
    source: &Source<'_>,
    head_dim: usize,
    interleaved: bool,
) -> Result<RotarySpec, ModelError> {
    let dims = source
        .optional_count("rope.dimension_count")?
        .unwrap_or(head_dim);
    if dims == 0 || dims % 2 != 0 || dims > head_dim {
        return Err(source.bad(
            "rope.dimension_count",
            "not an even number up to the width of a head",
        ));
    }
    let base = source.optional_float("rope.freq_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(source.bad("rope.freq_base", "not above 1"));
    }
    let mut inverse_frequencies: Vec<f32> = (0..dims / 2)
        .map(|pair| base.powf(-2.0 * pair as f32 / dims as f32))
        .collect();
    if let Some(factors) = factors(source, dims / 2)? {
        for (frequency, factor) in inverse_frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }
    let mut amplitude = 1.0;
    let kind = source
        .value("rope.scaling.type")
        .and_then(|value| value.as_str())
        // Files from before the scaling had a type give a factor alone.
        .unwrap_or("linear");
    let factor = source
        .optional_float("rope.scaling.factor")?
        .or(source.optional_float("rope.scale_linear")?)
        // As llama.cpp has it: nothing was said.
        .filter(|factor| *factor != 0.0)
        .unwrap_or(1.0);
    if factor < 1.0 {
        return Err(source.bad("rope.scaling.factor", "below 1"));
    }
    match kind {
        "none" => {}
        "linear" => inverse_frequencies
            .iter_mut()
            .for_each(|frequency| *frequency /= factor),
        "yarn" => amplitude = yarn(source, &mut inverse_frequencies, factor, base, dims)?,
        other => {
            let kind = format!("rotary scaling \"{}\"", Shown(other));
            return Err(ModelError::Unsupported(kind));
        }
    }
    if !amplitude.is_finite() || !inverse_frequencies.iter().all(|it| it.is_finite()) {
        return Err(source.bad("rope.scaling", "not usable: it gives infinite frequencies"));
    }
    Ok(RotarySpec {
        inverse_frequencies,
        amplitude,
        interleaved,
    })
}

fn factors(source: &Source<'_>, pairs: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(tensor) = source.file.tensor(FACTORS) else {
        return Ok(None);
    };
    let numbers = source.file.data(tensor).as_chunks().0;
    // Counted before they are copied: a file may claim as many as it likes.
    if tensor.dtype == shoal_kernels::Dtype::F32 && numbers.len() == pairs {
        let factors = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let factors: Vec<f32> = factors.collect();
        if factors.iter().all(|factor| *factor > 0.0) {
            return Ok(Some(factors));
        }
    }
    Err(ModelError::Metadata {
        key: FACTORS.to_owned(),
        problem: "not one positive F32 factor for each rotated pair",
    })
}

/// YaRN ([Peng et al.](https://arxiv.org/abs/2309.00071)): slow frequencies are interpolated, fast ones kept, those
/// between blended; the result is scaled to keep the entropy of attention. Returns that scale.
fn yarn(
    source: &Source<'_>,
    inverse_frequencies: &mut [f32],
    factor: f32,
    base: f32,
    dims: usize,
) -> Result<f32, ModelError> {
    let trained = match source.optional_count("rope.scaling.original_context_length")? {
        Some(trained) => trained,
        None => source.count("context_length")?,
    } as f32;
    let beta_fast = source
        .optional_float("rope.scaling.yarn_beta_fast")?
        .unwrap_or(32.0);
    let beta_slow = source
        .optional_float("rope.scaling.yarn_beta_slow")?
        .unwrap_or(1.0);
    // The pair that turns `rotations` times over the trained context.
    let pair_of =
        |rotations: f32| dims as f32 * (trained / (rotations * TAU)).ln() / (2.0 * base.ln());
    let low = pair_of(beta_fast).floor().max(0.0);
    let high = pair_of(beta_slow).ceil().min(dims as f32 - 1.0);
    for (pair, frequency) in inverse_frequencies.iter_mut().enumerate() {
        let ramp = ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *frequency *= (1.0 - ramp) + ramp / factor;
    }
    for key in [
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_ext_factor",
    ] {
        // A negative one says nothing.
        let is_usual = |factor: f32| factor < 0.0 || factor == 1.0;
        if !source.optional_float(key)?.is_none_or(is_usual) {
            return Err(ModelError::Unsupported(format!("{key} other than 1")));
        }
    }
    let attention = source
        .optional_float("rope.scaling.attn_factor")?
        .unwrap_or(1.0);
    Ok(attention * (1.0 + 0.1 * factor.ln()))
}
