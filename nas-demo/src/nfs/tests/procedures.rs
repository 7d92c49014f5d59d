//! Every procedure once or more, by way of encoded calls.

use nfs3_types::mount::{MOUNT_PROGRAM as M, dirpath, exports, mountlist, mountres3, mountstat3};
use nfs3_types::nfs3::*;
use nfs3_types::rpc::accept_stat;
use nfs3_types::xdr_codec::{Opaque, Void};

use NFS_PROGRAM as P;

use crate::nfs::handle;
use crate::nfs::testing::{ModelVolume, Rig, call_bytes, reply_words, root};
use crate::volume::ops::VolumeError;

fn at<'a>(dir: &nfs_fh3, name: &'a [u8]) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: filename3::from(name) }
}

fn make_file(rig: &mut Rig, name: &[u8]) -> nfs_fh3 {
    let args = CREATE3args { where_: at(&root(), name), how: createhow3::GUARDED(sattr3::default()) };
    let created: CREATE3res = rig.nfs(P::NFSPROC3_CREATE, &args);
    created.unwrap().obj.unwrap()
}

fn write_args<'a>(file: &nfs_fh3, offset: u64, count: u32, data: &'a [u8]) -> WRITE3args<'a> {
    WRITE3args { file: file.clone(), offset, count, stable: stable_how::FILE_SYNC, data: Opaque::borrowed(data) }
}

fn status<T, E>(result: Nfs3Result<T, E>) -> nfsstat3 {
    match result {
        Nfs3Result::Ok(_) => nfsstat3::NFS3_OK,
        Nfs3Result::Err((status, _)) => status,
    }
}

#[test]
fn null_answers_nothing() {
    let Void = Rig::new().nfs(P::NFSPROC3_NULL, &Void);
    let Void = Rig::new().mount(M::MOUNTPROC3_NULL, &Void);
}

#[test]
fn the_export_is_mounted_listed_and_unmounted() {
    let mut rig = Rig::new();
    let path = |path: &'static str| dirpath(Opaque::borrowed(path.as_bytes()));
    let args = MKDIR3args { where_: at(&root(), b"sub"), attributes: sattr3::default() };
    let sub: MKDIR3res = rig.nfs(P::NFSPROC3_MKDIR, &args);
    let sub = sub.unwrap().obj.unwrap();
    make_file(&mut rig, b"file");
    let mut mount = |at: &'static str| -> Result<Vec<u8>, u32> {
        match rig.mount(M::MOUNTPROC3_MNT, &path(at)) {
            mountres3::Ok(ok) => Ok(ok.fhandle.0.to_vec()),
            mountres3::Err(status) => Err(status as u32),
        }
    };
    assert_eq!(mount("/"), Ok(root().data.to_vec()));
    assert_eq!(mount("/export"), Ok(root().data.to_vec()));
    assert_eq!(mount("/export/sub/"), Ok(sub.data.to_vec()));
    assert_eq!(mount("/sub"), Ok(sub.data.to_vec()));
    assert_eq!(mount("/export/none"), Err(mountstat3::MNT3ERR_NOENT as u32));
    assert_eq!(mount("/export/file"), Err(mountstat3::MNT3ERR_NOTDIR as u32));
    let list: exports<'_, '_> = rig.mount(M::MOUNTPROC3_EXPORT, &Void);
    assert_eq!(&list.0[0].ex_dir.0[..], b"/export");
    let mounted = |rig: &mut Rig| -> usize {
        let list: mountlist<'_, '_> = rig.mount(M::MOUNTPROC3_DUMP, &Void);
        list.0.len()
    };
    assert_eq!(mounted(&mut rig), 4);
    let Void = rig.mount(M::MOUNTPROC3_UMNT, &path("/sub"));
    assert_eq!(mounted(&mut rig), 3);
    let Void = rig.mount(M::MOUNTPROC3_UMNTALL, &Void);
    assert_eq!(mounted(&mut rig), 0);
}

