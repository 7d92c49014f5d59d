//! The bytes of an NFS client's connection, in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nas_demo::nfs::fuzzing::fuzz_stream(data));
