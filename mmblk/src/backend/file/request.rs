//! A request while the kernel has it: what keeps its memory in place, and how far it has come.

use std::ptr::NonNull;

use fido_core::foreign::Landing;
use fido_core::heap::ArenaBuf;
use fido_core::payload::Payload;
use fido_core::window::Span;
use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::direct::{Way, Ways};
use super::zeroes::Zeroes;
use crate::queue::BlockError;

/// How often a request is tried again after EINTR or EAGAIN without any progress.
const MAX_TRIES: u32 = 16;

/// A request in the kernel's hands. Must not be dropped before its completion has been seen.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    offset: u64,
    len: u64,
    done: u64,
    tries: u32,
    /// Whether the kernel's last entry went past the page cache.
    direct: bool,
    /// Whether none shall any more: the kernel has refused one.
    indirect: bool,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// Into an own buffer of exactly the request's length.
    Read(ArenaBuf),
    /// Into foreign memory.
    ReadInto(Vector),
    Write {
        vector: Vector,
        /// Keeps the bytes unchanged, as `Vector`'s spans keep them mapped.
        _data: Payload,
        durable: bool,
    },
    Flush,
    Discard,
    Zeroes(Zeroes),
}

/// What follows from a completion.
#[derive(Debug)]
pub(super) enum Step {
    /// The request has ended.
    End(Result<(), BlockError>),
    /// It has to be submitted again for the rest.
    Again,
}

/// The memory of a write, or of a read into foreign memory, as the kernel wants it.
#[derive(Debug)]
struct Vector {
    iovecs: Vec<libc::iovec>,
    /// The first that is not written yet.
    first: usize,
    _kept: Kept,
}

/// What keeps the memory mapped.
#[derive(Debug)]
enum Kept {
    Spans { _spans: Vec<Span> },
    Landing { _landing: Landing },
}

// SAFETY: the raw pointers in `iovecs` point into the mappings that spans or areas keep, which are `Send`; nothing
// here dereferences them, only the kernel does.
unsafe impl Send for Vector {}

impl Vector {
    fn new(spans: Vec<Span>) -> Self {
        let iovecs = spans.iter().map(|span| iovec(span.as_ptr(), span.len())).collect();
        Self { iovecs, first: 0, _kept: Kept::Spans { _spans: spans } }
    }

    fn to(landing: Landing) -> Self {
        let iovecs = landing.areas().iter().map(|area| iovec(area.as_ptr(), area.len())).collect();
        Self { iovecs, first: 0, _kept: Kept::Landing { _landing: landing } }
    }

    fn rest(&self) -> &[libc::iovec] {
        self.iovecs.get(self.first..).unwrap_or_default()
    }

    /// Skips `bytes` that have been moved.
    fn advance(&mut self, mut bytes: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.first)
            && bytes > 0
        {
            let count = bytes.min(iovec.iov_len);
            // `wrapping_add` stays within the span or one past its end: `count <= iov_len`.
            iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(count).cast();
            iovec.iov_len -= count;
            bytes -= count;
            if iovec.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

/// An entry that reads from byte `at` of the file. One vector's place is not looked at again, that of several is.
fn read(way: Way, at: u64, memory: &[libc::iovec]) -> squeue::Entry {
    match (memory, way.buffer) {
        ([one], Some(buffer)) => {
            opcode::ReadFixed::new(way.fd, one.iov_base.cast(), one.iov_len as u32, buffer).offset(at).build()
        }
        ([one], None) => opcode::Read::new(way.fd, one.iov_base.cast(), one.iov_len as u32).offset(at).build(),
        (more, _) => opcode::Readv::new(way.fd, more.as_ptr(), more.len() as u32).offset(at).build(),
    }
}

/// As [`read`], the other way.
fn write(way: Way, at: u64, memory: &[libc::iovec], durable: bool) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match (memory, way.buffer) {
        ([one], Some(buffer)) => {
            let write = opcode::WriteFixed::new(way.fd, one.iov_base.cast(), one.iov_len as u32, buffer);
            write.offset(at).rw_flags(flags).build()
        }
        ([one], None) => {
            opcode::Write::new(way.fd, one.iov_base.cast(), one.iov_len as u32).offset(at).rw_flags(flags).build()
        }
        (more, _) => opcode::Writev::new(way.fd, more.as_ptr(), more.len() as u32).offset(at).rw_flags(flags).build(),
    }
}

fn iovec(first: NonNull<u8>, len: usize) -> libc::iovec {
    libc::iovec { iov_base: first.as_ptr().cast(), iov_len: len }
}

impl Request {
    pub(super) fn read_into(id: u64, offset: u64, landing: Landing) -> Self {
        Self::new(id, offset, landing.len(), Work::ReadInto(Vector::to(landing)))
    }

