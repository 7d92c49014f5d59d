//! Frames whose flow is looked for, and whose checksums are marked and verified.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mmnet::frame::flow::fuzz(data);
    mmnet::phy::sums::fuzz(data);
});
