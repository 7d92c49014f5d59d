//! What a peer writes of a ring: slots, stamps, credit and armed word.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::ring(data));
