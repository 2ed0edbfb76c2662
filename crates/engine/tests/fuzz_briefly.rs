//! The fuzz target `engine_wire` as an ordinary test.

#[path = "../../../fuzz/cases/engine_wire.rs"]
mod case;
#[path = "../../../fuzz/damage.rs"]
mod damage;

use shoal_engine::{
    client::{Request, Sampling},
    step::Step,
    wire::{Command, Greeting, Notice, Patience, Phase, VERSION},
};
use shoal_model::Span;
use std::time::Duration;

#[test]
fn damaged_messages_are_read_or_refused() {
    for valid in commands().into_iter().chain(notices()).chain(steps()) {
        damage::feed(&valid, 50_000, case::run);
    }
}

fn commands() -> Vec<Vec<u8>> {
    let request = Request {
        prompt: vec![1, 2, 3],
        sampling: Sampling::greedy(),
        max_tokens: 8,
        stop_tokens: vec![2],
    };
    let commands = [
        Command::Hello { version: VERSION },
        Command::Submit { id: 7, request },
        Command::Cancel { id: 7 },
    ];
    commands
        .iter()
        .map(|it| frame(|out| it.encode(out)))
        .collect()
}

fn notices() -> Vec<Vec<u8>> {
    let greeting = Greeting {
        fabric: Some(([127, 0, 0, 1], 4000).into()),
        world: 2,
        model_name: "tiny".to_owned(),
        phase: Phase::Loading {
            done_bytes: 1,
            total_bytes: 2,
        },
        patience: Patience {
            forming: Duration::from_secs(60),
            serving: Duration::from_secs(20),
        },
    };
    let notices = [
        Notice::Hello(greeting),
        Notice::Started { id: 7 },
        Notice::Alive,
    ];
    notices
        .iter()
        .map(|it| frame(|out| it.encode(out)))
        .collect()
}

fn steps() -> Vec<Vec<u8>> {
    let span = Span {
        tokens: vec![5, 6],
        start: 0,
        pages: vec![0],
        wants_logits: true,
    };
    let mut bytes = Vec::new();
    Step::Run(vec![span]).encode(&mut bytes);
    vec![bytes]
}

/// Returns the payload of one frame.
fn frame(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes.split_off(4)
}
