//! Making a range of a file read as zeros: by the file system's own means where it has them, else by writing zeros.
//!
//! | step | the kernel is asked | if it cannot |
//! |---|---|---|
//! | punch | to give the range's space back (only if the caller allows it) | zero |
//! | zero | to mark the range as zeros where it is | write |
//! | write | to write zeros, 4 MiB at a time | the request fails |
//! | sync | to make the range durable, if the caller wants that and the last step was no durable write | the request fails |

use io_uring::{opcode, squeue, types};

use super::request::Step;
use crate::queue::BlockError;

/// Zeros to write from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// How often [`ZEROS`] are named in one write.
const VECTORS: usize = 64;

/// The range's way.
#[derive(Debug)]
pub(super) struct Zeroes {
    durable: bool,
    phase: Phase,
    /// What a write of zeros points to.
    iovecs: Vec<libc::iovec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Punch,
    Zero,
    Write,
    Sync,
}

// SAFETY: the raw pointers in `iovecs` point to `ZEROS`, which is there for ever and never written; nothing here
// dereferences them, only the kernel reads through them.
unsafe impl Send for Zeroes {}

impl Zeroes {
    pub(super) fn new(durable: bool, unmap: bool) -> Self {
        Self { durable, phase: if unmap { Phase::Punch } else { Phase::Zero }, iovecs: Vec::new() }
    }

    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    /// What the kernel shall do next, with `len` bytes left from `at` on.
    pub(super) fn entry(&self, fd: types::Fd, at: u64, len: u64) -> squeue::Entry {
        let fallocate =
            |mode| opcode::Fallocate::new(fd, len).offset(at).mode(mode | libc::FALLOC_FL_KEEP_SIZE).build();
        match self.phase {
            Phase::Punch => fallocate(libc::FALLOC_FL_PUNCH_HOLE),
            Phase::Zero => fallocate(libc::FALLOC_FL_ZERO_RANGE),
            Phase::Write => {
                let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
                // Whole vectors as long as there is more than all of them; the last piece of less is one write of one.
                let whole = (len / ZEROS.len() as u64).min(VECTORS as u64) as u32;
                match whole {
                    0 => opcode::Write::new(fd, ZEROS.as_ptr(), len as u32).offset(at).rw_flags(flags).build(),
                    some => opcode::Writev::new(fd, self.iovecs.as_ptr(), some).offset(at).rw_flags(flags).build(),
                }
            }
            Phase::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// Takes the kernel's success; of `len` bytes, `done` are zeros by now.
    pub(super) fn step(&mut self, result: i32, len: u64, done: &mut u64) -> Step {
        match self.phase {
            Phase::Punch | Phase::Zero if self.durable => {
                self.phase = Phase::Sync;
                Step::Again
            }
            Phase::Punch | Phase::Zero | Phase::Sync => Step::End(Ok(())),
            Phase::Write if result == 0 => Step::End(Err(BlockError::Io { errno: libc::EIO })),
            Phase::Write => {
                *done = (*done + u64::from(result.unsigned_abs())).min(len);
                if *done == len { Step::End(Ok(())) } else { Step::Again }
            }
        }
    }

    /// The kernel cannot do it this way. Returns whether there is another.
    pub(super) fn fall_back(&mut self) -> bool {
        self.phase = match self.phase {
            Phase::Punch => Phase::Zero,
            Phase::Zero => Phase::Write,
            Phase::Write | Phase::Sync => return false,
        };
        if self.phase == Phase::Write {
            let iovec = libc::iovec { iov_base: ZEROS.as_ptr().cast_mut().cast(), iov_len: ZEROS.len() };
            self.iovecs = vec![iovec; VECTORS];
        }
        true
    }
}
