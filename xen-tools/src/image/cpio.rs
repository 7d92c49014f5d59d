//! Writes archives in the format "newc" of cpio, which the kernel unpacks into its first root file system.
//!
//! The same entries give the same bytes: owner, times and inode numbers do not come from the host. Several archives
//! one after the other are one archive to the kernel, later files replacing earlier ones.
//!
//! Source of the format: `Documentation/driver-api/early-userspace/buffer-format.rst` of the Linux kernel.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The longest path that the kernel takes, its final zero included.
const PATH_MAX: usize = 4096;

/// Why an archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A path that would leave the root, or has none or too many characters.
    #[error(
        "`{0}` cannot be a path in an image: it must be relative, without `.` or `..`, and shorter than 4096 bytes"
    )]
    BadPath(PathBuf),
    /// Two entries with one path.
    #[error("`{0}` is in the image twice, with different contents")]
    Twice(PathBuf),
    /// A file that is too large for the format.
    #[error("`{path}` has {bytes} bytes: an initial root file system takes files below 4 GiB")]
    TooLarge {
        /// Its path in the image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A file of the host that cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the image: {0}")]
    Write(#[from] io::Error),
}

/// One thing in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File { mode: u32, bytes: Vec<u8> },
    Host { mode: u32, path: PathBuf },
    Link(PathBuf),
    Character { major: u32, minor: u32 },
}

/// A root file system in the making. Folders above an entry come by themselves.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Archive {
    /// An archive with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty folder. To add it again is no error.
    ///
    /// # Errors
    /// A path that cannot be one, or is something else already.
    pub fn folder(&mut self, path: impl AsRef<Path>) -> Result<(), ArchiveError> {
        self.add(path.as_ref(), Entry::Folder)
    }

    /// Adds a file with these bytes; `executable` decides between the modes 0755 and 0644.
    ///
    /// # Errors
    /// As for [`Self::folder`].
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        bytes: impl Into<Vec<u8>>,
        executable: bool,
    ) -> Result<(), ArchiveError> {
        self.add(path.as_ref(), Entry::File { mode: mode(executable), bytes: bytes.into() })
    }

    /// Adds a copy of a file of the host (links are followed), which is read when the archive is written.
    ///
    /// # Errors
    /// As for [`Self::folder`].
    pub fn host_file(&mut self, path: impl AsRef<Path>, host: &Path, executable: bool) -> Result<(), ArchiveError> {
        self.add(path.as_ref(), Entry::Host { mode: mode(executable), path: host.to_path_buf() })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As for [`Self::folder`].
    pub fn link(&mut self, path: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), ArchiveError> {
        self.add(path.as_ref(), Entry::Link(to.as_ref().to_path_buf()))
    }

    /// Adds a character device with mode 0600.
    ///
    /// # Errors
    /// As for [`Self::folder`].
    pub fn character_device(&mut self, path: impl AsRef<Path>, major: u32, minor: u32) -> Result<(), ArchiveError> {
        self.add(path.as_ref(), Entry::Character { major, minor })
    }

    fn add(&mut self, path: &Path, entry: Entry) -> Result<(), ArchiveError> {
        use std::path::Component;
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let length = path.as_os_str().len();
        if !plain || length == 0 || length >= PATH_MAX {
            return Err(ArchiveError::BadPath(path.to_path_buf()));
        }
        let mut above = path;
        while let Some(parent) = above.parent().filter(|parent| *parent != Path::new("")) {
            if *self.entries.entry(parent.to_path_buf()).or_insert(Entry::Folder) != Entry::Folder {
                return Err(ArchiveError::Twice(parent.to_path_buf()));
            }
            above = parent;
        }
        match self.entries.get(path) {
            Some(there) if *there != entry => Err(ArchiveError::Twice(path.to_path_buf())),
            _ => {
                self.entries.insert(path.to_path_buf(), entry);
                Ok(())
            }
        }
    }

    /// Writes the archive, its end mark included.
    ///
    /// # Errors
    /// A file of the host that cannot be read or is too large, or the writer's error.
    pub fn write(&self, to: impl Write) -> Result<(), ArchiveError> {
        let mut writer = Writer { to, inode: 0 };
        for (path, entry) in &self.entries {
            writer.entry(path, entry)?;
        }
        writer.header(Path::new("TRAILER!!!"), Header { inode: 0, ..Header::default() })?;
        writer.to.flush()?;
        Ok(())
    }
}

fn mode(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

/// The fields of a header that are not always zero.
#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    size: u32,
    device: (u32, u32),
}

