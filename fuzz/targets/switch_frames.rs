//! What a station may send through a switch: headers, tags and marks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::switch::fuzzing::frames(data));
