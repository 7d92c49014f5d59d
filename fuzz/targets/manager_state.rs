//! Any order of starts, words and deaths at the manager.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conn_mgr::fuzzing::conversation(data));
