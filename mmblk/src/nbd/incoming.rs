//! A byte stream received straight into the own arena: headers are copied out of it, payload is lent where it lies.
//!
//! So payload is never copied, however it falls into buffers and calls: a payload that crosses from one buffer to the
//! next has a segment in each. A buffer is used again when nothing of it is on loan any more. A fresh buffer begins so
//! that the payload of a single request lies on a page boundary: a device that wants that (`O_DIRECT`) gets it whenever
//! requests come one by one.

use std::io;
use std::os::fd::AsFd;

use fido_core::heap::Filling;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::socket;

/// The first buffer's size, and that of one in which little arrives.
const FIRST_BYTES: usize = 64 << 10;
/// The largest buffer, of which payloads are made that are larger still.
const LARGEST_BYTES: usize = 1 << 20;
/// The least room that is worth a system call.
const LEAST_ROOM: usize = 4 << 10;
const PAGE: usize = 4 << 10;

/// What came of receiving.
#[derive(Debug)]
pub enum Received {
    /// Bytes, to be taken, lent or skipped.
    Some,
    /// None now.
    Nothing,
    /// No more, ever.
    End,
    /// Too much is on loan, or the arena has no room: try again when something has come back.
    Blocked,
    /// The connection failed.
    Failed(io::Error),
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Incoming {
    filling: Option<Filling>,
    /// Bytes in `filling` that have arrived and nobody has taken.
    pending: usize,
    /// Buffers that are full, as long as something of them is on loan.
    retired: Vec<Filling>,
    /// The most bytes of buffers.
    limit: usize,
    /// Bytes before the first payload, which is to lie on a page boundary.
    header: usize,
    next_bytes: usize,
    /// The socket may have more: the last call filled the buffer.
    more: bool,
}

impl Incoming {
    /// Receives into buffers of at most `limit` bytes together. `header` bytes are expected before a payload.
    pub fn new(limit: usize, header: usize) -> Self {
        let header = header.min(PAGE);
        Self { filling: None, pending: 0, retired: Vec::new(), limit, header, next_bytes: FIRST_BYTES, more: false }
    }

    /// How many bytes have arrived that nobody has taken.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Whether the last call filled its buffer, so that there may be more in the socket.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Receives once, if nothing is pending. `expected` bytes of payload are known to come.
    pub fn receive(&mut self, fd: &impl AsFd, expected: usize, memory: &Memory) -> Received {
        if self.pending > 0 {
            return Received::Some;
        }
        let Some(filling) = self.room(expected, memory) else { return Received::Blocked };
        let room = filling.room();
        match socket::receive(fd, filling, memory.stats()) {
            Ok(0) => Received::End,
            Ok(count) => {
                self.pending = count.min(room);
                self.more = self.pending == room;
                if self.more {
                    self.next_bytes = (4 * self.next_bytes).min(LARGEST_BYTES / 4);
                }
                Received::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.more = false;
                Received::Nothing
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.more = true;
                Received::Nothing
            }
            Err(error) => Received::Failed(error),
        }
    }

    /// Copies pending bytes, of a header, to `out`; returns how many.
    pub fn take(&mut self, out: &mut [u8], memory: &Memory) -> usize {
        let Some(filling) = self.filling.as_mut() else { return 0 };
        let wanted = out.len().min(self.pending);
        let count = filling.take(&mut out[..wanted]);
        memory.stats().header_bytes_copied.add(count as u64);
        self.pending -= count;
        count
    }

    /// Lends pending bytes, at most `len`.
    pub fn lend(&mut self, len: usize) -> Payload {
        let Some(filling) = self.filling.as_mut() else { return Payload::new() };
        let len = len.min(self.pending);
        self.pending -= len;
        filling.lend(len)
    }

    /// Drops pending bytes, at most `len`; returns how many.
    pub fn skip(&mut self, len: usize) -> usize {
        let Some(filling) = self.filling.as_mut() else { return 0 };
        let len = len.min(self.pending);
        self.pending -= len;
        filling.skip(len);
        len
    }

    /// Receives into private memory what is not worth a buffer or finds none: a header, or payload that is to be
    /// dropped. Only while nothing is pending.
    pub fn receive_aside(&mut self, fd: &impl AsFd, out: &mut [u8], memory: &Memory) -> io::Result<usize> {
        if self.pending > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        memory.stats().syscalls.add(1);
        let room = out.len();
        let (count, _) = rustix::net::recv(fd, out, rustix::net::RecvFlags::DONTWAIT)?;
        self.more = count == room;
        Ok(count)
    }

    /// Lets go of buffers of which nothing is on loan. Only while nothing is pending.
    pub fn shrink(&mut self) {
        if self.pending == 0 {
            self.retired.extend(self.filling.take());
            self.retired.retain_mut(|filling| !filling.rewind());
        }
    }

