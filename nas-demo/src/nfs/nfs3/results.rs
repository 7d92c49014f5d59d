//! Writing the results of NFSv3 calls.
//!
//! Results are written with the codec of `nfs3_types`, except where data follows that stays where it is (READ).

use fido_core::payload::Payload;
use nfs3_types::nfs3::{
    ACCESS3resok, COMMIT3resok, CREATE3resok, FSF3_CANSETTIME, FSF3_HOMOGENEOUS, FSF3_LINK, FSF3_SYMLINK, FSINFO3resok,
    FSSTAT3resok, GETATTR3resok, LINK3resok, LOOKUP3resok, NFS_PROGRAM, Nfs3Option, PATHCONF3resok, READLINK3resok,
    REMOVE3resok, RENAME3resok, SETATTR3resok, WRITE3resok, nfs_fh3, nfspath3, nfsstat3, nfstime3, stable_how,
    writeverf3,
};
use nfs3_types::xdr_codec::{self, Opaque, Pack};

use super::listing::{Listing, MAX_LISTING_BYTES, post_handle};
use super::{Shape, absent_attributes, attr};
use crate::nfs::handle;
use crate::volume::ops::{
    Attr, Ino, MAX_FILE_BYTES, MAX_IO_BYTES, MAX_LINKS, MAX_NAME_BYTES, Space, Stability, VolumeError, VolumeReply,
};

/// The block that reads and writes are best multiples of.
const IO_MULTIPLE_BYTES: u32 = 4096;
const PROPERTIES: u32 = FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME;

/// Why results that say "OK" cannot be written; a status is written instead.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The call fails after all.
    #[error("{0}")]
    Status(nfsstat3),
    /// The volume answered something else than it was asked.
    #[error("the volume's answer does not fit the operation")]
    Mismatch,
    /// The codec failed.
    #[error(transparent)]
    Codec(#[from] xdr_codec::Error),
}

impl From<nfsstat3> for ResultsError {
    fn from(status: nfsstat3) -> Self {
        Self::Status(status)
    }
}

/// What results need to know of the volume.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Names the volume.
    pub fsid: u64,
    /// The volume's write verifier: for writes that of when it was asked, for commits that of when it answered.
    pub verifier: [u8; 8],
}

/// Writes the results of a call that failed, with no attributes.
pub fn write_failure(procedure: NFS_PROGRAM, status: nfsstat3, out: &mut Vec<u8>) {
    out.extend((status as u32).to_be_bytes());
    out.resize(out.len() + 4 * absent_attributes(procedure), 0);
}

/// Writes the results of a call that the volume has answered. Returns the data that follows what is written (READ).
pub fn write(
    procedure: NFS_PROGRAM,
    shape: Shape,
    answer: Result<VolumeReply, VolumeError>,
    context: Context,
    out: &mut Vec<u8>,
) -> Payload {
    let start = out.len();
    let status = match answer {
        Err(error) => attr::status(error),
        Ok(reply) => {
            out.extend((nfsstat3::NFS3_OK as u32).to_be_bytes());
            match (Writer { context, out }.success(shape, reply)) {
                Ok(data) => return data,
                Err(ResultsError::Status(status)) => status,
                Err(error) => {
                    tracing::error!(%procedure, %error, "no results");
                    nfsstat3::NFS3ERR_SERVERFAULT
                }
            }
        }
    };
    out.truncate(start);
    write_failure(procedure, status, out);
    Payload::new()
}

struct Writer<'a> {
    context: Context,
    out: &'a mut Vec<u8>,
}

type Written = Result<(), ResultsError>;

