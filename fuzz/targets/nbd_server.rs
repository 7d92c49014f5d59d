//! What an NBD client says to the server.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmblk::export::nbd::fuzzing::server(data));
