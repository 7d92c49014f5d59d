//! What a front end of vhost-user says.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmblk::export::vhost_user::fuzzing::messages(data));
