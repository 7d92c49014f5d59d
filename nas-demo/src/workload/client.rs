//! A small blocking NFSv3 client: what the workloads and the end-to-end tests need.

use std::net::SocketAddr;
use std::time::Duration;

use nfs3_types::mount::{self, MOUNT_PROGRAM, dirpath, mountres3};
use nfs3_types::nfs3::{
    COMMIT3args, COMMIT3resfail, COMMIT3resok, CREATE3args, CREATE3resfail, CREATE3resok, FSSTAT3args, FSSTAT3resfail,
    FSSTAT3resok, GETATTR3args, GETATTR3resok, LOOKUP3args, LOOKUP3resfail, LOOKUP3resok, MKDIR3args, MKDIR3resfail,
    MKDIR3resok, NFS_PROGRAM, Nfs3Option, Nfs3Result, PROGRAM, READ3args, READ3resfail, READDIRPLUS3args,
    READDIRPLUS3resfail, READDIRPLUS3resok, REMOVE3args, REMOVE3resfail, REMOVE3resok, RENAME3args, RENAME3resfail,
    RENAME3resok, RMDIR3args, RMDIR3resfail, RMDIR3resok, SETATTR3args, SETATTR3resfail, SETATTR3resok, VERSION,
    WRITE3res, cookieverf3, createhow3, diropargs3, fattr3, filename3, nfs_fh3, post_op_attr, sattr3, sattrguard3,
    stable_how,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack, Void};

use super::rpc::{ClientError, RpcClient, codec};

const NFS: (u32, u32) = (PROGRAM, VERSION);

/// A mounted export.
#[derive(Debug)]
pub struct Client {
    rpc: RpcClient,
    root: nfs_fh3,
}

/// The answer to a write or a commit: how much, how durable, and the server's write verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes written; 0 for a commit.
    pub count: u32,
    /// How durable they are.
    pub committed: stable_how,
    /// Changes when unstable writes may have been lost.
    pub verifier: [u8; 8],
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The file's number.
    pub fileid: u64,
}

