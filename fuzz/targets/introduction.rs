//! A peer that comes with any head of its arena, and the lane to it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::introduction(data));