impl Writer<'_> {
    fn put(&mut self, value: &impl Pack) -> Written {
        value.pack(self.out)?;
        Ok(())
    }

    fn success(mut self, shape: Shape, reply: VolumeReply) -> Result<Payload, ResultsError> {
        let fsid = self.context.fsid;
        match (shape, reply) {
            (Shape::Read { count }, VolumeReply::Data { data, eof, attr }) => {
                return self.data(count, data, eof, &attr);
            }
            (Shape::GetAttr, VolumeReply::Attr(attr)) => {
                self.put(&GETATTR3resok { obj_attributes: attr::fattr(fsid, &attr) })
            }
            (Shape::SetAttr, VolumeReply::Changed(change)) => {
                self.put(&SETATTR3resok { obj_wcc: attr::wcc(fsid, &change) })
            }
            (Shape::Lookup, VolumeReply::Found { attr, dir }) => self.lookup(&attr, &dir),
            (Shape::Access { caller, wanted }, VolumeReply::Attr(attr)) => {
                let access = attr::access(&attr, &caller, wanted);
                self.put(&ACCESS3resok { obj_attributes: attr::post_op(fsid, &attr), access })
            }
            (Shape::ReadLink, VolumeReply::Target { target, attr }) => {
                let data = nfspath3::from(&target[..]);
                self.put(&READLINK3resok { symlink_attributes: attr::post_op(fsid, &attr), data })
            }
            (Shape::Write, VolumeReply::Written { count, stability, change }) => self.put(&WRITE3resok {
                file_wcc: attr::wcc(fsid, &change),
                count,
                committed: committed(stability),
                verf: writeverf3(self.context.verifier),
            }),
            (Shape::Create, VolumeReply::Created { attr, dir }) => self.put(&CREATE3resok {
                obj: post_handle(fsid, &attr),
                obj_attributes: attr::post_op(fsid, &attr),
                dir_wcc: attr::wcc(fsid, &dir),
            }),
            (Shape::Remove, VolumeReply::Removed { dir }) => self.put(&REMOVE3resok { dir_wcc: attr::wcc(fsid, &dir) }),
            (Shape::Rename, VolumeReply::Renamed { from_dir, to_dir }) => {
                self.put(&RENAME3resok { fromdir_wcc: attr::wcc(fsid, &from_dir), todir_wcc: attr::wcc(fsid, &to_dir) })
            }
            (Shape::Link, VolumeReply::Linked { attr, dir }) => self
                .put(&LINK3resok { file_attributes: attr::post_op(fsid, &attr), linkdir_wcc: attr::wcc(fsid, &dir) }),
            (Shape::ReadDir { count }, VolumeReply::Entries { entries, eof, dir }) => {
                Listing { entries: &entries, eof, dir: &dir }.write(fsid, count, self.out)
            }
            (Shape::ReadDirPlus { dircount, maxcount }, VolumeReply::Entries { entries, eof, dir }) => {
                Listing { entries: &entries, eof, dir: &dir }.write_plus(fsid, dircount, maxcount, self.out)
            }
            (Shape::FsStat(ino), VolumeReply::Space { space, root }) => self.space(ino, &space, &root),
            (Shape::FsInfo, VolumeReply::Attr(attr)) => self.limits(&attr),
            (Shape::PathConf, VolumeReply::Attr(attr)) => self.path_limits(&attr),
            (Shape::Commit, VolumeReply::Committed(change)) => {
                self.put(&COMMIT3resok { file_wcc: attr::wcc(fsid, &change), verf: writeverf3(self.context.verifier) })
            }
            _ => Err(ResultsError::Mismatch),
        }?;
        Ok(Payload::new())
    }

    /// READ: all up to the length of the data, which then follows by address.
    fn data(mut self, count: u32, mut data: Payload, eof: bool, attr: &Attr) -> Result<Payload, ResultsError> {
        let eof = eof && data.len() <= u64::from(count);
        let data = data.split_to(u64::from(count));
        let len = data.len() as u32;
        self.put(&attr::post_op(self.context.fsid, attr))?;
        self.put(&len)?;
        self.put(&eof)?;
        self.put(&len)?;
        Ok(data)
    }

    fn lookup(mut self, attr: &Attr, dir: &Attr) -> Written {
        let fsid = self.context.fsid;
        self.put(&LOOKUP3resok {
            object: nfs_fh3 { data: Opaque::owned(handle::encode(fsid, attr.ino).to_vec()) },
            obj_attributes: attr::post_op(fsid, attr),
            dir_attributes: attr::post_op(fsid, dir),
        })
    }

    /// FSSTAT. The volume told the root's attributes; those of another inode are not known.
    fn space(mut self, ino: Ino, space: &Space, root: &Attr) -> Written {
        let known = ino == root.ino;
        self.put(&FSSTAT3resok {
            obj_attributes: if known { attr::post_op(self.context.fsid, root) } else { Nfs3Option::None },
            tbytes: space.total_bytes,
            fbytes: space.free_bytes,
            abytes: space.free_bytes,
            tfiles: space.total_inodes,
            ffiles: space.free_inodes,
            afiles: space.free_inodes,
            invarsec: 0,
        })
    }

    /// FSINFO.
    fn limits(mut self, attr: &Attr) -> Written {
        self.put(&FSINFO3resok {
            obj_attributes: attr::post_op(self.context.fsid, attr),
            rtmax: MAX_IO_BYTES,
            rtpref: MAX_IO_BYTES,
            rtmult: IO_MULTIPLE_BYTES,
            wtmax: MAX_IO_BYTES,
            wtpref: MAX_IO_BYTES,
            wtmult: IO_MULTIPLE_BYTES,
            dtpref: MAX_LISTING_BYTES,
            maxfilesize: MAX_FILE_BYTES,
            time_delta: nfstime3 { seconds: 0, nseconds: 1 },
            properties: PROPERTIES,
        })
    }

    /// PATHCONF.
    fn path_limits(mut self, attr: &Attr) -> Written {
        self.put(&PATHCONF3resok {
            obj_attributes: attr::post_op(self.context.fsid, attr),
            linkmax: MAX_LINKS,
            name_max: MAX_NAME_BYTES as u32,
            no_trunc: true,
            chown_restricted: true,
            case_insensitive: false,
            case_preserving: true,
        })
    }
}

fn committed(stability: Stability) -> stable_how {
    match stability {
        Stability::Unstable => stable_how::UNSTABLE,
        Stability::DataSync => stable_how::DATA_SYNC,
        Stability::FileSync => stable_how::FILE_SYNC,
    }
}
