//! Frames whose flow is looked for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::frame::flow::fuzz(data));