#[test]
fn data_is_written_and_read_back_unmoved() {
    let mut rig = Rig::new();
    let file = make_file(&mut rig, b"file");
    let data: Vec<u8> = (0..100_001u32).map(|i| (i % 253) as u8).collect();
    let before = rig.memory.stats().snapshot();
    let args = write_args(&file, 3, data.len() as u32, &data);
    let written: WRITE3res = rig.nfs(P::NFSPROC3_WRITE, &args);
    let heads = rig.memory.stats().snapshot().since(&before).header_bytes_copied;
    assert!(heads < 300, "{heads} bytes of head copied");
    let written = written.unwrap();
    assert_eq!((written.count, written.committed), (data.len() as u32, stable_how::FILE_SYNC));
    assert_eq!(written.verf.0, ModelVolume::VERIFIER);
    let ino = handle::decode(ModelVolume::FSID, &file.data).unwrap();
    assert_eq!(rig.server.volume().content(ino), [&[0; 3], &data[..]].concat());
    for part_bytes in [usize::MAX, 100] {
        rig.server.volume().part_bytes = part_bytes;
        let read: READ3res<'_> =
            rig.nfs(P::NFSPROC3_READ, &READ3args { file: file.clone(), offset: 3, count: u32::MAX });
        let read = read.unwrap();
        assert_eq!((read.count as usize, read.eof), (data.len(), true));
        assert_eq!(&read.data[..], data);
    }
    let read: READ3res<'_> = rig.nfs(P::NFSPROC3_READ, &READ3args { file: file.clone(), offset: 0, count: 5 });
    let read = read.unwrap();
    assert_eq!((&read.data[..], read.eof), (&[0, 0, 0, 0, 1][..], false));
    let commit: COMMIT3res = rig.nfs(P::NFSPROC3_COMMIT, &COMMIT3args { file, offset: 0, count: 0 });
    assert_eq!(commit.unwrap().verf.0, ModelVolume::VERIFIER);
}

#[test]
fn odd_writes_are_answered_as_the_rfc_says() {
    let mut rig = Rig::new();
    let file = make_file(&mut rig, b"file");
    let mut write = |offset, count, data: &[u8]| -> Result<u32, nfsstat3> {
        match rig.nfs::<WRITE3res>(P::NFSPROC3_WRITE, &write_args(&file, offset, count, data)) {
            Nfs3Result::Ok(ok) => Ok(ok.count),
            Nfs3Result::Err((status, _)) => Err(status),
        }
    };
    assert_eq!(write(0, 0, b""), Ok(0));
    assert_eq!(write(0, 3, b"abcdef"), Ok(3));
    assert_eq!(write(0, 7, b"abcdef"), Err(nfsstat3::NFS3ERR_INVAL));
    assert_eq!(write(1 << 44, 1, b"a"), Err(nfsstat3::NFS3ERR_FBIG));
    assert_eq!(write(u64::MAX, 1, b"a"), Err(nfsstat3::NFS3ERR_FBIG));
    let most = vec![1; (1 << 20) + 1000];
    assert_eq!(write(0, most.len() as u32, &most), Ok(1 << 20), "a short write");
    let dir: WRITE3res = rig.nfs(P::NFSPROC3_WRITE, &write_args(&root(), 0, 1, b"a"));
    assert_eq!(status(dir), nfsstat3::NFS3ERR_INVAL);
    let mut cut = call_bytes(99, PROGRAM, P::NFSPROC3_WRITE as u32, &write_args(&file, 0, 8, b"abcdefgh"));
    cut.truncate(cut.len() - 4);
    let mark = (cut.len() as u32 - 4) | 1 << 31;
    cut[..4].copy_from_slice(&mark.to_be_bytes());
    let reply = rig.exchange(Rig::ID, &cut);
    assert_eq!(reply_words(&reply), [99, 1, 0, 0, 0, accept_stat::GARBAGE_ARGS as u32]);
}

