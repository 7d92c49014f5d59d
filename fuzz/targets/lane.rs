//! A lane whose peer writes what it likes into its own arena.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::lane(data));