impl Client {
    /// Connects to the server and mounts `export`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn mount(address: SocketAddr, export: &str, timeout: Duration) -> Result<Self, ClientError> {
        let mut rpc = RpcClient::connect(address, timeout)?;
        let path = dirpath(Opaque::borrowed(export.as_bytes()));
        let program = (mount::PROGRAM, mount::VERSION);
        match rpc.call::<mountres3<'static>>(program, MOUNT_PROGRAM::MOUNTPROC3_MNT as u32, &path, None)? {
            mountres3::Ok(mounted) => {
                let root = nfs_fh3 { data: Opaque::owned(mounted.fhandle.0.into_owned()) };
                Ok(Self { rpc, root })
            }
            mountres3::Err(status) => Err(ClientError::Rpc(format!("mounting {export:?}: {status:?}"))),
        }
    }

    /// The export's root directory.
    pub fn root(&self) -> nfs_fh3 {
        self.root.clone()
    }

    /// One NFS call and its answer.
    fn call<T, E>(
        &mut self,
        operation: &'static str,
        procedure: NFS_PROGRAM,
        args: &impl Pack,
    ) -> Result<T, ClientError>
    where
        Nfs3Result<T, E>: Unpack,
    {
        answer(operation, self.rpc.call::<Nfs3Result<T, E>>(NFS, procedure as u32, args, None)?)
    }

    /// Attributes of a file.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn getattr(&mut self, file: &nfs_fh3) -> Result<fattr3, ClientError> {
        let args = GETATTR3args { object: file.clone() };
        Ok(self.call::<GETATTR3resok, Void>("getattr", NFS_PROGRAM::NFSPROC3_GETATTR, &args)?.obj_attributes)
    }

    /// Sets a file's length.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn truncate(&mut self, file: &nfs_fh3, size: u64) -> Result<(), ClientError> {
        let new_attributes = sattr3 { size: Nfs3Option::Some(size), ..sattr3::default() };
        let args = SETATTR3args { object: file.clone(), new_attributes, guard: sattrguard3::None };
        self.call::<SETATTR3resok, SETATTR3resfail>("setattr", NFS_PROGRAM::NFSPROC3_SETATTR, &args).map(drop)
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, ClientError> {
        let args = LOOKUP3args { what: place(dir, name) };
        Ok(self.call::<LOOKUP3resok, LOOKUP3resfail>("lookup", NFS_PROGRAM::NFSPROC3_LOOKUP, &args)?.object)
    }

    /// Creates a file, or finds it (unchecked).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn create(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, ClientError> {
        let attributes = sattr3 { mode: Nfs3Option::Some(0o644), ..sattr3::default() };
        let args = CREATE3args { where_: place(dir, name), how: createhow3::UNCHECKED(attributes) };
        handle(self.call::<CREATE3resok, CREATE3resfail>("create", NFS_PROGRAM::NFSPROC3_CREATE, &args)?.obj)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn mkdir(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, ClientError> {
        let attributes = sattr3 { mode: Nfs3Option::Some(0o755), ..sattr3::default() };
        let args = MKDIR3args { where_: place(dir, name), attributes };
        handle(self.call::<MKDIR3resok, MKDIR3resfail>("mkdir", NFS_PROGRAM::NFSPROC3_MKDIR, &args)?.obj)
    }

    /// Removes a file's name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn remove(&mut self, dir: &nfs_fh3, name: &str) -> Result<(), ClientError> {
        let args = REMOVE3args { object: place(dir, name) };
        self.call::<REMOVE3resok, REMOVE3resfail>("remove", NFS_PROGRAM::NFSPROC3_REMOVE, &args).map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rmdir(&mut self, dir: &nfs_fh3, name: &str) -> Result<(), ClientError> {
        let args = RMDIR3args { object: place(dir, name) };
        self.call::<RMDIR3resok, RMDIR3resfail>("rmdir", NFS_PROGRAM::NFSPROC3_RMDIR, &args).map(drop)
    }

    /// Renames.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rename(&mut self, from: (&nfs_fh3, &str), to: (&nfs_fh3, &str)) -> Result<(), ClientError> {
        let args = RENAME3args { from: place(from.0, from.1), to: place(to.0, to.1) };
        self.call::<RENAME3resok, RENAME3resfail>("rename", NFS_PROGRAM::NFSPROC3_RENAME, &args).map(drop)
    }

    /// All entries of a directory, `.` and `..` left out.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list(&mut self, dir: &nfs_fh3) -> Result<Vec<Entry>, ClientError> {
        let (mut cookie, mut cookieverf) = (0, cookieverf3::default());
        let mut all = Vec::new();
        loop {
            let args = READDIRPLUS3args { dir: dir.clone(), cookie, cookieverf, dircount: 8192, maxcount: 32_768 };
            let page = self.call::<READDIRPLUS3resok<'static>, READDIRPLUS3resfail>(
                "readdirplus",
                NFS_PROGRAM::NFSPROC3_READDIRPLUS,
                &args,
            )?;
            cookieverf = page.cookieverf;
            for entry in page.reply.entries.into_inner() {
                cookie = entry.cookie;
                let name = String::from_utf8_lossy(&entry.name.0).into_owned();
                if name != "." && name != ".." {
                    all.push(Entry { name, fileid: entry.fileid });
                }
            }
            if page.reply.eof {
                return Ok(all);
            }
        }
    }

    /// Space and inodes of the volume.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn fsstat(&mut self) -> Result<FSSTAT3resok, ClientError> {
        let args = FSSTAT3args { fsroot: self.root() };
        self.call::<FSSTAT3resok, FSSTAT3resfail>("fsstat", NFS_PROGRAM::NFSPROC3_FSSTAT, &args)
    }

    /// Reads up to `count` bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<Vec<u8>, ClientError> {
        self.begin_read(file, offset, count)?;
        let mut data = Vec::new();
        self.finish_read(&mut |_, bytes| data.extend_from_slice(bytes))?;
        Ok(data)
    }

    /// Writes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write(
        &mut self,
        file: &nfs_fh3,
        offset: u64,
        data: &[u8],
        stable: stable_how,
    ) -> Result<Written, ClientError> {
        self.begin_write(file, offset, data, stable)?;
        Ok(self.finish_write()?.1)
    }

    /// Makes unstable writes durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn commit(&mut self, file: &nfs_fh3) -> Result<Written, ClientError> {
        let args = COMMIT3args { file: file.clone(), offset: 0, count: 0 };
        let verifier = self.call::<COMMIT3resok, COMMIT3resfail>("commit", NFS_PROGRAM::NFSPROC3_COMMIT, &args)?.verf.0;
        Ok(Written { count: 0, committed: stable_how::FILE_SYNC, verifier })
    }

    /// Sends a read without waiting; [`Client::finish_read`] takes the answers. Returns the call's id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn begin_read(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<u32, ClientError> {
        let args = READ3args { file: file.clone(), offset, count };
        self.rpc.begin(NFS, NFS_PROGRAM::NFSPROC3_READ as u32, &args, None)
    }

    /// Takes the next answer to a read and shows its bytes (with the call's id) to `take`. Returns the id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_read(&mut self, take: &mut dyn FnMut(u32, &[u8])) -> Result<u32, ClientError> {
        let (xid, mut results) = self.rpc.next_reply()?;
        let result = Nfs3Result::<ReadHead, READ3resfail>::unpack(&mut results).map_err(codec)?.0;
        let length = answer("read", result)?.0;
        match results.get(..length as usize) {
            Some(bytes) => take(xid, bytes),
            None => return Err(ClientError::Rpc("a read's reply is cut short".into())),
        }
        Ok(xid)
    }

    /// Sends a write without waiting; [`Client::finish_write`] takes the answers. Returns the call's id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn begin_write(
        &mut self,
        file: &nfs_fh3,
        offset: u64,
        data: &[u8],
        stable: stable_how,
    ) -> Result<u32, ClientError> {
        let args = WriteHead { file, offset, count: data.len() as u32, stable };
        self.rpc.begin(NFS, NFS_PROGRAM::NFSPROC3_WRITE as u32, &args, Some(data))
    }

    /// Takes the next answer to a write. Returns the call's id and what was written.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_write(&mut self) -> Result<(u32, Written), ClientError> {
        let (xid, mut results) = self.rpc.next_reply()?;
        let result = WRITE3res::unpack(&mut results).map_err(codec)?.0;
        let written = answer("write", result)?;
        Ok((xid, Written { count: written.count, committed: written.committed, verifier: written.verf.0 }))
    }
}

