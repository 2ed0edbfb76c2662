#![no_main]

#[path = "../cases/fabric_frame.rs"]
mod case;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    case::run(data);
});
