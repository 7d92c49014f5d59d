//! ONC RPC over TCP, the client's side: blocking, with several calls in flight if the caller wants.
//!
//! Own, because the workloads must time single calls and must not be slowed by an asynchronous runtime; the encoding
//! is `nfs3_types`'.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nfs3_types::nfs3::nfsstat3;
use nfs3_types::rpc::{
    RPC_VERSION_2, accept_stat_data, auth_unix, call_body, fragment_header, msg_body, opaque_auth, reply_body, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack};

/// The largest reply that is taken.
const MAX_REPLY_BYTES: usize = 4 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed; it is of no further use.
    #[error("connection to the NFS server: {0}")]
    Io(#[from] io::Error),
    /// The server's reply makes no sense, or it does not accept the call.
    #[error("RPC: {0}")]
    Rpc(String),
    /// The server says that the operation failed.
    #[error("{operation}: {status:?}")]
    Nfs {
        /// What was asked.
        operation: &'static str,
        /// The server's answer.
        status: nfsstat3,
    },
}

/// A connection to an RPC server.
#[derive(Debug)]
pub struct RpcClient {
    stream: TcpStream,
    xid: u32,
    head: Vec<u8>,
    reply: Vec<u8>,
}

impl RpcClient {
    /// Connects. Every later send and receive fails after `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, ClientError> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, xid: first_xid(), head: Vec::new(), reply: Vec::new() })
    }

    /// Sends a call: its arguments, then `data` as an XDR opaque if there is some. Returns its transaction id.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn begin(
        &mut self,
        (program, version): (u32, u32),
        procedure: u32,
        args: &impl Pack,
        data: Option<&[u8]>,
    ) -> Result<u32, ClientError> {
        self.xid = self.xid.wrapping_add(1);
        let credential =
            auth_unix { stamp: 0, machinename: Opaque::borrowed(b"fido"), uid: 0, gid: 0, gids: Vec::new() };
        let call = call_body {
            rpcvers: RPC_VERSION_2,
            prog: program,
            vers: version,
            proc: procedure,
            cred: opaque_auth::auth_unix(&credential),
            verf: opaque_auth::default(),
        };
        let xid = self.xid;
        self.head.clear();
        self.head.extend([0; 4]);
        let message = rpc_msg { xid, body: msg_body::CALL(call) };
        message.pack(&mut self.head).and_then(|_| args.pack(&mut self.head)).map_err(codec)?;
        let data = data.inspect(|data| {
            self.head.extend((data.len() as u32).to_be_bytes());
        });
        let data = data.unwrap_or_default();
        let padding = [0; 3];
        let padding = &padding[..data.len().next_multiple_of(4) - data.len()];
        let length = self.head.len() - 4 + data.len() + padding.len();
        self.head[..4].copy_from_slice(&fragment_header::new(length as u32, true).into_xdr_buf());
        let mut slices = [IoSlice::new(&self.head), IoSlice::new(data), IoSlice::new(padding)];
        write_all(&mut self.stream, &mut slices)?;
        Ok(xid)
    }

    /// Waits for the next reply, of whichever call. Returns its transaction id and the results.
    ///
    /// # Errors
    /// [`ClientError`]: the connection, or the server does not accept the call.
    pub fn next_reply(&mut self) -> Result<(u32, &[u8]), ClientError> {
        self.reply.clear();
        loop {
            let mut mark = [0; 4];
            self.stream.read_exact(&mut mark)?;
            let mark = fragment_header::from(mark);
            let (start, more) = (self.reply.len(), mark.fragment_length() as usize);
            if start + more > MAX_REPLY_BYTES {
                return Err(ClientError::Rpc(format!("a reply of more than {MAX_REPLY_BYTES} bytes")));
            }
            self.reply.resize(start + more, 0);
            self.stream.read_exact(&mut self.reply[start..])?;
            if mark.eof() {
                break;
            }
        }
        let mut rest = self.reply.as_slice();
        let message = rpc_msg::unpack(&mut rest).map_err(codec)?.0;
        match message.body {
            msg_body::REPLY(reply_body::MSG_ACCEPTED(reply)) => match reply.reply_data {
                accept_stat_data::SUCCESS => Ok((message.xid, rest)),
                other => Err(ClientError::Rpc(format!("the server does not accept the call: {other:?}"))),
            },
            msg_body::REPLY(reply_body::MSG_DENIED(why)) => Err(ClientError::Rpc(format!("denied: {why:?}"))),
            msg_body::CALL(_) => Err(ClientError::Rpc("the server sent a call".into())),
        }
    }

    /// One call at a time: sends it, waits for its reply and decodes the results.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call<R: Unpack>(
        &mut self,
        program: (u32, u32),
        procedure: u32,
        args: &impl Pack,
        data: Option<&[u8]>,
    ) -> Result<R, ClientError> {
        let xid = self.begin(program, procedure, args, data)?;
        let (answered, mut results) = self.next_reply()?;
        if answered != xid {
            return Err(ClientError::Rpc(format!("a reply to call {answered}, but {xid} was asked")));
        }
        Ok(R::unpack(&mut results).map_err(codec)?.0)
    }
}

/// Where a connection's transaction ids begin: at random, because a server takes the same id from the same host for a
/// retransmission.
fn first_xid() -> u32 {
    // Every `RandomState` has keys of its own.
    BuildHasher::build_hasher(&RandomState::new()).finish() as u32
}

pub(super) fn codec(error: nfs3_types::xdr_codec::Error) -> ClientError {
    ClientError::Rpc(format!("XDR: {error}"))
}

fn write_all(stream: &mut TcpStream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match stream.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
