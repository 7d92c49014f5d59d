//! What can go wrong with xenstore, and what to do about it.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::wire::{Kind, Packet, WireError};

/// xenstored's reasons for a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// `EINVAL`.
    Invalid,
    /// `EACCES` or `EPERM`: the node's permissions do not let this domain.
    NotPermitted,
    /// `EEXIST`.
    Exists,
    /// `ENOENT`.
    NoEntry,
    /// `ENOSPC` or `EDQUOT`: a quota of this domain is used up.
    Quota,
    /// `EAGAIN`: somebody else changed what a transaction depends on.
    Conflict,
    /// `EBUSY`.
    Busy,
    /// `E2BIG`: the answer does not fit into a packet.
    TooBig,
    /// `ENOSYS`: this xenstored does not know the operation.
    Unknown,
    /// Any other, as xenstored says it.
    Other(String),
}

impl Code {
    /// The code that a reply names.
    pub fn of(text: &str) -> Self {
        match text {
            "EINVAL" => Self::Invalid,
            "EACCES" | "EPERM" => Self::NotPermitted,
            "EEXIST" => Self::Exists,
            "ENOENT" => Self::NoEntry,
            "ENOSPC" | "EDQUOT" => Self::Quota,
            "EAGAIN" => Self::Conflict,
            "EBUSY" => Self::Busy,
            "E2BIG" => Self::TooBig,
            "ENOSYS" => Self::Unknown,
            other => Self::Other(other.chars().take(40).collect()),
        }
    }

    pub(super) fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::INVAL => Self::Invalid,
            Errno::ACCESS | Errno::PERM => Self::NotPermitted,
            Errno::EXIST => Self::Exists,
            Errno::NOENT => Self::NoEntry,
            Errno::NOSPC | Errno::DQUOT => Self::Quota,
            other => Self::Other(other.to_string()),
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invalid => "xenstored calls the request invalid",
            Self::NotPermitted => "the node's permissions do not let this domain (see `xenstore-ls -p` in dom0)",
            Self::Exists => "it is there already",
            Self::NoEntry => "there is no such node",
            Self::Quota => {
                "a quota of this domain in xenstored is used up (nodes, sizes or watches; see xenstored's --quota)"
            }
            Self::Conflict => "somebody else changed it at the same time",
            Self::Busy => "it is busy",
            Self::TooBig => "the answer does not fit into a packet",
            Self::Unknown => "this xenstored does not know the operation",
            Self::Other(text) => return write!(f, "xenstored says {text:?}"),
        })
    }
}

/// Why xenstore could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no way to xenstore on this machine.
    #[error(
        "there is no xenstore here: {tried}; in a guest: `modprobe xenfs`, or `mount -t xenfs xenfs /proc/xen`; in dom0: \
         start xenstored (service `xenstored` or `xencommons`). Without Xen, use platform `host`"
    )]
    Absent {
        /// What was tried, with the results.
        tried: String,
    },
    /// The device or socket is there, but this process may not use it.
    #[error("{path} cannot be opened ({source}); run as root, or let this user read and write it")]
    Privilege {
        /// Which.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection ended.
    #[error("xenstored is gone; it cannot be restarted without losing its content: reboot the host if it died")]
    Gone,
    /// No reply.
    #[error("xenstored has not answered for {} s; see whether it runs in dom0 and has processor time", waited.as_secs())]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// An earlier error has left the connection in a state that nobody knows.
    #[error("the connection with xenstored is broken by an earlier error; connect again")]
    Broken,
    /// xenstored says no.
    #[error("xenstore, {operation:?} {path:?}: {code}")]
    Refused {
        /// What was asked for.
        operation: Kind,
        /// Of which node.
        path: String,
        /// Why not.
        code: Code,
    },
    /// Bytes that make no sense, to be sent or received.
    #[error("xenstore: {0}")]
    Wire(#[from] WireError),
    /// A reply to something else.
    #[error("xenstored answered {sent:?} with {received:?}, or another request than the one under way")]
    WrongReply {
        /// The request.
        sent: Kind,
        /// The reply.
        received: Kind,
    },
    /// A reply to nothing.
    #[error("xenstored sent {received:?} although nothing was asked for")]
    Unasked {
        /// What came.
        received: Kind,
    },
    /// A transaction that was tried again and again.
    #[error("others changed the same nodes of xenstore in each of {attempts} attempts at a transaction")]
    Contended {
        /// How many.
        attempts: u32,
    },
    /// A directory that never stands still, or never ends.
    #[error("the children of {path:?} in xenstore cannot be listed: {what}")]
    Directory {
        /// Of which node.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The operating system's error.
    #[error("xenstore: cannot {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn system(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { step, source: errno.into() }
    }

    pub(super) fn refused(request: &Packet, code: Code) -> Self {
        let path = request.content.split(|&byte| byte == 0).next().unwrap_or_default();
        let path = String::from_utf8_lossy(path).chars().take(200).collect();
        Self::Refused { operation: request.kind, path, code }
    }

    /// The refusal's reason, if it is one.
    pub fn code(&self) -> Option<&Code> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether nothing more can come over this connection.
    pub fn is_end_of_connection(&self) -> bool {
        matches!(
            self,
            Self::Gone | Self::Timeout { .. } | Self::Broken | Self::WrongReply { .. } | Self::Unasked { .. }
        )
    }

    /// Whether the next reply will still be the one to the next request.
    pub(super) fn leaves_connection_usable(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}
