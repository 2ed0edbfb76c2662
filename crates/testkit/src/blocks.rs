//! Random weights in every storage format.

use half::{bf16, f16};
use shoal_kernels::Dtype;

use crate::random::Random;

/// Returns `count` random weights of about `-amplitude..amplitude` around 0, as blocks of `dtype`.
///
/// Quantised blocks are not rounded from anything: their bits are random under scales that give the wanted range.
///
/// # Panics
/// If `count` is not a whole number of blocks.
#[must_use]
pub fn random_blocks(dtype: Dtype, count: usize, amplitude: f32, random: &mut Random) -> Vec<u8> {
    assert!(count.is_multiple_of(dtype.block_len()), "whole blocks");
    let mut out = Vec::with_capacity(count / dtype.block_len() * dtype.block_bytes());
    for _ in 0..count / dtype.block_len() {
        // Blocks differ in scale, so that a block taken for another shows.
        let a = amplitude * (0.75 + 0.25 * random.signed());
        match dtype {
            Dtype::F32 => out.extend((amplitude * random.signed()).to_le_bytes()),
            Dtype::F16 => out.extend(f16::from_f32(amplitude * random.signed()).to_le_bytes()),
            Dtype::Bf16 => out.extend(bf16::from_f32(amplitude * random.signed()).to_le_bytes()),
            Dtype::Q4_0 => block(&mut out, &[a / 8.0], 16, random),
            Dtype::Q4_1 => block(&mut out, &[a / 8.0, -a], 16, random),
            Dtype::Q5_0 => block(&mut out, &[a / 16.0], 4 + 16, random),
            Dtype::Q5_1 => block(&mut out, &[a / 16.0, -a], 4 + 16, random),
            Dtype::Iq4Nl => block(&mut out, &[a / 128.0], 16, random),
            Dtype::Q8_0 => block(&mut out, &[a / 128.0], 32, random),
            // Six-bit scales and minima of up to 63; the minimum's own scale puts the middle at 0.
            Dtype::Q4K => block(
                &mut out,
                &[a / 16.0 / 64.0, a / 2.0 / 64.0],
                12 + 128,
                random,
            ),
            Dtype::Q5K => block(
                &mut out,
                &[a / 32.0 / 64.0, a / 2.0 / 64.0],
                12 + 32 + 128,
                random,
            ),
            // Low bits, high bits, signed scales of up to 127; here the common scale comes last.
            Dtype::Q6K => {
                block(&mut out, &[], 128 + 64 + 16, random);
                block(&mut out, &[a / 32.0 / 128.0], 0, random);
            }
        }
    }
    out
}

fn block(out: &mut Vec<u8>, scales: &[f32], random_bytes: usize, random: &mut Random) {
    for &scale in scales {
        out.extend(f16::from_f32(scale).to_le_bytes());
    }
    out.extend((0..random_bytes).map(|_| random.bits() as u8));
}

#[cfg(test)]
mod tests {
    use shoal_kernels::Matrix;

    use super::*;

    #[test]
    fn every_format_spreads_around_zero_within_its_range() {
        for dtype in Dtype::ALL {
            let blocks = random_blocks(dtype, 2560, 0.5, &mut Random::new(1));
            let matrix = Matrix::new(dtype, 1, 2560, blocks).expect("whole blocks");
            let mut row = vec![0.0; 2560];
            matrix.dequantize_row(0, &mut row);
            let mean = row.iter().sum::<f32>() / 2560.0;
            let largest = row.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            assert!(mean.abs() < 0.05, "{dtype}: mean {mean}");
            assert!(
                (0.3..=0.51).contains(&largest),
                "{dtype}: largest {largest}"
            );
        }
    }
}
