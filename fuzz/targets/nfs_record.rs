//! One RPC record from an NFS client.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nas_demo::nfs::fuzzing::fuzz_rpc(data));
