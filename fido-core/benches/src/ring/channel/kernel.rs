//! What the kernel offers, used as it is meant to be: blocking.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use fido_core::ring::{MESSAGE_WORDS, Words};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::futex;

use super::Channel;
use crate::Failure;
use crate::ring::end::End;
use crate::ring::shared::directions;
use crate::ring::spin::PATIENCE;

/// Bytes of a message on the way: a slot's worth.
const BYTES: usize = 64;
/// As much is read at once from a stream of bytes.
const READ_BYTES: usize = 64 * BYTES;

fn encode(message: &Words) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (place, word) in bytes.chunks_exact_mut(4).zip(message) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Words {
    let mut message = [0; MESSAGE_WORDS];
    for (word, place) in message.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = place.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    message
}

/// A packet for each message.
pub struct Socket<'a>(BorrowedFd<'a>);

impl<'a> Socket<'a> {
    pub fn new(end: &'a End) -> Self {
        Self(end.kernel.socket.as_fd())
    }
}

impl Channel for Socket<'_> {
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        rustix::net::send(self.0, &encode(message), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let mut packet = [0; BYTES];
        match rustix::net::recv(self.0, &mut packet[..], RecvFlags::empty())? {
            (_, BYTES) => {
                *message = decode(&packet);
                Ok(())
            }
            (_, 0) => Err("the other side closed the socket".into()),
            (_, count) => Err(format!("a packet of {count} bytes").into()),
        }
    }
}

/// Messages in a stream of bytes; a batch is one write.
pub struct Bytes<'a> {
    input: BorrowedFd<'a>,
    output: BorrowedFd<'a>,
    out: Vec<u8>,
    read: Vec<u8>,
    taken: usize,
}

impl<'a> Bytes<'a> {
    pub fn pipe(end: &'a End) -> Self {
        Self::new(end.kernel.pipe_in.as_fd(), end.kernel.pipe_out.as_fd())
    }

    pub fn tcp(end: &'a End) -> Self {
        Self::new(end.kernel.tcp.as_fd(), end.kernel.tcp.as_fd())
    }

    fn new(input: BorrowedFd<'a>, output: BorrowedFd<'a>) -> Self {
        Self { input, output, out: Vec::new(), read: Vec::with_capacity(READ_BYTES), taken: 0 }
    }
}

impl Channel for Bytes<'_> {
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        self.out.extend_from_slice(&encode(message));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            let count = rustix::io::write(self.output, rest)?;
            rest = &rest[count..];
        }
        self.out.clear();
        Ok(())
    }

    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        while self.read.len() - self.taken < BYTES {
            self.read.drain(..self.taken);
            self.taken = 0;
            let mut bytes = [0; READ_BYTES];
            match rustix::io::read(self.input, &mut bytes[..])? {
                0 => return Err("the other side closed the stream".into()),
                count => self.read.extend_from_slice(&bytes[..count]),
            }
        }
        *message = decode(&self.read[self.taken..self.taken + BYTES]);
        self.taken += BYTES;
        Ok(())
    }
}

/// Wakes by an eventfd.
pub struct Event<'a> {
    end: &'a End,
    count: u32,
}

impl<'a> Event<'a> {
    pub fn new(end: &'a End) -> Self {
        Self { end, count: 0 }
    }
}

impl Channel for Event<'_> {
    fn send(&mut self, _: &Words) -> Result<(), Failure> {
        rustix::io::write(&self.end.kernel.other_event, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        rustix::io::read(&self.end.kernel.own_event, &mut [0; 8])?;
        *message = [self.count; MESSAGE_WORDS];
        self.count += 1;
        Ok(())
    }
}

/// Wakes by a futex on a word that counts, in memory that both sides write.
pub struct Futex<'a> {
    own: &'a AtomicU32,
    other: &'a AtomicU32,
    /// How often this side has been woken so far.
    woken: &'a mut u32,
    count: u32,
}

impl<'a> Futex<'a> {
    pub fn new(end: &'a mut End) -> Self {
        let (own, other) = directions(end.side);
        let futexes = &end.shared.layout().futexes;
        Self { own: &futexes[own].0, other: &futexes[other].0, woken: &mut end.foreign.woken, count: 0 }
    }
}

impl Channel for Futex<'_> {
    fn send(&mut self, _: &Words) -> Result<(), Failure> {
        self.own.fetch_add(1, Ordering::Release);
        futex::wake(self.own, futex::Flags::empty(), 1)?;
        Ok(())
    }

    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let patience = Timespec::try_from(PATIENCE)?;
        while self.other.load(Ordering::Acquire) == *self.woken {
            match futex::wait(self.other, futex::Flags::empty(), *self.woken, Some(&patience)) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(format!("no wake-up by futex: {error}").into()),
            }
        }
        *self.woken = self.woken.wrapping_add(1);
        *message = [self.count; MESSAGE_WORDS];
        self.count += 1;
        Ok(())
    }
}
