//! Prints the instruction sets that kernels can use on this processor, one a line, slowest first.
//!
//! `cargo run -p shoal-kernels --example isas`

#![allow(clippy::print_stdout)]

use shoal_kernels::Isa;

fn main() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        println!("{isa}");
    }
}
