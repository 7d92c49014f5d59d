//! TAP: a network interface of the Linux kernel as a [`FramePort`], so that unmodified programs use MMNet.
//!
//! Frames go between the kernel and arenas: one is read into fresh buffers of the own arena and lent on, one is written
//! from whatever windows its segments lie in. User space touches no byte of them. Before each goes the header of virtio's
//! network devices, in which the kernel says what is still to be done to a frame and is told so ([`crate::frame::Offload`]): large
//! frames cross the appliance whole and without checksums, in both directions.
//!
//! A frame that arrives takes as little of the heap as it can: small buffers for what fits the MTU, and pieces for what
//! is larger. Without room in the heap frames are taken from the kernel and dropped, counted.
//!
//! What it does not do: give the interface an address or set it up (`ip` does), or wait for anything.

mod device;
pub mod fuzzing;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fido_core::addr::DomainId;
use fido_core::heap::ArenaBuf;
use fido_core::memory::Memory;
use fido_core::packets;
use fido_core::payload::Payload;
use fido_core::socket::Piece;
use fido_core::wait::{Source, WakeId};

pub use device::{MAX_QUEUES, TapError, TapOptions};

use crate::frame::{
    Frame, FrameCounts, FrameError, FramePort, HEADER_BYTES, MAX_FRAME_BYTES, Offload, QUEUE, TAG_BYTES,
    VIRTIO_HEADER_BYTES, VirtioHeader, check,
};

/// The least and the most bytes of the first buffer of a frame.
const SMALL_BYTES: std::ops::RangeInclusive<usize> = 2048..=16_384;
/// Bytes of each further buffer. With a small one, two of them hold the largest frame, and a message of a lane carries
/// three segments without a list.
const PIECE_BYTES: usize = 32_768;

/// One queue of a TAP device.
#[derive(Debug)]
pub struct TapPort {
    memory: Memory,
    queue: OwnedFd,
    name: String,
    mtu: usize,
    /// How long the buffers of the next frame are.
    sizes: Vec<usize>,
    /// Those of them that are there: the last ones, in the order of `sizes`.
    buffers: Vec<ArenaBuf>,
    counts: FrameCounts,
    broken: Option<i32>,
    id: WakeId,
}

impl TapPort {
    /// Opens one queue of a device.
    ///
    /// # Errors
    /// [`TapError`], with what to do about it.
    pub fn open(options: &TapOptions, memory: Memory) -> Result<Self, TapError> {
        let mut ports = Self::open_queues(options, vec![memory])?;
        ports.pop().ok_or(TapError::Queues(0))
    }

    /// Opens as many queues of a device as there are memories (clones of the domain's: one for each thread). The kernel
    /// keeps a flow on one queue.
    ///
    /// # Errors
    /// [`TapError`], with what to do about it.
    pub fn open_queues(options: &TapOptions, memories: Vec<Memory>) -> Result<Vec<Self>, TapError> {
        let opened = device::open(options, memories.len())?;
        tracing::info!(name = opened.name, mtu = opened.mtu, udp = opened.udp, "the TAP device is open");
        let port = |(queue, memory)| Self::over(queue, &opened.name, opened.mtu, options.offload, memory);
        Ok(opened.queues.into_iter().zip(memories).map(port).collect())
    }

