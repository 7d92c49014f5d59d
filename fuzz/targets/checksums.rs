//! Frames whose checksums are marked or verified.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::phy::sums::fuzz(data));
