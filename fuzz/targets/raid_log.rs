//! The head of a record in the log of an array's member.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mmblk::backend::raid::log::record::fuzz(bytes));
