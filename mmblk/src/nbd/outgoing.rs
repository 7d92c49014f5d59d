//! What is to be sent to one peer: requests or replies, their payload by address.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use fido_core::addr::DomainId;
use fido_core::memory::{CopyError, Memory};
use fido_core::payload::Payload;
use fido_core::socket::{self, MAX_PIECES, Piece};
use fido_core::window::{AddressError, Span};

/// The most bytes handed to the kernel in one call; what is left waits until all others had their turn.
const SEND_BYTES: usize = 1 << 20;
/// The longest head of a message: a request, or a chunk's and an offset.
const HEAD_BYTES: usize = 28;

/// A message.
#[derive(Debug)]
struct Message {
    head: [u8; HEAD_BYTES],
    head_len: usize,
    /// What follows the head and is no payload: extents, a message.
    text: Vec<u8>,
    data: Payload,
    spans: Vec<Span>,
    /// Bytes of it that the kernel has.
    sent: usize,
}

impl Message {
    fn len(&self) -> usize {
        self.head_len + self.text.len() + self.data.len() as usize
    }

    /// What is not sent yet.
    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let own = [self.head.get(..self.head_len).unwrap_or_default(), &self.text];
        let mut skip = self.sent;
        let own = own.map(|bytes| {
            let (gone, rest) = bytes.split_at(skip.min(bytes.len()));
            skip -= gone.len();
            Piece::Bytes(rest)
        });
        let spans = self.spans.iter().map(move |span| {
            let gone = skip.min(span.len());
            skip -= gone;
            Piece::Span { span, skip: gone }
        });
        own.into_iter().chain(spans).filter(|piece| !piece.is_empty())
    }
}

/// The messages to one peer, in order.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    queue: VecDeque<Message>,
    /// Bytes of payload in the queue.
    payload: u64,
}

impl Outgoing {
    /// How many messages are not yet with the kernel.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many bytes of payload they have.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload
    }

    /// Queues a message: a head of at most 28 bytes, own bytes, and payload.
    ///
    /// # Errors
    /// [`AddressError`] if there is no memory behind the payload; nothing is queued then.
    pub(crate) fn push(
        &mut self,
        head: &[u8],
        text: Vec<u8>,
        data: Payload,
        memory: &Memory,
    ) -> Result<(), AddressError> {
        let spans = if data.is_empty() { Vec::new() } else { memory.translate_all(&data)? };
        let mut message = Message { head: [0; HEAD_BYTES], head_len: 0, text, data, spans, sent: 0 };
        for (to, from) in message.head.iter_mut().zip(head) {
            *to = *from;
            message.head_len += 1;
        }
        self.payload += message.data.len();
        self.queue.push_back(message);
        Ok(())
    }

    /// Sends once. Payload whose last byte the kernel has is dropped at once.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if the socket takes no more now.
    pub(crate) fn send(&mut self, fd: &impl AsFd, memory: &Memory) -> io::Result<()> {
        let mut bytes = 0;
        let bounded = |piece: &Piece<'_>| {
            let go_on = bytes < SEND_BYTES;
            bytes += piece.len();
            go_on
        };
        // More messages than pieces are never looked at.
        let pieces = self.queue.iter().take(MAX_PIECES).flat_map(Message::pieces).take_while(bounded);
        let mut count = socket::send(fd, pieces, memory.stats())?;
        while let Some(front) = self.queue.front_mut() {
            let left = front.len() - front.sent;
            if count < left {
                front.sent += count;
                break;
            }
            count -= left;
            self.payload -= front.data.len();
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Copies payload that lies in the arena of `dead` into own buffers: a slow client must not hold up its fence.
    ///
    /// # Errors
    /// [`CopyError`] if there is no room; what has not been copied stays.
    pub(crate) fn rescue(&mut self, dead: DomainId, memory: &Memory) -> Result<(), CopyError> {
        for message in &mut self.queue {
            if message.data.segments().any(|segment| segment.addr.domain() == dead)
                && let Some(copy) = memory.copy_in(&message.data)?
            {
                let data = copy.into_payload();
                message.spans = memory.translate_all(&data)?;
                message.data = data;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use fido_core::testing::private_memory;

    #[test]
    fn replies_go_out_whole_however_little_the_socket_takes() {
        let memory = private_memory(8 << 20);
        let (a, mut b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        let (mut out, mut expected) = (Outgoing::default(), Vec::new());
        for index in 0..40usize {
            let mut data = Payload::new();
            let mut bytes = vec![index as u8; 16];
            for len in [50_000 + index, 3, 70_001] {
                let mut buf = memory.alloc(len).unwrap();
                buf.as_mut_slice().fill(len as u8);
                bytes.extend(buf.as_slice());
                data.append(buf.into_payload());
            }
            out.push(&[index as u8; 12], vec![index as u8; 4], data, &memory).unwrap();
            expected.extend(bytes);
        }
        let (mut got, mut some) = (Vec::<u8>::new(), [0; 9_999]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while got.len() < expected.len() {
            assert!(std::time::Instant::now() < deadline, "it does not come");
            match out.send(&a, &memory) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let count = b.read(&mut some).unwrap_or(0);
            got.extend(&some[..count]);
        }
        assert!(got == expected);
        assert_eq!((out.len(), out.payload_bytes(), memory.heap().used()), (0, 0, 0));
        assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    }

    #[test]
    fn what_the_dead_have_lent_is_copied_and_the_rest_of_a_reply_stays_right() {
        let (memory, dead) = (private_memory(8 << 20), private_memory(8 << 20));
        memory.windows().insert(dead.arena().window().clone());
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut buf = dead.alloc(2 << 20).unwrap();
        buf.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at >> 8) as u8);
        let expected = buf.as_slice().to_vec();
        let mut out = Outgoing::default();
        out.push(b"head", Vec::new(), buf.into_payload(), &memory).unwrap();
        out.send(&a, &memory).unwrap();
        assert_eq!(out.len(), 1, "it does not fit into the socket");
        out.rescue(dead.id(), &memory).unwrap();
        assert_eq!(dead.heap().used(), 0, "the loan is back");
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 4 + expected.len()];
            b.read_exact(&mut got).unwrap();
            assert!(got[4..] == expected);
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while out.len() > 0 {
            assert!(std::time::Instant::now() < deadline, "it does not go");
            let _ = out.send(&a, &memory);
        }
        reader.join().unwrap();
    }
}
