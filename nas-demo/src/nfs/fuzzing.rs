//! Bodies of the fuzz targets over what a client sends. Property tests run them too, where there is no fuzzer.

use fido_core::addr::{GlobalAddr, Segment};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::private_memory;
use nfs3_types::mount::MOUNT_PROGRAM;
use nfs3_types::nfs3::NFS_PROGRAM;
use std::net::Ipv4Addr;

use super::mount::Mounts;
use super::nfs3::args::{self, Args};
use super::record::{Next, Records};
use super::rpc::{self, Program};

/// A record with arbitrary bytes: whatever it says is decoded or refused.
pub fn fuzz_rpc(bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut record = Payload::new();
    record.push(Segment::new(GlobalAddr::from_bits(1 << 40), len), None);
    let call = match rpc::decode(bytes) {
        Ok(call) => call,
        Err(refusal) => {
            refusal.reply();
            return;
        }
    };
    match call.program {
        Program::Nfs => {
            if let Ok(procedure) = NFS_PROGRAM::try_from(call.procedure) {
                let args = Args { cursor: call.args, record: &record, caller: call.caller, fsid: 1 };
                let _ = args::plan(procedure, args);
            }
        }
        Program::Mount => {
            if let Ok(procedure) = MOUNT_PROGRAM::try_from(call.procedure) {
                let _ = Mounts::new("/export").plan(procedure, call.args, Ipv4Addr::LOCALHOST.into());
            }
        }
    }
}

/// A connection with arbitrary bytes, which arrive in pieces: records are found or the connection is refused, and the
/// heads of records are copied.
pub fn fuzz_stream(bytes: &[u8]) {
    thread_local! {
        static MEMORY: Memory = private_memory(4 << 20);
    }
    MEMORY.with(|memory| {
        let (mut records, mut head) = (Records::default(), Vec::new());
        let piece = usize::from(bytes.first().copied().unwrap_or(1)) + 1;
        for chunk in bytes.chunks(piece) {
            let Ok(mut buf) = memory.alloc(chunk.len()) else { return };
            buf.as_mut_slice().copy_from_slice(chunk);
            records.push(buf.into_payload(), memory);
            loop {
                match records.next(memory) {
                    Ok(Next::Record(record)) => {
                        if rpc::copy_head(memory, &record, &mut head).is_ok() {
                            fuzz_rpc(&head);
                        }
                    }
                    Ok(Next::Partial | Next::NoBuffer) => break,
                    Err(_) => return,
                }
            }
        }
    });
}
