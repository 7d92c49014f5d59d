//! ONC RPC (RFC 5531): heads of calls, credentials, and heads of replies.
//!
//! Only the head of a call is copied out of the receiver's memory: [`copy_head`] takes exactly what has to be decoded
//! and leaves the data of a WRITE where it is.

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::window::AddressError;
use nfs3_types::rpc::{accept_stat, accept_stat_data, auth_stat, rejected_reply};
use nfs3_types::xdr_codec::Pack;
use nfs3_types::{mount, nfs3};

use super::xdr::{Cursor, Malformed, padded};
use crate::volume::ops::Caller;

/// The longest body of a credential or verifier, in bytes (RFC 5531, 8.2).
pub const MAX_AUTH_BYTES: usize = 400;
/// The most supplementary groups of AUTH_SYS.
pub const MAX_GROUPS: usize = 16;
/// The longest machine name of AUTH_SYS, in bytes.
pub const MAX_MACHINE_NAME_BYTES: usize = 255;
/// The longest call that carries no file data, in bytes.
pub const MAX_SMALL_CALL_BYTES: usize = 64 << 10;
/// The user and group of a caller who does not say who they are.
pub const NOBODY: u32 = 65534;

const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;
/// xid, message type, RPC version, program, version, procedure, flavour and length of the credential.
const FIXED_HEAD_BYTES: usize = 32;

/// Which program is called; both exist in version 3 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// NFS.
    Nfs,
    /// MOUNT.
    Mount,
}

/// A call whose head is sound.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Echoed in the reply.
    pub xid: u32,
    /// The program.
    pub program: Program,
    /// The procedure's number; whether there is such a one is the program's business.
    pub procedure: u32,
    /// Who calls.
    pub caller: Caller,
    /// Stands at the arguments.
    pub args: Cursor<'a>,
}

/// Why a message is not carried out.
#[derive(Debug)]
pub enum Refusal {
    /// Not a call at all: there is nobody to answer.
    NotACall,
    /// To be answered with [`Refusal::reply`].
    Accepted(u32, accept_stat_data),
    /// To be answered with [`Refusal::reply`].
    Rejected(u32, rejected_reply),
}

impl Refusal {
    /// The reply, or `None` where none makes sense.
    pub fn reply(&self) -> Option<Vec<u8>> {
        let mut out = begin_reply();
        let written = match self {
            Self::NotACall => return None,
            Self::Accepted(xid, status) => {
                put_accepted(&mut out, *xid);
                status.pack(&mut out)
            }
            Self::Rejected(xid, status) => {
                put_words(&mut out, &[*xid, REPLY, 1]);
                status.pack(&mut out)
            }
        };
        written.is_ok().then_some(out)
    }
}

/// A reply's first bytes: room for the record mark, which [`finish_reply`] fills in.
pub fn begin_reply() -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend([0; 4]);
    out
}

/// The head of a reply to a call that was carried out. The results follow.
pub fn put_success(out: &mut Vec<u8>, xid: u32) {
    put_accepted(out, xid);
    put_words(out, &[accept_stat::SUCCESS as u32]);
}

/// Fills in the record mark of a reply (one fragment), behind whose head `data_bytes` of data and padding follow.
pub fn finish_reply(head: &mut [u8], data_bytes: u64) {
    let len = head.len() as u64 - 4 + data_bytes;
    if let Some(mark) = head.first_chunk_mut() {
        *mark = (len as u32 | 1 << 31).to_be_bytes();
    }
}

fn put_accepted(out: &mut Vec<u8>, xid: u32) {
    put_words(out, &[xid, REPLY, 0, AUTH_NONE, 0]);
}

fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        out.extend(word.to_be_bytes());
    }
}

