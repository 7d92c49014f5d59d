//! What comes from outside on platform `xen`: packets, nodes, directory pages.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fido_core::fuzzing::xen(data));