struct Writer<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    fn entry(&mut self, path: &Path, entry: &Entry) -> Result<(), ArchiveError> {
        use std::os::unix::ffi::OsStrExt;
        let read;
        let (mode, body, device): (u32, &[u8], _) = match entry {
            Entry::Folder => (0o040_755, &[], (0, 0)),
            Entry::File { mode, bytes } => (0o100_000 | mode, bytes, (0, 0)),
            Entry::Host { mode, path: host } => {
                read = std::fs::read(host).map_err(|error| ArchiveError::Read { path: host.clone(), error })?;
                (0o100_000 | mode, &read, (0, 0))
            }
            Entry::Link(to) => (0o120_777, to.as_os_str().as_bytes(), (0, 0)),
            Entry::Character { major, minor } => (0o020_600, &[], (*major, *minor)),
        };
        let bytes = body.len() as u64;
        let size = u32::try_from(bytes).map_err(|_| ArchiveError::TooLarge { path: path.to_path_buf(), bytes })?;
        self.inode += 1;
        self.header(path, Header { inode: self.inode, mode, size, device })?;
        self.to.write_all(body)?;
        self.pad(body.len())?;
        Ok(())
    }

    fn header(&mut self, path: &Path, header: Header) -> Result<(), ArchiveError> {
        use std::os::unix::ffi::OsStrExt;
        let name = path.as_os_str().as_bytes();
        let Header { inode, mode, size, device: (major, minor) } = header;
        let length = u32::try_from(name.len() + 1).map_err(|_| ArchiveError::BadPath(path.to_path_buf()))?;
        let mut head = b"070701".to_vec();
        // Inode, mode, owner, group, links, time, size, the device it is on, the device it is, name, checksum.
        for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, length, 0] {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(name);
        head.push(0);
        self.to.write_all(&head)?;
        self.pad(head.len())?;
        Ok(())
    }

    /// Headers with names, and contents, begin at multiples of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    /// Names and contents, read as the kernel reads them.
    fn parse(mut rest: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field =
                |n: usize| u32::from_str_radix(std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap(), 16).unwrap();
            let (mode, size, length) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(rest[110..110 + length - 1].to_vec()).unwrap();
            let begin = (110 + length).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(begin, rest.len());
                return entries;
            }
            entries.push((name, mode, rest[begin..begin + size].to_vec()));
            rest = &rest[(begin + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_goes_in_comes_out_with_its_folders_first() {
        let mut archive = Archive::new();
        archive.file("usr/lib/x", *b"hello", false).unwrap();
        archive.file("init", *b"#!", true).unwrap();
        archive.link("bin", "usr/bin").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        let entries = parse(&bytes(&archive));
        let names: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        let wanted = [
            ("bin", 0o120_777),
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
            ("init", 0o100_755),
            ("usr", 0o040_755),
            ("usr/lib", 0o040_755),
            ("usr/lib/x", 0o100_644),
        ];
        assert_eq!(names, wanted);
        assert_eq!(entries[6].2, b"hello");
        assert_eq!(entries[0].2, b"usr/bin");
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_order_or_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("file");
        std::fs::write(&host, "content").unwrap();
        let mut one = Archive::new();
        one.file("a", *b"1", true).unwrap();
        one.host_file("b/c", &host, false).unwrap();
        let mut two = Archive::new();
        two.host_file("b/c", &host, false).unwrap();
        two.file("a", *b"1", true).unwrap();
        let first = bytes(&one);
        std::fs::write(&host, "content").unwrap();
        assert_eq!(first, bytes(&two));
    }

    #[test]
    fn the_devices_numbers_are_in_their_fields() {
        let mut archive = Archive::new();
        archive.character_device("console", 5, 1).unwrap();
        let bytes = bytes(&archive);
        assert_eq!(&bytes[6 + 8 * 9..6 + 8 * 11], b"0000000500000001");
    }

    #[test]
    fn bad_paths_and_contradictions_are_refused() {
        let mut archive = Archive::new();
        for path in ["", "/etc/x", "../x", "a/../b", &"x".repeat(4096)] {
            let error = archive.file(path, *b"", false).unwrap_err();
            assert!(matches!(error, ArchiveError::BadPath(_)), "{path}: {error}");
        }
        archive.file("x".repeat(4095), *b"", false).unwrap();
        archive.file("a", *b"1", false).unwrap();
        archive.file("a", *b"1", false).unwrap();
        assert!(matches!(archive.file("a", *b"2", false), Err(ArchiveError::Twice(_))));
        assert!(matches!(archive.file("a/b", *b"2", false), Err(ArchiveError::Twice(_))));
        archive.folder("f").unwrap();
        archive.folder("f").unwrap();
        assert!(matches!(archive.link("f", "g"), Err(ArchiveError::Twice(_))));
    }

    #[test]
    fn a_host_file_that_is_missing_is_named() {
        let mut archive = Archive::new();
        archive.host_file("a", Path::new("/does/not/exist"), false).unwrap();
        let error = archive.write(io::sink()).unwrap_err();
        assert!(error.to_string().starts_with("/does/not/exist: "), "{error}");
    }
}