    pub(super) fn read(id: u64, offset: u64, buf: ArenaBuf) -> Self {
        Self::new(id, offset, buf.len() as u64, Work::Read(buf))
    }

    pub(super) fn write(id: u64, offset: u64, data: Payload, spans: Vec<Span>, durable: bool) -> Self {
        let len = data.len();
        Self::new(id, offset, len, Work::Write { vector: Vector::new(spans), _data: data, durable })
    }

    pub(super) fn flush(id: u64) -> Self {
        Self::new(id, 0, 0, Work::Flush)
    }

    pub(super) fn discard(id: u64, offset: u64, len: u64) -> Self {
        Self::new(id, offset, len, Work::Discard)
    }

    pub(super) fn zeroes(id: u64, offset: u64, len: u64, durable: bool, unmap: bool) -> Self {
        Self::new(id, offset, len, Work::Zeroes(Zeroes::new(durable, unmap)))
    }

    fn new(id: u64, offset: u64, len: u64, work: Work) -> Self {
        Self { id, offset, len, done: 0, tries: 0, direct: false, indirect: false, work }
    }

    /// What the kernel shall do next for it, and by which way if that moves payload. The entry points into this
    /// request's memory.
    pub(super) fn entry(&mut self, ways: Ways<'_>) -> (squeue::Entry, Option<Way>) {
        let fd = ways.cached().fd;
        let at = self.offset + self.done;
        let way = |memory: &[libc::iovec]| if self.indirect { ways.cached() } else { ways.best(at, memory) };
        let (entry, way) = match &self.work {
            Work::Read(buf) => {
                // `done < len` while a read is unfinished, so this stays inside the buffer.
                let rest = buf.as_ptr().as_ptr().wrapping_add(self.done as usize);
                let memory = [libc::iovec { iov_base: rest.cast(), iov_len: (self.len - self.done) as usize }];
                let way = way(&memory);
                (read(way, at, &memory), Some(way))
            }
            Work::ReadInto(vector) => {
                let way = way(vector.rest());
                (read(way, at, vector.rest()), Some(way))
            }
            Work::Write { vector, durable, .. } => {
                let way = way(vector.rest());
                (write(way, at, vector.rest(), *durable), Some(way))
            }
            Work::Flush => (opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), None),
            Work::Discard => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                (opcode::Fallocate::new(fd, self.len).offset(self.offset).mode(mode).build(), None)
            }
            Work::Zeroes(zeroes) => (zeroes.entry(fd, at, self.len - self.done), None),
        };
        self.direct = way.is_some_and(|way| way.direct);
        (entry, way)
    }

    /// Takes the kernel's result.
    pub(super) fn step(&mut self, result: i32) -> Step {
        if result < 0 {
            return self.failed(result.wrapping_neg());
        }
        if let Work::Zeroes(zeroes) = &mut self.work {
            self.tries = 0;
            return zeroes.step(result, self.len, &mut self.done);
        }
        let moves = matches!(self.work, Work::Read(_) | Work::ReadInto(_) | Work::Write { .. });
        if !moves {
            return Step::End(Ok(()));
        }
        let count = (result as u64).min(self.len - self.done);
        if count == 0 {
            // Nothing more comes although the device said it is that large: the image has been truncated.
            return Step::End(Err(BlockError::Io { errno: libc::EIO }));
        }
        self.tries = 0;
        self.done += count;
        if let Work::Write { vector, .. } | Work::ReadInto(vector) = &mut self.work {
            vector.advance(count as usize);
        }
        if self.done == self.len { Step::End(Ok(())) } else { Step::Again }
    }

    fn failed(&mut self, errno: i32) -> Step {
        if let Work::Zeroes(zeroes) = &mut self.work
            && errno == libc::EOPNOTSUPP
            && zeroes.fall_back()
        {
            return Step::Again;
        }
        match Errno::from_raw_os_error(errno) {
            // It asks for more alignment than it had told.
            Errno::INVAL if self.direct => {
                self.indirect = true;
                Step::Again
            }
            Errno::INTR | Errno::AGAIN if self.tries < MAX_TRIES => {
                self.tries += 1;
                Step::Again
            }
            // A discard is advice: what cannot do it leaves the content as it was.
            Errno::OPNOTSUPP if matches!(self.work, Work::Discard) => Step::End(Ok(())),
            Errno::NOSPC | Errno::DQUOT => Step::End(Err(BlockError::NoSpace)),
            _ => Step::End(Err(BlockError::Io { errno })),
        }
    }

    /// Whether its success means that something is durable.
    pub(super) fn syncs(&self) -> bool {
        match &self.work {
            Work::Flush => true,
            Work::Write { durable, .. } => *durable,
            Work::Zeroes(zeroes) => zeroes.is_durable(),
            Work::Read(_) | Work::ReadInto(_) | Work::Discard => false,
        }
    }

    /// The kernel's error, if the request's end with `error` may mean that data in the page cache was lost.
    pub(super) fn sync_failure(&self, error: &BlockError) -> Option<i32> {
        match error {
            _ if !self.syncs() => None,
            // The kernel could not read the payload, which is a peer's: nothing was written, so nothing was lost.
            BlockError::Io { errno: libc::EFAULT } => None,
            BlockError::Io { errno } => Some(*errno),
            BlockError::NoSpace => Some(libc::ENOSPC),
            _ => None,
        }
    }

    /// The payload that the request ends with, and how many bytes it has moved. Only after its last completion.
    pub(super) fn into_result(self) -> (Payload, u64) {
        match self.work {
            Work::Read(buf) => (buf.into_payload(), self.done),
            Work::ReadInto(_) | Work::Write { .. } => (Payload::new(), self.done),
            Work::Flush | Work::Discard | Work::Zeroes(_) => (Payload::new(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::file::direct::Registered;
    use fido_core::testing::private_memory;

    fn write(lens: &[usize]) -> Request {
        let memory = private_memory(1 << 20);
        let mut data = Payload::new();
        for len in lens {
            data.append(memory.alloc(*len).unwrap().into_payload());
        }
        let spans = memory.translate_all(&data).unwrap();
        Request::write(7, 4096, data, spans, false)
    }

    fn rest(request: &Request) -> Vec<usize> {
        match &request.work {
            Work::Write { vector, .. } => vector.rest().iter().map(|iovec| iovec.iov_len).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let mut request = write(&[100, 200, 300]);
        assert!(matches!(request.step(150), Step::Again));
        assert_eq!(rest(&request), [150, 300]);
        assert!(matches!(request.step(150), Step::Again));
        assert_eq!(rest(&request), [300]);
        assert!(matches!(request.step(299), Step::Again));
        assert_eq!(rest(&request), [1]);
        assert!(matches!(request.step(1), Step::End(Ok(()))));
        assert_eq!(request.into_result().1, 600);
    }

    #[test]
    fn a_result_beyond_the_request_is_cut() {
        let mut request = write(&[100]);
        assert!(matches!(request.step(i32::MAX), Step::End(Ok(()))));
        assert_eq!(request.into_result().1, 100);
    }

    #[test]
    fn what_is_refused_directly_goes_through_the_page_cache() {
        let mut request = write(&[100]);
        request.direct = true;
        assert!(matches!(request.step(-libc::EINVAL), Step::Again));
        let nothing = Registered::none();
        let (_, way) = request.entry(Ways { cached: -1, direct: None, registered: &nothing });
        assert!(way.is_some_and(|way| !way.direct));
        assert!(matches!(request.step(-libc::EINVAL), Step::End(Err(BlockError::Io { errno: libc::EINVAL }))));
    }

    #[test]
    fn errors_are_told_apart() {
        let end = |request: &mut Request, errno: i32| match request.step(-errno) {
            Step::End(result) => result,
            Step::Again => panic!("tried again after {errno}"),
        };
        assert_eq!(end(&mut write(&[1]), libc::ENOSPC), Err(BlockError::NoSpace));
        assert_eq!(end(&mut write(&[1]), libc::EDQUOT), Err(BlockError::NoSpace));
        assert_eq!(end(&mut write(&[1]), libc::EIO), Err(BlockError::Io { errno: libc::EIO }));
        assert_eq!(end(&mut Request::discard(1, 0, 1), libc::EOPNOTSUPP), Ok(()));
        assert_eq!(end(&mut Request::flush(1), libc::EOPNOTSUPP), Err(BlockError::Io { errno: libc::EOPNOTSUPP }));
    }

    #[test]
    fn only_what_was_to_be_durable_and_reached_the_file_counts_as_lost() {
        let io = |errno| BlockError::Io { errno };
        let mut durable = write(&[1]);
        assert_eq!(durable.sync_failure(&io(libc::EIO)), None, "a flush is to tell");
        if let Work::Write { durable, .. } = &mut durable.work {
            *durable = true;
        }
        for request in [&durable, &Request::flush(1)] {
            assert_eq!(request.sync_failure(&io(libc::EIO)), Some(libc::EIO));
            assert_eq!(request.sync_failure(&BlockError::NoSpace), Some(libc::ENOSPC));
            assert_eq!(request.sync_failure(&io(libc::EFAULT)), None, "a peer's memory is not the disk");
        }
        assert_eq!(Request::discard(1, 0, 1).sync_failure(&io(libc::EIO)), None);
    }

    #[test]
    fn an_interrupted_request_is_tried_again_but_not_for_ever() {
        let mut request = write(&[100]);
        for _ in 0..MAX_TRIES {
            assert!(matches!(request.step(-libc::EINTR), Step::Again));
        }
        assert!(matches!(request.step(-libc::EAGAIN), Step::End(Err(BlockError::Io { errno: libc::EAGAIN }))));
        assert!(matches!(request.step(50), Step::Again), "progress counts anew");
        assert!(matches!(request.step(-libc::EINTR), Step::Again));
    }

    #[test]
    fn no_progress_is_an_error() {
        let mut request = write(&[100]);
        assert!(matches!(request.step(0), Step::End(Err(BlockError::Io { errno: libc::EIO }))));
    }

    #[test]
    fn zeroes_fall_back_from_way_to_way() {
        let mut request = Request::zeroes(1, 0, (8 << 20) + 512, false, true);
        for _ in 0..2 {
            assert!(matches!(request.step(-libc::EOPNOTSUPP), Step::Again));
        }
        assert!(!request.syncs());
        for count in [4 << 20, 1 << 20, 3 << 20] {
            assert!(matches!(request.step(count), Step::Again));
        }
        assert!(matches!(request.step(512), Step::End(Ok(()))));
        let mut request = Request::zeroes(1, 0, 512, true, false);
        assert!(matches!(request.step(0), Step::Again), "a sync follows");
        assert!(matches!(request.step(-libc::EINTR), Step::Again));
        assert!(matches!(request.step(0), Step::End(Ok(()))));
        assert!(request.syncs());
        let mut request = Request::zeroes(1, 0, 512, true, false);
        assert!(matches!(request.step(-libc::EOPNOTSUPP), Step::Again));
        let again = request.step(-libc::EOPNOTSUPP);
        assert!(matches!(again, Step::End(Err(BlockError::Io { errno: libc::EOPNOTSUPP }))), "writing is the last way");
    }
}
