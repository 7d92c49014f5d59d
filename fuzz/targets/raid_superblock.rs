//! What a member of an array says about itself.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mmblk::backend::raid::superblock::fuzz(bytes));