#[test]
fn attributes_are_set_under_guard() {
    let mut rig = Rig::new();
    let file = make_file(&mut rig, b"file");
    let attr: GETATTR3res = rig.nfs(P::NFSPROC3_GETATTR, &GETATTR3args { object: file.clone() });
    let ctime = attr.unwrap().obj_attributes.ctime;
    let new = sattr3 {
        mode: Nfs3Option::Some(0o100_640),
        size: Nfs3Option::Some(9),
        mtime: set_mtime::SET_TO_CLIENT_TIME(nfstime3 { seconds: 5, nseconds: 6 }),
        ..Default::default()
    };
    let mut set = |new: sattr3, guard| -> SETATTR3res {
        rig.nfs(P::NFSPROC3_SETATTR, &SETATTR3args { object: file.clone(), new_attributes: new, guard })
    };
    let wrong = Nfs3Option::Some(nfstime3 { seconds: 1, nseconds: 1 });
    assert_eq!(status(set(new.clone(), wrong)), nfsstat3::NFS3ERR_NOT_SYNC);
    let after = set(new, Nfs3Option::Some(ctime)).unwrap().obj_wcc.after.unwrap();
    assert_eq!((after.mode, after.size, after.mtime.seconds, after.mtime.nseconds), (0o640, 9, 5, 6));
    let bad_time = set_mtime::SET_TO_CLIENT_TIME(nfstime3 { seconds: 0, nseconds: 1_000_000_000 });
    let bad = sattr3 { mtime: bad_time, ..Default::default() };
    assert_eq!(status(set(bad, Nfs3Option::None)), nfsstat3::NFS3ERR_INVAL);
    let big = sattr3 { size: Nfs3Option::Some((1 << 44) + 1), ..Default::default() };
    assert_eq!(status(set(big, Nfs3Option::None)), nfsstat3::NFS3ERR_FBIG);
}

#[test]
fn names_are_made_found_moved_and_removed() {
    let mut rig = Rig::new();
    let file = make_file(&mut rig, b"file");
    let found: LOOKUP3res = rig.nfs(P::NFSPROC3_LOOKUP, &LOOKUP3args { what: at(&root(), b"file") });
    assert_eq!(found.unwrap().object, file);
    let args = LINK3args { file: file.clone(), link: at(&root(), b"twin") };
    let linked: LINK3res = rig.nfs(P::NFSPROC3_LINK, &args);
    assert_eq!(linked.unwrap().file_attributes.unwrap().nlink, 2);
    let args = RENAME3args { from: at(&root(), b"twin"), to: at(&root(), b"other") };
    let renamed: RENAME3res = rig.nfs(P::NFSPROC3_RENAME, &args);
    assert!(renamed.unwrap().todir_wcc.before.is_some());
    let renamed: RENAME3res = rig.nfs(P::NFSPROC3_RENAME, &args);
    assert_eq!(status(renamed), nfsstat3::NFS3ERR_NOENT);
    let args = SYMLINK3args {
        where_: at(&root(), b"link"),
        symlink: symlinkdata3 { symlink_attributes: sattr3::default(), symlink_data: nfspath3::from(&b"to/there"[..]) },
    };
    let made: SYMLINK3res = rig.nfs(P::NFSPROC3_SYMLINK, &args);
    let symlink = made.unwrap().obj.unwrap();
    let target: READLINK3res<'_> = rig.nfs(P::NFSPROC3_READLINK, &READLINK3args { symlink });
    assert_eq!(target.unwrap().data.as_ref(), b"to/there");
    let removed: REMOVE3res = rig.nfs(P::NFSPROC3_REMOVE, &REMOVE3args { object: at(&root(), b"other") });
    assert!(removed.unwrap().dir_wcc.after.is_some());
    let removed: RMDIR3res = rig.nfs(P::NFSPROC3_RMDIR, &RMDIR3args { object: at(&root(), b"file") });
    assert_eq!(status(removed), nfsstat3::NFS3ERR_NOTDIR);
}

