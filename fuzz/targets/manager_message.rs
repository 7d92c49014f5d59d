//! A message on the manager's socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::manager_message(data));
