//! What a TAP device may give.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::tap::fuzzing::input(data));
