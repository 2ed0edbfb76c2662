//! A warmed-up reduction takes no memory from the allocator. Alone in its file, for the count is of the process.

mod common;

use std::thread;

use common::{Links, PATIENT, groups};
use shoal_fabric::{Exchange, Group, Reduce, Topology};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Each of the algorithms has its turn.
const LENS: [usize; 3] = [16, 1 << 10, 1 << 20];

#[test]
fn reductions_allocate_nothing_once_buffers_have_grown() {
    let _profiler = dhat::Profiler::builder().testing().build();
    for links in [
        Links::InProcess,
        Links::Tcp,
        Links::Striped,
        Links::SharedMemory,
    ] {
        check(links, 2, Topology::Mesh);
        check(links, 4, Topology::Mesh);
        check(links, 4, Topology::Ring);
    }
}

fn check(links: Links, world: usize, topology: Topology) {
    let meeting = std::sync::Barrier::new(world);
    let groups = groups(links, world, PATIENT);
    let grown: Vec<u64> = thread::scope(|scope| {
        let work = |mut group: Group| {
            group.set_topology(topology);
            group.set_exchange(Exchange::Q8);
            let mut data = vec![0.0_f32; LENS[2]];
            let mut round = || {
                meeting.wait();
                let before = dhat::HeapStats::get().total_blocks;
                for len in LENS {
                    group
                        .all_reduce(Reduce::Sum, &mut data[..len])
                        .and_then(|()| group.all_reduce_sum(&mut data[..len]))
                        .expect("all ranks take part");
                }
                meeting.wait();
                dhat::HeapStats::get().total_blocks - before
            };
            let first = round();
            assert_ne!(first, 0, "buffers grow, and are counted");
            round();
            round()
        };
        let running: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || work(group)))
            .collect();
        let done = running
            .into_iter()
            .map(|handle| handle.join().expect("no rank panics"));
        done.collect()
    });
    assert_eq!(
        grown,
        vec![0; world],
        "{links:?}, {world} ranks, {topology:?}"
    );
}
