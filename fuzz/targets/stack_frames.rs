//! Frames from outside, to a TCP/IP stack.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::stack::fuzz(data));
