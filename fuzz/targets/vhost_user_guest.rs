//! A guest's ring and requests, changed while they are served.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmblk::export::vhost_user::fuzzing::guest(data));
