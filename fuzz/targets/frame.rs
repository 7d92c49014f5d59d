//! The words of a ring slot and the entries of a list of segments.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::frame(data));
