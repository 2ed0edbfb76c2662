use crate::arch::{Operation, Simd};

/// `out = x / sqrt(mean(x²) + eps) × weight` for one row.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Operation for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sum = s.splat(0.0);
        let xs = self.x.chunks_exact(S::LANES);
        let mut tail = 0.0;
        for &x in xs.remainder() {
            tail += x * x;
        }
        for x in xs {
            let x = s.load(x);
            sum = s.mul_add(x, x, sum);
        }
        let mean = (s.sum(sum) + tail) / self.x.len() as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * factor * weight;
        }
    }
}

/// `x += y`.
pub(crate) struct Add<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) y: &'a [f32],
}

impl Operation for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, &y) in self.x.iter_mut().zip(self.y) {
            *x += y;
        }
    }
}

/// `gate = gate / (1 + e^-gate) × up`.
pub(crate) struct SiluMul<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl Operation for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut gates = self.gate.chunks_exact_mut(S::LANES);
        let mut ups = self.up.chunks_exact(S::LANES);
        for (gate, up) in gates.by_ref().zip(ups.by_ref()) {
            let x = s.load(gate);
            s.store(silu_mul(s, x, s.load(up)), gate);
        }
        let (gate, up) = (gates.into_remainder(), ups.remainder());
        let (mut x, mut y) = ([0.0; crate::kv_cache::ALIGN], [0.0; crate::kv_cache::ALIGN]);
        x[..gate.len()].copy_from_slice(gate);
        y[..up.len()].copy_from_slice(up);
        s.store(silu_mul(s, s.load(&x), s.load(&y)), &mut x);
        gate.copy_from_slice(&x[..gate.len()]);
    }
}

#[inline(always)]
fn silu_mul<S: Simd>(s: S, x: S::F32, up: S::F32) -> S::F32 {
    let exp = s.exp(s.sub(s.splat(0.0), x));
    s.mul(s.div(x, s.add(s.splat(1.0), exp)), up)
}
