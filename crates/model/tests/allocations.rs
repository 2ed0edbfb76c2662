//! A step takes no memory from the allocator once its buffers have grown. Alone in its file, for the count is of the process.

mod common;

use common::{CONFIG, cpu, file, span};
use shoal_fabric::solo;
use shoal_kernels::{Dtype, Isa};
use shoal_model::{Model, Shares};
use shoal_testkit::TinyConfig;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

#[test]
fn a_step_allocates_nothing() {
    let file = file(&TinyConfig::wide(Dtype::Q4_0));
    let shares = Shares::new(vec![1]).expect("shares");
    let mut group = solo();
    let device = cpu(Isa::detect());
    let mut model = Model::load_root(&file, &shares, CONFIG, device, &mut group, &mut |_, _| {})
        .expect("a model");
    // Two sequences one token each, and as many of another as go through tiles where there are some.
    let mut step = |start: u32| {
        let spans = [
            span(&[7], start, 0),
            span(&[9], start, 8),
            span(&[5; 33], 0, 16),
        ];
        let before = dhat::HeapStats::get().total_blocks;
        model
            .forward(&spans, &mut group, &mut || {})
            .expect("a step");
        dhat::HeapStats::get().total_blocks - before
    };
    let _profiler = dhat::Profiler::builder().testing().build();
    assert_ne!(step(0), 0, "buffers grow, and are counted");
    for start in 1..60 {
        assert_eq!(step(start), 0, "at position {start}");
    }
}