/// A write's arguments up to the data, which follow as an opaque.
struct WriteHead<'a> {
    file: &'a nfs_fh3,
    offset: u64,
    count: u32,
    stable: stable_how,
}

impl Pack for WriteHead<'_> {
    fn packed_size(&self) -> usize {
        self.file.packed_size() + 8 + 4 + 4
    }

    fn pack(&self, out: &mut impl std::io::Write) -> nfs3_types::xdr_codec::Result<usize> {
        Ok(self.file.pack(out)? + self.offset.pack(out)? + self.count.pack(out)? + self.stable.pack(out)?)
    }
}

/// A read's results up to the data: the data's length.
struct ReadHead(u32);

impl Unpack for ReadHead {
    fn unpack(input: &mut impl std::io::Read) -> nfs3_types::xdr_codec::Result<(Self, usize)> {
        let (_attributes, a) = post_op_attr::unpack(input)?;
        let (_count, b) = u32::unpack(input)?;
        let (_eof, c) = bool::unpack(input)?;
        let (length, d) = u32::unpack(input)?;
        Ok((Self(length), a + b + c + d))
    }
}

fn answer<T, E>(operation: &'static str, result: Nfs3Result<T, E>) -> Result<T, ClientError> {
    match result {
        Nfs3Result::Ok(value) => Ok(value),
        Nfs3Result::Err((status, _)) => Err(ClientError::Nfs { operation, status }),
    }
}

fn place<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: filename3(Opaque::borrowed(name.as_bytes())) }
}

fn handle(handle: Nfs3Option<nfs_fh3>) -> Result<nfs_fh3, ClientError> {
    match handle {
        Nfs3Option::Some(handle) => Ok(handle),
        Nfs3Option::None => Err(ClientError::Rpc("the server returned no file handle".into())),
    }
}
