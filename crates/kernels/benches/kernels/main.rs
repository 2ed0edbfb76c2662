//! Kernel benchmarks, and the roofline of the machine they run on. `cargo xtask bench` runs them and sets one beside the
//! other; on its own this prints criterion's report.
//!
//! Every case states the bytes it must move and the operations it must do (a multiplication and an addition count two),
//! so that its time can be read as a part of what the machine could do. Weights and caches are larger than the
//! processor's last cache, as they are for a model between two uses of one layer.

// Vector instructions of the roofline; every block says why it is sound.
#![allow(unsafe_code)]
#![allow(clippy::print_stdout)]

mod attention;
mod linear;
mod machine;
mod rms_norm;
mod roofline;

use std::time::Duration;

use criterion::Criterion;
use machine::Machine;

fn main() {
    let machine = Machine::from_environment();
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    roofline::bench(&mut criterion, &machine);
    linear::bench(&mut criterion, &machine);
    attention::bench(&mut criterion, &machine);
    rms_norm::bench(&mut criterion, &machine);
    criterion.final_summary();
}

/// The fewest criterion takes; a case is long enough that more would not steady it.
const SAMPLES: usize = 10;
