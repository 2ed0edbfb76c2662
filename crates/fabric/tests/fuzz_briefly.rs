//! The fuzz target `fabric_frame` as an ordinary test.

#[path = "../../../fuzz/cases/fabric_frame.rs"]
mod case;
#[path = "../../../fuzz/damage.rs"]
mod damage;

use shoal_fabric::{
    Rank,
    frame::{Abort, Header, Kind},
};

#[test]
fn damaged_frames_are_read_or_refused() {
    for valid in frames() {
        damage::feed(&valid, 1_000_000, case::run);
    }
}

/// Frames of several kinds, with and without payload.
fn frames() -> Vec<Vec<u8>> {
    let reason = "connection closed".to_owned();
    let abort = Abort {
        is_silence: true,
        rank: Rank(1),
        reason,
    }
    .encode();
    let frames = [
        (Kind::Reduce, vec![7; 40]),
        (Kind::Barrier, Vec::new()),
        (Kind::Abort, abort),
    ];
    let encode = |(kind, payload): (Kind, Vec<u8>)| {
        let length = payload.len() as u32;
        [
            &Header {
                kind,
                sequence: 3,
                length,
            }
            .encode()[..],
            &payload,
        ]
        .concat()
    };
    frames.into_iter().map(encode).collect()
}
