//! A message between the two ends of a stream lane.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmnet::stream::codec::fuzz(data));
