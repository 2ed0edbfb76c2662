use super::Case;
use std::fmt;

/// What the machine can do, as far as it was measured: the fastest of all samples, because whatever else runs only ever
/// slows one down. Kernels are held against it by their medians.
#[derive(Debug, PartialEq)]
pub(crate) struct Roofline {
    pub(crate) read_bytes_per_second: Option<f64>,
    /// 8-bit integer operations a second.
    dot_rate: Option<f64>,
    /// `f32` operations a second.
    multiply_add_rate: Option<f64>,
}

/// Whether a case measures the machine, not a kernel.
pub(super) fn is_part(case: &Case) -> bool {
    case.group() == "roofline"
}

/// Formats whose products are in floats.
const FLOATS: [&str; 3] = ["linear/F32", "linear/F16", "linear/BF16"];

impl Roofline {
    pub(crate) fn of(cases: &[Case]) -> Self {
        let fastest = |name: &str, count: fn(&Case) -> Option<u64>| {
            let prefix = format!("roofline/{name}");
            let named = cases.iter().filter(|case| case.id.starts_with(&prefix));
            let rates = named.filter_map(|case| Some(count(case)? as f64 / case.fastest_seconds));
            rates.max_by(f64::total_cmp)
        };
        Self {
            read_bytes_per_second: fastest("read", |case| case.bytes),
            dot_rate: fastest("dot", |case| case.operations),
            multiply_add_rate: fastest("multiply-add", |case| case.operations),
        }
    }

    /// How much of the memory bandwidth a kernel reaches.
    pub(super) fn of_read(&self, kernel: &Case) -> Option<f64> {
        Some(kernel.bytes_rate()? / self.read_bytes_per_second?)
    }

    /// How much of the arithmetic it reaches, of the kind it computes with.
    pub(super) fn of_peak(&self, kernel: &Case) -> Option<f64> {
        let in_integers = kernel.group() == "linear" && !FLOATS.contains(&kernel.kernel());
        let peak = if in_integers {
            self.dot_rate
        } else {
            self.multiply_add_rate
        };
        Some(kernel.operations_rate()? / peak?)
    }
}

impl fmt::Display for Roofline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giga = |rate: Option<f64>| {
            rate.map_or_else(
                || "not measured".to_owned(),
                |rate| format!("{:.1}", rate / 1e9),
            )
        };
        write!(
            f,
            "memory read {} GB/s, 8-bit products {} Gop/s, float multiply-adds {} Gop/s",
            giga(self.read_bytes_per_second),
            giga(self.dot_rate),
            giga(self.multiply_add_rate),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(id: &str, bytes: Option<u64>, operations: Option<u64>) -> Case {
        Case {
            id: id.to_owned(),
            seconds: 0.5,
            fastest_seconds: 0.25,
            bytes,
            operations,
        }
    }

    #[test]
    fn the_faster_way_to_read_is_the_bound() {
        let cases = [
            case("roofline/read", Some(10), None),
            case("roofline/read with prefetches", Some(12), None),
            case("linear/Q4_0/batch 1", Some(1000), Some(1000)),
        ];
        let roofline = Roofline::of(&cases);
        assert_eq!(roofline.read_bytes_per_second, Some(48.0));
        assert_eq!(roofline.of_peak(&cases[2]), None);
    }

    #[test]
    fn floats_are_held_against_float_arithmetic() {
        let cases = [
            case("roofline/dot", None, Some(400)),
            case("roofline/multiply-add", None, Some(100)),
        ];
        let roofline = Roofline::of(&cases);
        let part = |id| roofline.of_peak(&case(id, None, Some(50))).unwrap();
        assert_eq!(part("linear/Q4_0/batch 1"), 0.0625);
        assert_eq!(part("linear/F16/batch 1"), 0.25);
        assert_eq!(part("attention/decode/at 128"), 0.25);
    }
}