/// Decodes the head of a call.
///
/// # Errors
/// [`Refusal`] says what to answer.
pub fn decode(head: &[u8]) -> Result<Call<'_>, Refusal> {
    let mut cursor = Cursor::new(head);
    let (Ok(xid), Ok(CALL)) = (cursor.u32(), cursor.u32()) else {
        return Err(Refusal::NotACall);
    };
    let garbage = |_: Malformed| Refusal::Accepted(xid, accept_stat_data::GARBAGE_ARGS);
    if cursor.u32().map_err(garbage)? != RPC_VERSION {
        return Err(Refusal::Rejected(xid, rejected_reply::rpc_mismatch(RPC_VERSION, RPC_VERSION)));
    }
    let (program, version) = (cursor.u32().map_err(garbage)?, cursor.u32().map_err(garbage)?);
    let procedure = cursor.u32().map_err(garbage)?;
    let denied = |status| Refusal::Rejected(xid, rejected_reply::auth_error(status));
    let caller = decode_credential(&mut cursor).map_err(denied)?;
    decode_verifier(&mut cursor).map_err(denied)?;
    let (program, supported) = match program {
        nfs3::PROGRAM => (Program::Nfs, nfs3::VERSION),
        mount::PROGRAM => (Program::Mount, mount::VERSION),
        _ => return Err(Refusal::Accepted(xid, accept_stat_data::PROG_UNAVAIL)),
    };
    if version != supported {
        return Err(Refusal::Accepted(xid, accept_stat_data::PROG_MISMATCH { low: supported, high: supported }));
    }
    Ok(Call { xid, program, procedure, caller, args: cursor })
}

fn decode_credential(cursor: &mut Cursor<'_>) -> Result<Caller, auth_stat> {
    let bad = |_| auth_stat::AUTH_BADCRED;
    let flavour = cursor.u32().map_err(bad)?;
    let body = cursor.opaque(MAX_AUTH_BYTES).map_err(bad)?;
    match flavour {
        AUTH_NONE => Ok(Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() }),
        AUTH_SYS => decode_auth_sys(&mut Cursor::new(body)).map_err(bad),
        _ => Err(auth_stat::AUTH_BADCRED),
    }
}

