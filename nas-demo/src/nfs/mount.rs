//! MOUNT v3 (RFC 1813, appendix I): hands out the handle of the export and of directories in it.
//!
//! There is one export. It is mounted by its name or as `/`; what follows names a directory in it. Who has mounted
//! what is kept as information only, bounded, and lost with the server: nothing depends on it.

use std::collections::VecDeque;
use std::net::IpAddr;

use nfs3_types::mount::{
    MNTPATHLEN, MOUNT_PROGRAM, dirpath, export_node, exports, fhandle3, mountbody, mountlist, mountres3, mountres3_ok,
    mountstat3, name as host_name,
};
use nfs3_types::xdr_codec::{List, Opaque, Pack};

use super::handle;
use super::xdr::{Cursor, Malformed};
use crate::volume::ops::{Ino, MAX_NAME_BYTES, VolumeError};

/// The most mounts that are listed.
pub const MAX_MOUNTS: usize = 256;

const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;

/// What becomes of a MOUNT call.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is answered at once; these are the results.
    Done(Vec<u8>),
    /// A directory of the volume is mounted, found by these names from the root on (none: the root itself).
    Mount {
        /// What the client calls it.
        path: Vec<u8>,
        /// The way there.
        names: VecDeque<Vec<u8>>,
    },
}

/// The export and who has mounted it.
#[derive(Debug)]
pub struct Mounts {
    export: String,
    /// Host and path, the oldest first.
    mounted: VecDeque<(String, Vec<u8>)>,
}

impl Mounts {
    /// One export, with a name that begins with `/`.
    pub fn new(export: &str) -> Self {
        let trimmed = export.trim_matches('/');
        Self { export: format!("/{trimmed}"), mounted: VecDeque::new() }
    }

    /// What a call wants.
    ///
    /// # Errors
    /// [`Malformed`] if the arguments cannot be decoded.
    pub fn plan(&mut self, procedure: MOUNT_PROGRAM, mut args: Cursor<'_>, remote: IpAddr) -> Result<Plan, Malformed> {
        let host = remote.to_string();
        let done = match procedure {
            MOUNT_PROGRAM::MOUNTPROC3_NULL => Vec::new(),
            MOUNT_PROGRAM::MOUNTPROC3_MNT => return Ok(self.mount(args.opaque(usize::MAX)?)),
            MOUNT_PROGRAM::MOUNTPROC3_DUMP => packed(&self.list()),
            MOUNT_PROGRAM::MOUNTPROC3_UMNT => {
                let path = args.opaque(usize::MAX)?;
                self.mounted.retain(|(by, what)| *by != host || what != path);
                Vec::new()
            }
            MOUNT_PROGRAM::MOUNTPROC3_UMNTALL => {
                self.mounted.retain(|(by, _)| *by != host);
                Vec::new()
            }
            MOUNT_PROGRAM::MOUNTPROC3_EXPORT => packed(&self.exports()),
        };
        Ok(Plan::Done(done))
    }

    fn mount(&self, path: &[u8]) -> Plan {
        if path.len() > MNTPATHLEN {
            return Plan::Done(failure(mountstat3::MNT3ERR_NAMETOOLONG));
        }
        // libnfs names the root by nothing at all when a URL has only a file's name.
        if !path.is_empty() && path.first() != Some(&b'/') || path.contains(&0) {
            return Plan::Done(failure(mountstat3::MNT3ERR_NOENT));
        }
        let inside = match path.strip_prefix(self.export.as_bytes()) {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
            _ => path,
        };
        let names = inside.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let names: VecDeque<_> = names.map(<[u8]>::to_vec).collect();
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return Plan::Done(failure(mountstat3::MNT3ERR_NAMETOOLONG));
        }
        Plan::Mount { path: path.to_vec(), names }
    }

    /// The results of a mount that has been found: its handle, and a line in the list.
    pub fn mounted(&mut self, fsid: u64, ino: Ino, path: Vec<u8>, remote: IpAddr) -> Vec<u8> {
        let entry = (remote.to_string(), path);
        if !self.mounted.contains(&entry) {
            self.mounted.push_back(entry);
        }
        if self.mounted.len() > MAX_MOUNTS {
            self.mounted.pop_front();
        }
        let fhandle = fhandle3(Opaque::owned(handle::encode(fsid, ino).to_vec()));
        packed(&mountres3::Ok(mountres3_ok { fhandle, auth_flavors: vec![AUTH_SYS, AUTH_NONE] }))
    }

    fn list(&self) -> mountlist<'_, '_> {
        let body = |(host, path): &(String, Vec<u8>)| mountbody {
            ml_hostname: host_name(Opaque::owned(host.clone().into_bytes())),
            ml_directory: dirpath(Opaque::owned(path.clone())),
        };
        List(self.mounted.iter().map(body).collect())
    }

    fn exports(&self) -> exports<'_, '_> {
        let ex_dir = dirpath(Opaque::borrowed(self.export.as_bytes()));
        List(vec![export_node { ex_dir, ex_groups: List::default() }])
    }
}

