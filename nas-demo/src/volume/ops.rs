//! What can be asked of a volume, and what it answers: the seam between the NFS server and the file system.
//!
//! Every operation is submitted with a ticket and answered exactly once; answers come in any order. Every answer
//! carries the attributes that NFSv3 wants after the operation (`wcc_data`, RFC 1813 2.6), so that one operation is
//! enough for one call.

use fido_core::payload::Payload;

/// Names an inode for the life of the volume: numbers are never used again.
pub type Ino = u64;

/// The root directory.
pub const ROOT: Ino = 1;
/// The longest name of a directory entry, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const MAX_SYMLINK_BYTES: usize = 1024;
/// The most hard links to a file.
pub const MAX_LINKS: u32 = 32_000;
/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 44;
/// The most bytes that one read or write carries.
pub const MAX_IO_BYTES: u32 = 1 << 20;

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds; NFSv3 has 32 bits.
    pub seconds: u32,
    /// Nanoseconds below 10^9.
    pub nanos: u32,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Which inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0..=0o7777`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of the device it occupies.
    pub used: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
}

/// A timestamp to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// The server's time.
    Now,
    /// This time.
    At(Time),
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: shortens or extends with zeros.
    pub size: Option<u64>,
    /// Last read.
    pub atime: SetTime,
    /// Last change of content.
    pub mtime: SetTime,
}

/// How to create a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateMode {
    /// An existing file is fine; of the attributes only the size, if asked for, is applied to it.
    Unchecked(SetAttr),
    /// An existing name is an error.
    Guarded(SetAttr),
    /// Exclusive: an existing file is fine if it was created with the same verifier (RFC 1813 3.3.8).
    Exclusive([u8; 8]),
}

/// How durable a write must be when it is answered. Ordered: later is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stability {
    /// Not at all: a commit follows, or it may be lost with the server (the verifier then changes).
    Unstable,
    /// The data and what is needed to read it.
    DataSync,
    /// Data and all attributes.
    FileSync,
}

/// Who asks: for new inodes' ownership and for permission checks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// What is asked. Names are bytes, as NFS has them: not empty, not `.` or `..` where that makes no sense, no `/` or NUL.
#[derive(Debug, Clone)]
pub enum VolumeOp {
    /// Attributes of an inode.
    GetAttr { ino: Ino },
    /// Sets attributes; with `guard`, only if the ctime is still that.
    SetAttr { ino: Ino, set: SetAttr, guard: Option<Time>, caller: Caller },
    /// Finds a name in a directory (`.` and `..` too).
    Lookup { dir: Ino, name: Vec<u8>, caller: Caller },
    /// The target of a symbolic link.
    ReadLink { ino: Ino },
    /// Reads a file.
    Read { ino: Ino, offset: u64, count: u32, caller: Caller },
    /// Writes a file.
    Write { ino: Ino, offset: u64, data: Payload, stability: Stability, caller: Caller },
    /// Makes unstable writes durable (of the whole file, whatever the range).
    Commit { ino: Ino },
    /// Creates a regular file.
    Create { dir: Ino, name: Vec<u8>, mode: CreateMode, caller: Caller },
    /// Creates a directory.
    MakeDir { dir: Ino, name: Vec<u8>, set: SetAttr, caller: Caller },
    /// Creates a symbolic link.
    Symlink { dir: Ino, name: Vec<u8>, target: Vec<u8>, set: SetAttr, caller: Caller },
    /// Removes a name that is no directory.
    Remove { dir: Ino, name: Vec<u8>, caller: Caller },
    /// Removes an empty directory.
    RemoveDir { dir: Ino, name: Vec<u8>, caller: Caller },
    /// Renames, atomically replacing what may be replaced.
    Rename { from_dir: Ino, from: Vec<u8>, to_dir: Ino, to: Vec<u8>, caller: Caller },
    /// Another name for a file.
    Link { ino: Ino, dir: Ino, name: Vec<u8>, caller: Caller },
    /// Entries of a directory after `cookie` (0: from the start, `.` and `..` first), at most `count`.
    ReadDir { dir: Ino, cookie: u64, count: u32, caller: Caller },
    /// Space and inodes of the volume.
    Stat,
}

/// An entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Where to go on after this entry. Stays valid while the directory changes.
    pub cookie: u64,
    /// The inode's attributes.
    pub attr: Attr,
}

/// Size, mtime and ctime before an operation (`wcc_attr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Length in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
}

