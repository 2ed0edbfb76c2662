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
        let mut turns = [(0.0, 0.0); PAIRS_AT_ONCE];
        for (block, frequencies) in self.inverse_frequencies.chunks(PAIRS_AT_ONCE).enumerate() {
            let from = block * PAIRS_AT_ONCE;
            for (turn, &frequency) in turns.iter_mut().zip(frequencies) {
                // f64 keeps the angle exact to a small fraction of a turn at any position.
                let (sin, cos) = (f64::from(position) * f64::from(frequency)).sin_cos();
                *turn = (sin as f32 * self.amplitude, cos as f32 * self.amplitude);
            }
            let turns = &turns[..frequencies.len()];
            for head in x.chunks_exact_mut(head_dim) {
                match self.layout {
                    RotaryLayout::Interleaved => {
                        let pairs = head[2 * from..].as_chunks_mut().0;
                        for ([a, b], turn) in pairs.iter_mut().zip(turns) {
                            (*a, *b) = turned(*a, *b, *turn);
                        }
                    }
                    RotaryLayout::Halves => {
                        let (first, second) = head[from..].split_at_mut(pairs);
                        for ((a, b), turn) in first.iter_mut().zip(second).zip(turns) {
                            (*a, *b) = turned(*a, *b, *turn);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn rotated_dims(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }
}

#[inline(always)]
fn turned(a: f32, b: f32, (sin, cos): (f32, f32)) -> (f32, f32) {
    (a * cos - b * sin, a * sin + b * cos)
}

/// Turns that are kept while all heads are rotated.
const PAIRS_AT_ONCE: usize = 64;

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

    #[test]
    fn wide_heads_turn_every_pair_by_its_own_frequency() {
        let pairs = PAIRS_AT_ONCE + 6;
        let frequencies: Vec<f32> = (1..=pairs).map(|i| (i as f32).recip()).collect();
        for layout in [RotaryLayout::Interleaved, RotaryLayout::Halves] {
            let head_dim = 2 * pairs + 1;
            let x: Vec<f32> = (0..2 * head_dim).map(|i| i as f32).collect();
            let mut turned = x.clone();
            Rotary::new(frequencies.clone(), 1.0, layout).rotate(&mut turned, head_dim, 3);
            for (head, turned) in x.chunks(head_dim).zip(turned.chunks(head_dim)) {
                assert_eq!(head[2 * pairs], turned[2 * pairs]);
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (first, second) = match layout {
                        RotaryLayout::Interleaved => (2 * i, 2 * i + 1),
                        RotaryLayout::Halves => (i, i + pairs),
                    };
                    let (sin, cos) = (3.0 * f64::from(*frequency)).sin_cos();
                    let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                    for (got, want) in [(first, a * cos - b * sin), (second, a * sin + b * cos)] {
                        let error = (f64::from(turned[got]) - want).abs();
                        assert!(error < 1e-4, "{layout:?}, pair {i}: off by {error}");
                    }
                }
            }
        }
    }
}