    /// A port over what reads and writes frames as a queue does.
    fn over(queue: OwnedFd, name: &str, mtu: usize, offload: bool, memory: Memory) -> Self {
        Self {
            memory,
            queue,
            name: name.into(),
            mtu,
            sizes: sizes(mtu, offload),
            buffers: Vec::new(),
            counts: FrameCounts::default(),
            broken: None,
            id: WakeId::unique(),
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel said when the device had gone; from then on nothing comes and nothing goes.
    pub fn failure(&self) -> Option<io::Error> {
        self.broken.map(io::Error::from_raw_os_error)
    }

    /// Gets the buffers for the next frame; false if there is no room.
    fn refill(&mut self) -> bool {
        let missing = self.sizes.len() - self.buffers.len();
        for size in self.sizes[..missing].iter().rev() {
            let Ok(buffer) = self.memory.alloc(*size) else { return false };
            self.buffers.insert(0, buffer);
        }
        true
    }

    /// Takes one frame off the kernel. `None` if there is none, or only ones that are not to be had.
    fn take(&mut self) -> Option<Frame> {
        for _ in 0..QUEUE {
            let has_room = self.refill();
            let mut header = [0; VIRTIO_HEADER_BYTES];
            let buffers = if has_room { &mut self.buffers[..] } else { &mut [] };
            let read = packets::read(&self.queue, &mut header, buffers, self.memory.stats());
            let count = match read {
                Ok(count) => count,
                // A frame that was cut off.
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 0,
                Err(error) => {
                    self.note(&error);
                    return None;
                }
            };
            if !has_room {
                self.counts.dropped_receiving += 1;
                continue;
            }
            let payload = self.filled(count.saturating_sub(VIRTIO_HEADER_BYTES));
            match marked(header, &payload, self.mtu) {
                Ok(offload) => return Some(Frame { offload, payload }),
                Err(error) => {
                    tracing::debug!(name = self.name, %error, "the kernel gives what is no frame of this port");
                    self.counts.refused += 1;
                }
            }
        }
        None
    }

    /// The first `len` bytes of the buffers, which leave this port.
    fn filled(&mut self, len: usize) -> Payload {
        let mut payload = Payload::new();
        let mut left = len;
        let used = self.buffers.iter().take_while(|buffer| {
            let begun = left > 0;
            left = left.saturating_sub(buffer.len());
            begun
        });
        let used = used.count();
        left = len;
        for mut buffer in self.buffers.drain(..used) {
            let count = left.min(buffer.len());
            buffer.truncate(count);
            left -= count;
            payload.append(buffer.into_payload());
        }
        payload
    }

    fn write(&mut self, frame: &Frame) -> io::Result<()> {
        let spans = self.memory.translate_all(&frame.payload).map_err(io::Error::other)?;
        let header = VirtioHeader::from(frame.offload).to_bytes();
        let pieces = spans.iter().map(|span| Piece::Span { span, skip: 0 });
        let pieces = std::iter::once(Piece::Bytes(&header)).chain(pieces);
        packets::write(&self.queue, pieces, self.memory.stats()).map(drop)
    }

    /// Remembers an error after which the device is of no use.
    fn note(&mut self, error: &io::Error) {
        if let Some(code @ (libc::EBADFD | libc::EBADF | libc::ENODEV)) = error.raw_os_error() {
            tracing::error!(name = self.name, %error, "the TAP device is gone");
            self.broken = Some(code);
        }
    }
}

/// How long the buffers of a frame are.
fn sizes(mtu: usize, offload: bool) -> Vec<usize> {
    let frame = mtu + HEADER_BYTES + TAG_BYTES;
    let small = frame.next_power_of_two().clamp(*SMALL_BYTES.start(), *SMALL_BYTES.end());
    let most = if offload { MAX_FRAME_BYTES } else { frame };
    let pieces = most.saturating_sub(small).div_ceil(PIECE_BYTES);
    std::iter::once(small).chain(std::iter::repeat_n(PIECE_BYTES, pieces)).collect()
}

/// The marks of a frame that the kernel gives.
fn marked(header: [u8; VIRTIO_HEADER_BYTES], payload: &Payload, mtu: usize) -> Result<Offload, FrameError> {
    let offload = Offload::try_from(VirtioHeader::from_bytes(header))?;
    check(payload.len(), &offload, mtu)?;
    Ok(offload)
}

impl FramePort for TapPort {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn counts(&self) -> FrameCounts {
        self.counts
    }

    fn has_room(&self) -> bool {
        self.broken.is_none()
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        check(frame.payload.len(), &frame.offload, self.mtu)?;
        match self.write(&frame) {
            Ok(()) => {
                self.counts.sent += 1;
                self.counts.sent_bytes += frame.payload.len();
            }
            Err(error) => {
                tracing::debug!(name = self.name, %error, "the kernel does not take a frame");
                self.note(&error);
                self.counts.dropped_sending += 1;
            }
        }
        Ok(())
    }

    fn recv(&mut self) -> Option<Frame> {
        let frame = self.take()?;
        self.counts.received += 1;
        self.counts.received_bytes += frame.payload.len();
        Some(frame)
    }

    fn flush(&mut self) {}

    /// Nothing that is sent stays here, and what is received lies in the own arena.
    fn forget(&mut self, _dead: DomainId) {}
}

impl Source for TapPort {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.id)
    }
}