    /// A buffer with room. Only while nothing is pending.
    fn room(&mut self, expected: usize, memory: &Memory) -> Option<&mut Filling> {
        let header = self.header;
        let fits = self.filling.as_mut().is_some_and(|filling| {
            if filling.rewind() {
                align(filling, header, expected);
            }
            filling.room() >= LEAST_ROOM.min(expected.max(1))
        });
        if !fits {
            self.retired.extend(self.filling.take());
            let bytes = self.next_bytes.max(expected.next_multiple_of(PAGE) + PAGE).min(LARGEST_BYTES);
            let mut filling = self.recycled(bytes).or_else(|| self.fresh(bytes, memory))?;
            align(&mut filling, header, expected);
            self.filling = Some(filling);
        }
        self.filling.as_mut()
    }

    /// A retired buffer of at least that size of which nothing is on loan. All others that are free are freed.
    fn recycled(&mut self, bytes: usize) -> Option<Filling> {
        let mut found = None;
        self.retired.retain_mut(|filling| filling.len() >= bytes || !filling.rewind());
        if let Some(index) = self.retired.iter_mut().position(|filling| filling.rewind()) {
            found = Some(self.retired.swap_remove(index));
        }
        self.retired.retain_mut(|filling| !filling.rewind());
        found
    }

    /// A new buffer of that size, or of as much of it as there is.
    fn fresh(&self, mut bytes: usize, memory: &Memory) -> Option<Filling> {
        let used: usize = self.retired.iter().map(Filling::len).sum();
        loop {
            if used + bytes <= self.limit
                && let Ok(buf) = memory.alloc(bytes)
            {
                return Some(Filling::new(buf));
            }
            if bytes <= FIRST_BYTES {
                return None;
            }
            bytes = (bytes / 4).max(FIRST_BYTES);
        }
    }
}

/// Leaves out the beginning of an empty buffer: what comes first is a header, or the rest of a payload.
fn align(filling: &mut Filling, header: usize, expected: usize) {
    if expected == 0 && filling.len() >= 2 * PAGE {
        filling.skip(PAGE - header);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use fido_core::testing::private_memory;

    fn bytes(memory: &Memory, payload: &Payload) -> Vec<u8> {
        let mut out = vec![0; payload.len() as usize];
        assert_eq!(memory.read_header(payload, 0, &mut out).unwrap(), out.len());
        out
    }

    #[test]
    fn payload_over_many_buffers_is_lent_whole() {
        let memory = private_memory(8 << 20);
        let (mut a, b) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..3u32 << 20).map(|i| (i >> 3) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || {
            a.write_all(b"head").unwrap();
            a.write_all(&copy).unwrap();
            a
        });
        let mut incoming = Incoming::new(8 << 20, 4);
        let (mut head, mut have, mut body) = ([0; 4], 0, Payload::new());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while body.len() < sent.len() as u64 {
            assert!(std::time::Instant::now() < deadline, "it does not come");
            let left = sent.len() - body.len() as usize;
            match incoming.receive(&b, if have < 4 { 0 } else { left }, &memory) {
                Received::Some => {
                    have += incoming.take(&mut head[have..], &memory);
                    body.append(incoming.lend(left));
                }
                Received::Nothing => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
        drop(writer.join().unwrap());
        assert!(head == *b"head" && bytes(&memory, &body) == sent);
        assert!(body.parts().len() < 64, "{} parts", body.parts().len());
        assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
        drop(body);
        assert!(matches!(incoming.receive(&b, 0, &memory), Received::End));
    }

    #[test]
    fn a_single_payload_lies_on_a_page_boundary_and_its_buffer_is_used_again() {
        let memory = private_memory(8 << 20);
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::new(8 << 20, 4);
        let mut places = Vec::new();
        for _ in 0..100 {
            a.write_all(&[7; 4100]).unwrap();
            assert!(matches!(incoming.receive(&b, 0, &memory), Received::Some));
            incoming.take(&mut [0; 4], &memory);
            let body = incoming.lend(4096);
            places.extend(body.segments().map(|segment| segment.addr.offset()));
        }
        places.dedup();
        assert!(places.len() == 1 && places[0] % 4096 == 0, "{places:?}");
    }

    #[test]
    fn the_limit_holds_until_something_comes_back() {
        let memory = private_memory(8 << 20);
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::new(FIRST_BYTES, 0);
        a.write_all(&[7; FIRST_BYTES + 1]).unwrap();
        let mut held = Vec::new();
        while let Received::Some = incoming.receive(&b, 0, &memory) {
            held.push(incoming.lend(usize::MAX));
        }
        assert!(matches!(incoming.receive(&b, 0, &memory), Received::Blocked));
        let mut total: usize = held.drain(..).map(|piece| piece.len() as usize).sum();
        assert!(total <= FIRST_BYTES);
        while total < FIRST_BYTES + 1 {
            assert!(matches!(incoming.receive(&b, 0, &memory), Received::Some));
            total += incoming.skip(usize::MAX);
        }
    }
}
