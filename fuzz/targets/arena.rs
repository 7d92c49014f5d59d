//! The head of a peer's arena: header, counters, directory, heritage.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::arena(data));
