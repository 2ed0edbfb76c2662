#![no_main]

#[path = "../cases/engine_wire.rs"]
mod case;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    case::run(data);
});
