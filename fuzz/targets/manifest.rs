//! The text of a manifest.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conn_mgr::fuzzing::manifest(data));