fn decode_auth_sys(body: &mut Cursor<'_>) -> Result<Caller, Malformed> {
    body.u32()?;
    body.opaque(MAX_MACHINE_NAME_BYTES)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let at = body.position();
    let count = body.u32()? as usize;
    if count > MAX_GROUPS {
        return Err(Malformed { at });
    }
    let groups = (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?;
    Ok(Caller { uid, gid, groups })
}

fn decode_verifier(cursor: &mut Cursor<'_>) -> Result<(), auth_stat> {
    let bad = |_| auth_stat::AUTH_BADVERF;
    let flavour = cursor.u32().map_err(bad)?;
    let body = cursor.opaque(MAX_AUTH_BYTES).map_err(bad)?;
    if flavour == AUTH_NONE && body.is_empty() { Ok(()) } else { Err(auth_stat::AUTH_BADVERF) }
}

/// Copies into `head` what has to be decoded of a record: of a WRITE all before its data, else everything (at most
/// [`MAX_SMALL_CALL_BYTES`]).
///
/// # Errors
/// [`AddressError`] if the record has no memory behind it.
pub fn copy_head(memory: &Memory, record: &Payload, head: &mut Vec<u8>) -> Result<(), AddressError> {
    head.clear();
    loop {
        let have = head.len();
        let want = head_bytes(head).min(usize::try_from(record.len()).unwrap_or(usize::MAX));
        if want <= have {
            return Ok(());
        }
        head.resize(want, 0);
        let read = memory.read_header(record, have as u64, head.get_mut(have..).unwrap_or_default())?;
        head.truncate(have + read);
        if read == 0 {
            return Ok(());
        }
    }
}

/// How many bytes the head of a call has, as far as its first bytes tell. Asked again with that many, it tells more.
fn head_bytes(head: &[u8]) -> usize {
    let word = |at: usize| {
        let bytes = head.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes) as usize)
    };
    let write = [(12, nfs3::PROGRAM), (16, nfs3::VERSION), (20, nfs3::NFS_PROGRAM::NFSPROC3_WRITE as u32)];
    let Some(credential) = word(28) else {
        return FIXED_HEAD_BYTES;
    };
    if !write.iter().all(|(at, value)| word(*at) == Some(*value as usize)) {
        return MAX_SMALL_CALL_BYTES;
    }
    if credential > MAX_AUTH_BYTES {
        return FIXED_HEAD_BYTES;
    }
    let verifier_at = FIXED_HEAD_BYTES + padded(credential);
    let args_at = match word(verifier_at + 4) {
        // Most verifiers are empty, so ask for the length of the file handle behind it at once.
        None => return verifier_at + 12,
        Some(len) if len > MAX_AUTH_BYTES => return verifier_at + 8,
        Some(len) => verifier_at + 8 + padded(len),
    };
    match word(args_at) {
        None => args_at + 4,
        Some(handle) if handle > nfs3::NFS3_FHSIZE => args_at + 4,
        // Then offset, count, stability and the length of the data.
        Some(handle) => args_at + 4 + padded(handle) + 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::testing::private_memory;
    use nfs3_types::rpc::{auth_unix, call_body, msg_body, opaque_auth, rpc_msg};
    use nfs3_types::xdr_codec::{Opaque, Unpack};

    fn call(program: u32, version: u32, procedure: u32, cred: opaque_auth<'static>, args: &impl Pack) -> Vec<u8> {
        let body =
            call_body { rpcvers: 2, prog: program, vers: version, proc: procedure, cred, verf: Default::default() };
        let mut out = Vec::new();
        rpc_msg { xid: 9, body: msg_body::CALL(body) }.pack(&mut out).unwrap();
        args.pack(&mut out).unwrap();
        out
    }

    fn refused(head: &[u8]) -> Vec<u32> {
        let reply = decode(head).unwrap_err().reply().unwrap();
        reply[4..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn auth_sys_says_who_calls() {
        let auth = auth_unix { uid: 5, gid: 6, gids: (0..16).collect(), ..Default::default() };
        let head = call(nfs3::PROGRAM, 3, 0, opaque_auth::auth_unix(&auth), &7u32);
        let mut call = decode(&head).unwrap();
        assert_eq!(call.caller, Caller { uid: 5, gid: 6, groups: (0..16).collect() });
        assert_eq!((call.xid, call.program, call.args.u32()), (9, Program::Nfs, Ok(7)));
    }

    #[test]
    fn one_group_too_many_is_a_bad_credential() {
        let auth = auth_unix { gids: (0..17).collect(), ..Default::default() };
        let head = call(nfs3::PROGRAM, 3, 0, opaque_auth::auth_unix(&auth), &7u32);
        assert_eq!(refused(&head), [9, 1, 1, 1, auth_stat::AUTH_BADCRED as u32]);
    }

    #[test]
    fn refusals_are_as_the_rfc_says() {
        let none = opaque_auth::default;
        assert_eq!(refused(&call(100_000, 2, 0, none(), &0u32)), [9, 1, 0, 0, 0, accept_stat::PROG_UNAVAIL as u32]);
        let mismatch = accept_stat::PROG_MISMATCH as u32;
        assert_eq!(refused(&call(nfs3::PROGRAM, 4, 0, none(), &0u32)), [9, 1, 0, 0, 0, mismatch, 3, 3]);
        let mut old = call(nfs3::PROGRAM, 3, 0, none(), &0u32);
        old[11] = 1;
        assert_eq!(refused(&old), [9, 1, 1, 0, 2, 2]);
        assert_eq!(refused(&old[..10]), [9, 1, 0, 0, 0, accept_stat::GARBAGE_ARGS as u32]);
        let mut reply = old;
        reply[7] = 1;
        assert!(decode(&reply).unwrap_err().reply().is_none());
        assert!(decode(&reply[..7]).unwrap_err().reply().is_none());
    }

    #[test]
    fn the_head_of_a_write_ends_before_its_data() {
        let memory = private_memory(1 << 20);
        let args = |data| nfs3::WRITE3args {
            file: nfs3::nfs_fh3 { data: Opaque::owned(vec![1; 23]) },
            offset: 1,
            count: 5,
            stable: nfs3::stable_how::UNSTABLE,
            data,
        };
        let auth = auth_unix { machinename: Opaque::owned(vec![b'm'; 33]), ..Default::default() };
        for cred in [opaque_auth::default(), opaque_auth::auth_unix(&auth)] {
            let record = call(nfs3::PROGRAM, 3, 7, cred, &args(Opaque::borrowed(&[7; 3000])));
            let mut buf = memory.alloc(record.len()).unwrap();
            buf.as_mut_slice().copy_from_slice(&record);
            let mut head = Vec::new();
            copy_head(&memory, &buf.into_payload(), &mut head).unwrap();
            assert_eq!(head, record[..record.len() - 3000]);
        }
    }

    #[test]
    fn a_reply_is_what_the_codec_reads() {
        let mut reply = begin_reply();
        put_success(&mut reply, 77);
        finish_reply(&mut reply, 4);
        assert_eq!(reply[..4], (1u32 << 31 | (reply.len() as u32)).to_be_bytes());
        let (message, _) = rpc_msg::unpack(&mut &reply[4..]).unwrap();
        assert!(message.xid == 77 && matches!(message.body, msg_body::REPLY(_)));
    }
}