/// An inode before and after an operation; what is not known is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Before.
    pub before: Option<Before>,
    /// After.
    pub after: Option<Attr>,
}

/// The volume's space and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Inodes in all (a nominal limit).
    pub total_inodes: u64,
    /// Inodes free.
    pub free_inodes: u64,
}

/// What is answered.
#[derive(Debug)]
pub enum VolumeReply {
    /// To `GetAttr`.
    Attr(Attr),
    /// To `SetAttr`.
    Changed(Change),
    /// To `Lookup`.
    Found { attr: Attr, dir: Attr },
    /// To `ReadLink`.
    Target { target: Vec<u8>, attr: Attr },
    /// To `Read`: the data on loan (holes are zeros), and whether it reaches the file's end.
    Data { data: Payload, eof: bool, attr: Attr },
    /// To `Write`: how durable it is now.
    Written { count: u32, stability: Stability, change: Change },
    /// To `Commit`.
    Committed(Change),
    /// To `Create`, `MakeDir` and `Symlink`.
    Created { attr: Attr, dir: Change },
    /// To `Remove` and `RemoveDir`.
    Removed { dir: Change },
    /// To `Rename`.
    Renamed { from_dir: Change, to_dir: Change },
    /// To `Link`.
    Linked { attr: Attr, dir: Change },
    /// To `ReadDir`.
    Entries { entries: Vec<DirEntry>, eof: bool, dir: Attr },
    /// To `Stat`.
    Space { space: Space, root: Attr },
}

/// Why an operation failed. The volume is unchanged then, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The caller may not, whoever the owner.
    #[error("operation not permitted")]
    NotPermitted,
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The device or the store failed.
    #[error("input/output error")]
    Io,
    /// The permission bits say no.
    #[error("permission denied")]
    Access,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// Not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// A directory.
    #[error("is a directory")]
    IsDirectory,
    /// Makes no sense: wrong kind, wrong argument.
    #[error("invalid argument")]
    Invalid,
    /// Beyond [`MAX_FILE_BYTES`].
    #[error("file too large")]
    TooBig,
    /// The volume is full.
    #[error("no space left on the volume")]
    NoSpace,
    /// More than [`MAX_LINKS`].
    #[error("too many links")]
    TooManyLinks,
    /// Beyond [`MAX_NAME_BYTES`] or [`MAX_SYMLINK_BYTES`].
    #[error("name too long")]
    NameTooLong,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// No such inode (any more).
    #[error("stale file handle")]
    Stale,
    /// The guard of `SetAttr` does not hold.
    #[error("not synchronised")]
    NotSync,
    /// Too much at once; try again later.
    #[error("try again later")]
    Busy,
}

/// A file system, asynchronous. One per thread.
pub trait Volume {
    /// Changes with every start of the volume, so that clients know that unstable writes may be lost; unless all that
    /// was answered before has been taken over.
    fn write_verifier(&self) -> [u8; 8];

    /// Names this file system for ever; part of file handles, so that another volume's are recognised as stale.
    fn fsid(&self) -> u64;

    /// Starts an operation.
    fn submit(&mut self, ticket: u64, op: VolumeOp);

    /// Moves things along and returns the next answer, if there is one. Never blocks.
    fn poll(&mut self) -> Option<(u64, Result<VolumeReply, VolumeError>)>;

    /// Hands submitted work on. Call it after a batch and before waiting.
    fn flush(&mut self);

    /// What to wait for.
    fn sources(&mut self) -> Vec<&mut dyn fido_core::wait::Source>;
}