/// The results of a mount that failed.
pub fn failure(status: mountstat3) -> Vec<u8> {
    packed(&mountres3::Err(status))
}

/// The status for a volume's error on the way to a directory.
pub fn status(error: VolumeError) -> mountstat3 {
    match error {
        VolumeError::NotPermitted => mountstat3::MNT3ERR_PERM,
        VolumeError::NotFound | VolumeError::Stale => mountstat3::MNT3ERR_NOENT,
        VolumeError::Io => mountstat3::MNT3ERR_IO,
        VolumeError::Access => mountstat3::MNT3ERR_ACCES,
        VolumeError::NotDirectory => mountstat3::MNT3ERR_NOTDIR,
        VolumeError::Invalid => mountstat3::MNT3ERR_INVAL,
        VolumeError::NameTooLong => mountstat3::MNT3ERR_NAMETOOLONG,
        _ => mountstat3::MNT3ERR_SERVERFAULT,
    }
}

fn packed(value: &impl Pack) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.packed_size());
    if let Err(error) = value.pack(&mut out) {
        tracing::error!(%error, "the codec failed on a mount result");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn names(mounts: &Mounts, path: &str) -> Option<Vec<String>> {
        match mounts.mount(path.as_bytes()) {
            Plan::Mount { names, .. } => Some(names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()),
            Plan::Done(_) => None,
        }
    }

    #[test]
    fn the_export_has_two_names_and_directories_in_it() {
        let mounts = Mounts::new("/export/");
        let none = Some(vec![]);
        assert_eq!(names(&mounts, "/"), none);
        assert_eq!(names(&mounts, "/export"), none);
        assert_eq!(names(&mounts, "/export/"), none);
        assert_eq!(names(&mounts, "/export/a//./b"), Some(vec!["a".into(), "b".into()]));
        assert_eq!(names(&mounts, "/exports"), Some(vec!["exports".into()]));
        assert_eq!(names(&mounts, "export"), None);
        assert_eq!(names(&mounts, ""), none);
        assert_eq!(names(&Mounts::new("/"), "/a"), Some(vec!["a".into()]));
    }

    #[test]
    fn path_limits_are_exact() {
        let mounts = Mounts::new("/export");
        assert!(names(&mounts, &"/a".repeat(MNTPATHLEN / 2)).is_some());
        assert!(names(&mounts, &("/a".repeat(MNTPATHLEN / 2) + "/")).is_none());
        assert!(names(&mounts, &format!("/{}", "n".repeat(MAX_NAME_BYTES))).is_some());
        assert!(names(&mounts, &format!("/{}", "n".repeat(MAX_NAME_BYTES + 1))).is_none());
    }

    #[test]
    fn the_list_is_bounded_and_unmounting_shortens_it() {
        let mut mounts = Mounts::new("/export");
        for i in 0..=MAX_MOUNTS {
            mounts.mounted(1, 1, i.to_string().into_bytes(), HOST);
        }
        mounts.mounted(1, 1, b"9".to_vec(), HOST);
        assert_eq!(mounts.mounted.len(), MAX_MOUNTS);
        let nine = [0, 0, 0, 1, b'9', 0, 0, 0];
        mounts.plan(MOUNT_PROGRAM::MOUNTPROC3_UMNT, Cursor::new(&nine), HOST).unwrap();
        assert_eq!(mounts.mounted.len(), MAX_MOUNTS - 1);
        mounts.plan(MOUNT_PROGRAM::MOUNTPROC3_UMNTALL, Cursor::new(&[]), HOST).unwrap();
        assert!(mounts.mounted.is_empty());
    }
}
