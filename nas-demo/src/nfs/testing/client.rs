//! A client that encodes calls with the codec crate and decodes what comes back with it.

use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use mmnet::stream::StreamId;
use nfs3_types::nfs3::{NFS_PROGRAM, nfs_fh3};
use nfs3_types::rpc::{auth_unix, call_body, msg_body, opaque_auth, rpc_msg};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack};
use nfs3_types::{mount, nfs3};

use super::{FakePort, ModelVolume};
use crate::nfs::{Limits, NfsServer, handle};
use crate::volume::ops::ROOT;

/// The root's handle.
pub fn root() -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned(handle::encode(ModelVolume::FSID, ROOT).to_vec()) }
}

/// A call as it travels, with its record mark.
pub fn call_bytes(xid: u32, program: u32, procedure: u32, args: &impl Pack) -> Vec<u8> {
    let cred = opaque_auth::auth_unix(&auth_unix { uid: 7, gid: 7, ..Default::default() });
    let body = call_body { rpcvers: 2, prog: program, vers: 3, proc: procedure, cred, verf: Default::default() };
    let mut out = vec![0; 4];
    rpc_msg { xid, body: msg_body::CALL(body) }.pack(&mut out).unwrap();
    args.pack(&mut out).unwrap();
    let mark = (out.len() as u32 - 4) | 1 << 31;
    out[..4].copy_from_slice(&mark.to_be_bytes());
    out
}

/// A reply's words without its record mark.
pub fn reply_words(bytes: &[u8]) -> Vec<u32> {
    bytes[4..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

/// A server over test doubles.
pub struct Rig {
    pub memory: Memory,
    pub server: NfsServer<FakePort, ModelVolume>,
    xid: u32,
}

impl Rig {
    /// The connection that is open from the beginning.
    pub const ID: StreamId = StreamId(1);

    pub fn new() -> Self {
        Self::with(64 << 20, Limits::default())
    }

    pub fn with(arena_bytes: u64, limits: Limits) -> Self {
        let memory = private_memory(arena_bytes);
        let (port, volume) = (FakePort::new(memory.clone()), ModelVolume::new(memory.clone()));
        let server = NfsServer::new(memory.clone(), port, volume, "/export", limits).unwrap();
        let mut rig = Self { memory, server, xid: 0 };
        rig.server.port().open(Self::ID);
        rig
    }

    /// Lets the server do all that it can.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.server.poll() {
                self.server.flush();
                return;
            }
        }
        panic!("the server never comes to rest");
    }

    /// What the server sends back to these bytes.
    pub fn exchange(&mut self, id: StreamId, bytes: &[u8]) -> Vec<u8> {
        self.server.port().receive(id, bytes);
        self.settle();
        self.server.port().take_bytes(id)
    }

    /// Makes a call and decodes the results.
    pub fn call<R: Unpack>(&mut self, program: u32, procedure: u32, args: &impl Pack) -> R {
        self.xid += 1;
        let call = call_bytes(self.xid, program, procedure, args);
        let reply = self.exchange(Self::ID, &call);
        self.decode(&reply)
    }

    /// Decodes a successful reply, all of it.
    pub fn decode<R: Unpack>(&self, reply: &[u8]) -> R {
        let words = reply_words(&reply[..28]);
        assert_eq!(words[0], self.xid);
        assert_eq!(words[1..], [1, 0, 0, 0, 0], "an accepted reply");
        let mark = u32::from_be_bytes(reply[..4].try_into().unwrap());
        assert_eq!(mark, 1 << 31 | (reply.len() as u32 - 4), "one whole fragment");
        let mut rest = &reply[28..];
        let (results, used) = R::unpack(&mut rest).unwrap();
        assert_eq!(used, reply.len() - 28, "nothing but the results");
        results
    }

    pub fn nfs<R: Unpack>(&mut self, procedure: NFS_PROGRAM, args: &impl Pack) -> R {
        self.call(nfs3::PROGRAM, procedure as u32, args)
    }

    pub fn mount<R: Unpack>(&mut self, procedure: mount::MOUNT_PROGRAM, args: &impl Pack) -> R {
        self.call(mount::PROGRAM, procedure as u32, args)
    }
}
