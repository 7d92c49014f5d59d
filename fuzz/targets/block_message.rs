//! A message between a block device's front end and its back end.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: [u8; 18]| mmblk::link::codec::fuzz(bytes));