#[test]
fn bad_names_and_handles_get_their_errors() {
    let mut rig = Rig::new();
    let mut lookup = |dir: &nfs_fh3, name: &[u8]| -> nfsstat3 {
        status::<LOOKUP3resok, LOOKUP3resfail>(rig.nfs(P::NFSPROC3_LOOKUP, &LOOKUP3args { what: at(dir, name) }))
    };
    assert_eq!(lookup(&root(), &[b'n'; 255]), nfsstat3::NFS3ERR_NOENT);
    assert_eq!(lookup(&root(), &[b'n'; 256]), nfsstat3::NFS3ERR_NAMETOOLONG);
    assert_eq!(lookup(&root(), b""), nfsstat3::NFS3ERR_INVAL);
    assert_eq!(lookup(&root(), b"a/b"), nfsstat3::NFS3ERR_INVAL);
    assert_eq!(lookup(&root(), b"a\0"), nfsstat3::NFS3ERR_INVAL);
    assert_eq!(lookup(&root(), b".."), nfsstat3::NFS3_OK);
    let handle = |bytes: &[u8]| nfs_fh3 { data: Opaque::owned(bytes.to_vec()) };
    assert_eq!(lookup(&handle(&[7; 24]), b"a"), nfsstat3::NFS3ERR_BADHANDLE);
    assert_eq!(lookup(&handle(&handle::encode(1, 1)), b"a"), nfsstat3::NFS3ERR_STALE);
    assert_eq!(lookup(&handle(&handle::encode(ModelVolume::FSID, 99)), b"a"), nfsstat3::NFS3ERR_STALE);
    for name in [&b"."[..], b".."] {
        let args = MKDIR3args { where_: at(&root(), name), attributes: sattr3::default() };
        assert_eq!(status::<_, MKDIR3resfail>(rig.nfs::<MKDIR3res>(P::NFSPROC3_MKDIR, &args)), nfsstat3::NFS3ERR_EXIST);
        let args = REMOVE3args { object: at(&root(), name) };
        let removed: REMOVE3res = rig.nfs(P::NFSPROC3_REMOVE, &args);
        assert_eq!(status(removed), nfsstat3::NFS3ERR_INVAL);
    }
}

#[test]
fn nodes_are_not_served() {
    let mut rig = Rig::new();
    let mut make = |what| -> nfsstat3 {
        let args = MKNOD3args { where_: at(&root(), b"node"), what };
        status::<MKNOD3resok, MKNOD3resfail>(rig.nfs(P::NFSPROC3_MKNOD, &args))
    };
    assert_eq!(make(mknoddata3::NF3FIFO(sattr3::default())), nfsstat3::NFS3ERR_NOTSUPP);
    assert_eq!(make(mknoddata3::NF3SOCK(sattr3::default())), nfsstat3::NFS3ERR_NOTSUPP);
}

#[test]
fn access_and_limits_are_told() {
    let mut rig = Rig::new();
    let access: ACCESS3res = rig.nfs(P::NFSPROC3_ACCESS, &ACCESS3args { object: root(), access: 0x3f });
    let all = ACCESS3_READ | ACCESS3_LOOKUP | ACCESS3_MODIFY | ACCESS3_EXTEND | ACCESS3_DELETE;
    assert_eq!(access.unwrap().access, all);
    let info: FSINFO3res = rig.nfs(P::NFSPROC3_FSINFO, &FSINFO3args { fsroot: root() });
    let info = info.unwrap();
    assert_eq!((info.rtmax, info.wtmax, info.maxfilesize), (1 << 20, 1 << 20, 1 << 44));
    let stat: FSSTAT3res = rig.nfs(P::NFSPROC3_FSSTAT, &FSSTAT3args { fsroot: root() });
    let stat = stat.unwrap();
    assert_eq!((stat.tbytes, stat.abytes, stat.ffiles), (100, 40, 5));
    let conf: PATHCONF3res = rig.nfs(P::NFSPROC3_PATHCONF, &PATHCONF3args { object: root() });
    assert_eq!(conf.unwrap().name_max, 255);
}

