//! What the front, rank 0 and the other ranks might hear: any bytes are a message or an error, and never a panic.

use shoal_engine::{
    step::Step,
    wire::{Command, Notice},
};

/// Feeds `data` to everything that decodes messages of the engine, and says whether it is one.
///
/// # Panics
/// When a message that was read is not read the same after it is written again.
pub(crate) fn run(data: &[u8]) -> bool {
    let mut bytes = Vec::new();
    let command = Command::decode(data);
    if let Ok(command) = &command {
        command.encode(&mut bytes);
        assert_same(command, Command::decode(&bytes[LENGTH_BYTES..]));
    }
    bytes.clear();
    let notice = Notice::decode(data);
    if let Ok(notice) = &notice {
        notice.encode(&mut bytes);
        assert_same(notice, Notice::decode(&bytes[LENGTH_BYTES..]));
    }
    let step = Step::decode(data);
    if let Ok(step) = &step {
        step.encode(&mut bytes);
        assert_same(step, Step::decode(&bytes));
    }
    command.is_ok() || notice.is_ok() || step.is_ok()
}

/// Compares as text, because a number in a message may be NaN.
fn assert_same<T: std::fmt::Debug, E: std::fmt::Debug>(sent: &T, read: Result<T, E>) {
    let read = read.expect("what was written can be read");
    assert_eq!(format!("{sent:?}"), format!("{read:?}"));
}

/// A frame begins with its length, which its reader has taken off.
const LENGTH_BYTES: usize = 4;
