//! Whose error it is: the member's, or that of whoever asked it.
//!
//! A member is kicked for what it has not done. It has not failed if there was no room for a buffer, or if it cannot reach
//! bytes that we can: then it is asked again, with a copy where that helps.

use crate::queue::BlockError;

/// What an error of a member's queue means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It could not do what it is there for.
    Member,
    /// It could not reach the payload.
    Unreachable,
    /// Something was missing that comes back: a buffer, memory or a descriptor of the system's.
    Scarce,
}

/// What an error means.
pub(super) fn cause(error: &BlockError) -> Cause {
    match error {
        BlockError::NoBuffer => Cause::Scarce,
        BlockError::Address(_) | BlockError::Io { errno: libc::EFAULT } => Cause::Unreachable,
        BlockError::Io {
            errno: libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE,
        } => Cause::Scarce,
        _ => Cause::Member,
    }
}

/// Whether it is no more than something missing that comes back.
pub(super) fn is_scarce(error: &BlockError) -> bool {
    cause(error) == Cause::Scarce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_cause() {
        let io = |errno| BlockError::Io { errno };
        for (error, expected) in [
            (BlockError::NoBuffer, Cause::Scarce),
            (io(libc::ENOMEM), Cause::Scarce),
            (io(libc::EAGAIN), Cause::Scarce),
            (io(libc::EFAULT), Cause::Unreachable),
            (BlockError::Address(String::new()), Cause::Unreachable),
            (io(libc::EIO), Cause::Member),
            (io(libc::ENXIO), Cause::Member),
            (io(libc::ENOSPC), Cause::Member),
            (BlockError::NoSpace, Cause::Member),
            (BlockError::ReadOnly, Cause::Member),
            (BlockError::Unsupported, Cause::Member),
            (BlockError::OutOfRange { offset: 0, len: 1 }, Cause::Member),
            (BlockError::Protocol(String::new()), Cause::Member),
        ] {
            assert_eq!(cause(&error), expected, "{error}");
        }
    }
}
