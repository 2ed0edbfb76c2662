//! Writes a tiny model of eight heads in a format, for programs that are not written in Rust:
//! `cargo run -p shoal-testkit --example tiny -- Q4_1 tiny.gguf`.
#![forbid(unsafe_code)]

use std::path::Path;

use shoal_kernels::Dtype;
use shoal_testkit::{TinyConfig, write_to};

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dtype, path] = args.as_slice() else {
        panic!("usage: tiny DTYPE FILE.gguf");
    };
    let dtype = Dtype::from_name(dtype).expect("a format such as Q4_1");
    write_to(&TinyConfig::wide(dtype), Path::new(path))
}