#[test]
fn directories_are_listed_in_pieces() {
    let mut rig = Rig::new();
    let names: Vec<Vec<u8>> = (0..300).map(|i| format!("file-{i:03}").into_bytes()).collect();
    for name in &names {
        make_file(&mut rig, name);
    }
    for plus in [false, true] {
        let (mut got, mut cookie, mut calls) = (Vec::new(), 0, 0);
        loop {
            calls += 1;
            let eof = if plus {
                let args = READDIRPLUS3args {
                    dir: root(),
                    cookie,
                    cookieverf: cookieverf3::default(),
                    dircount: 1000,
                    maxcount: 4096,
                };
                let listed: READDIRPLUS3res<'_> = rig.nfs(P::NFSPROC3_READDIRPLUS, &args);
                let listed = listed.unwrap();
                for entry in &listed.reply.entries.0 {
                    assert_eq!(entry.name_attributes.clone().unwrap().fileid, entry.fileid);
                    cookie = entry.cookie;
                    got.push(entry.name.0.to_vec());
                }
                listed.reply.eof
            } else {
                let args = READDIR3args { dir: root(), cookie, cookieverf: cookieverf3::default(), count: 1000 };
                let listed: READDIR3res<'_> = rig.nfs(P::NFSPROC3_READDIR, &args);
                let listed = listed.unwrap();
                cookie = listed.reply.entries.0.last().map_or(cookie, |entry| entry.cookie);
                got.extend(listed.reply.entries.0.iter().map(|entry| entry.name.0.to_vec()));
                listed.reply.eof
            };
            if eof || calls > 1000 {
                break;
            }
        }
        assert_eq!(got[..2], [b".".to_vec(), b"..".to_vec()]);
        assert_eq!(got[2..], names);
        assert!(calls > 5);
    }
    let args = READDIR3args { dir: root(), cookie: 1, cookieverf: cookieverf3([1; 8]), count: 1000 };
    let listed: READDIR3res<'_> = rig.nfs(P::NFSPROC3_READDIR, &args);
    assert_eq!(status(listed), nfsstat3::NFS3ERR_BAD_COOKIE);
    let args = READDIR3args { dir: root(), cookie: 0, cookieverf: cookieverf3::default(), count: 10 };
    let listed: READDIR3res<'_> = rig.nfs(P::NFSPROC3_READDIR, &args);
    assert_eq!(status(listed), nfsstat3::NFS3ERR_TOOSMALL);
}

#[test]
fn every_error_of_the_volume_is_told() {
    let mut rig = Rig::new();
    for (error, wanted) in [
        (VolumeError::NoSpace, nfsstat3::NFS3ERR_NOSPC),
        (VolumeError::Io, nfsstat3::NFS3ERR_IO),
        (VolumeError::Busy, nfsstat3::NFS3ERR_JUKEBOX),
        (VolumeError::TooManyLinks, nfsstat3::NFS3ERR_MLINK),
    ] {
        rig.server.volume().fail = Some(error);
        let args = RENAME3args { from: at(&root(), b"a"), to: at(&root(), b"b") };
        let renamed: RENAME3res = rig.nfs(P::NFSPROC3_RENAME, &args);
        assert_eq!(status(renamed), wanted);
        rig.server.volume().fail = Some(error);
        let read: READ3res<'_> = rig.nfs(P::NFSPROC3_READ, &READ3args { file: root(), offset: 0, count: 1 });
        assert_eq!(status(read), wanted);
    }
}
