/// How the two halves of a rotated pair are laid out in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryLayout {
    /// Pairs `(2i, 2i + 1)`: the order of GGUF's llama family.
    Interleaved,
    /// Pairs `(i, i + n/2)`, with `n` rotated dimensions: NeoX.
    Halves,
}

/// Rotary position embedding ([RoFormer](https://arxiv.org/abs/2104.09864)) of one model.
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
    amplitude: f32,
    layout: RotaryLayout,
}

impl Rotary {
    /// Describes a rotation: pair `i` at position `p` turns by `p × inverse_frequencies[i]` radians
    /// and is scaled by `amplitude` (1 unless the context is stretched). Dimensions of a head
    /// beyond twice the number of frequencies stay as they are.
    pub fn new(inverse_frequencies: Vec<f32>, amplitude: f32, layout: RotaryLayout) -> Self {
        Self {
            inverse_frequencies,
            amplitude,
            layout,
        }
    }

    /// Rotates all heads of one token, `heads × head_dim`, in place.
    pub(crate) fn rotate(&self, x: &mut [f32], head_dim: usize, position: u32) {
        let pairs = self.inverse_frequencies.len();
        for (i, &frequency) in self.inverse_frequencies.iter().enumerate() {
            // f64 keeps the angle exact to a small fraction of a turn at any position.
            let (sin, cos) = (f64::from(position) * f64::from(frequency)).sin_cos();
            let (sin, cos) = (sin as f32 * self.amplitude, cos as f32 * self.amplitude);
            let (first, second) = match self.layout {
                RotaryLayout::Interleaved => (2 * i, 2 * i + 1),
                RotaryLayout::Halves => (i, i + pairs),
            };
            for head in x.chunks_exact_mut(head_dim) {
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos - b * sin;
                head[second] = a * sin + b * cos;
            }
        }
    }

    pub(crate) fn rotated_dims(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_position_and_the_rest_stays() {
        let quarter = std::f32::consts::FRAC_PI_2;
        let check = |layout, expected: [f32; 5]| {
            let mut x = [1.0, 2.0, 3.0, 4.0, 5.0];
            Rotary::new(vec![quarter, 0.0], 2.0, layout).rotate(&mut x, 5, 1);
            for (got, want) in x.iter().zip(expected) {
                assert!((got - want).abs() < 1e-5, "{layout:?}: {x:?}");
            }
        };
        check(RotaryLayout::Interleaved, [-4.0, 2.0, 6.0, 8.0, 5.0]);
        check(RotaryLayout::Halves, [-6.0, 4.0, 2.0, 8.0, 5.0]);
    }
}
