//! What an NBD server answers to the client.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmblk::backend::nbd::fuzzing::replies(data));
