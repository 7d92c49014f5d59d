//! What is still to be done to a frame: its checksum, and cutting it into segments.
//!
//! Inside the appliance bytes do not change on their way, so nobody computes a checksum and nobody cuts a large segment
//! into frames: the marks travel with the frame, and the edge (a TAP device, a guest, a network card) does it. Their
//! meaning is that of the header of virtio's network devices (Virtual I/O Device 1.2, section 5.1.6), which the edge
//! takes as it is; [`VirtioHeader`] is that header.

#[cfg(test)]
mod tests;

/// Bytes of a [`VirtioHeader`] as version 1 of virtio has it, with the number of buffers.
pub const VIRTIO_HEADER_BYTES: usize = 12;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;
/// Bytes of a checksum of TCP and UDP.
const CHECKSUM_BYTES: u64 = 2;

/// The state of a frame's TCP or UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// It is in the frame, and nobody vouches for it.
    #[default]
    Complete,
    /// It has been verified, or the bytes never left the memory of this appliance: it need not be looked at.
    Valid,
    /// It is to be computed from `start` to the end of the frame and put at `start + offset`, where the sum of the
    /// pseudo header is now.
    Needed {
        /// Where the transport's header begins in the frame, in bytes.
        start: u16,
        /// Where the checksum is in that header.
        offset: u16,
    },
}

/// Into what a large frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams over either.
    Udp,
}

/// That a frame is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Of which transport.
    pub kind: SegmentationKind,
    /// The bytes of payload in each segment.
    pub size: u16,
    /// The bytes of all headers, which each segment repeats. Of a peer it is a hint: who cuts counts for itself.
    pub header: u16,
    /// Whether the TCP header says that congestion was met (ECN).
    pub ecn: bool,
}

/// What is still to be done to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its segmentation; then the checksum is needed, too.
    pub segmentation: Option<Segmentation>,
}

/// Marks that do not fit their frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The checksum would lie outside the frame.
    #[error("a checksum from byte {start} on, to be put {offset} bytes further, in a frame of {len}")]
    Checksum {
        /// Where it begins.
        start: u16,
        /// Where it is to be put.
        offset: u16,
        /// The frame's length.
        len: u64,
    },
    /// The segments would be empty or longer than the port's MTU.
    #[error("segments of {size} bytes; they must have at least 1 and, with their headers, at most the MTU of {mtu}")]
    Size {
        /// The bytes in each segment.
        size: u16,
        /// The port's MTU.
        mtu: usize,
    },
    /// The headers are longer than the frame.
    #[error("headers of {header} bytes in a frame of {len}")]
    Header {
        /// The bytes of the headers.
        header: u16,
        /// The frame's length.
        len: u64,
    },
    /// A frame that is cut needs new checksums.
    #[error("a frame to be cut into segments does not say where their checksums are")]
    CutWithoutChecksum,
    /// No such kind of segmentation.
    #[error("an unknown kind of segmentation: {0:#04x}")]
    Kind(u8),
}

impl Offload {
    /// Whether the marks fit a frame of `len` bytes on a port with that MTU.
    ///
    /// # Errors
    /// [`OffloadError`].
    pub fn check(&self, len: u64, mtu: usize) -> Result<(), OffloadError> {
        if let Checksum::Needed { start, offset } = self.checksum
            && u64::from(start) + u64::from(offset) + CHECKSUM_BYTES > len
        {
            return Err(OffloadError::Checksum { start, offset, len });
        }
        let Some(Segmentation { size, header, .. }) = self.segmentation else { return Ok(()) };
        if !matches!(self.checksum, Checksum::Needed { .. }) {
            return Err(OffloadError::CutWithoutChecksum);
        }
        if size == 0 || usize::from(size) > mtu {
            return Err(OffloadError::Size { size, mtu });
        }
        if u64::from(header) > len {
            return Err(OffloadError::Header { header, len });
        }
        Ok(())
    }
}

/// The header that virtio's network devices put before a frame, in host form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// Whether a checksum is needed, or valid.
    pub flags: u8,
    /// The kind of segmentation.
    pub gso_type: u8,
    /// The bytes of all headers.
    pub hdr_len: u16,
    /// The bytes in each segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where in what begins there it is to be put.
    pub csum_offset: u16,
    /// How many buffers the frame takes (virtio 1 only).
    pub num_buffers: u16,
}

impl VirtioHeader {
    /// As it lies in memory: little-endian.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER_BYTES] {
        let mut bytes = [0; VIRTIO_HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// From memory.
    pub fn from_bytes(bytes: [u8; VIRTIO_HEADER_BYTES]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }

    /// In a message of a lane, with a word of the message's own; the number of buffers is not among them.
    pub(crate) fn to_words(self, own: u32) -> (u8, [u32; 4]) {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let sizes = pair(self.hdr_len, self.gso_size);
        let places = pair(self.csum_start, self.csum_offset);
        (self.flags, [u32::from(self.gso_type), sizes, places, own])
    }

    /// From a message of a lane, with the message's own word.
    pub(crate) fn from_words(flags: u8, args: [u32; 4]) -> (Self, u32) {
        let header = Self {
            flags,
            gso_type: args[0] as u8,
            hdr_len: args[1] as u16,
            gso_size: (args[1] >> 16) as u16,
            csum_start: args[2] as u16,
            csum_offset: (args[2] >> 16) as u16,
            num_buffers: 0,
        };
        (header, args[3])
    }
}

impl From<Offload> for VirtioHeader {
    fn from(offload: Offload) -> Self {
        let mut header = Self { num_buffers: 1, ..Self::default() };
        match offload.checksum {
            Checksum::Complete => {}
            Checksum::Valid => header.flags = DATA_VALID,
            Checksum::Needed { start, offset } => {
                header.flags = NEEDS_CHECKSUM;
                (header.csum_start, header.csum_offset) = (start, offset);
            }
        }
        if let Some(cut) = offload.segmentation {
            header.gso_type = match cut.kind {
                SegmentationKind::Tcp4 => GSO_TCP4,
                SegmentationKind::Tcp6 => GSO_TCP6,
                SegmentationKind::Udp => GSO_UDP,
            };
            header.gso_type |= if cut.ecn { GSO_ECN } else { 0 };
            (header.hdr_len, header.gso_size) = (cut.header, cut.size);
        }
        header
    }
}

impl TryFrom<VirtioHeader> for Offload {
    type Error = OffloadError;

    /// # Errors
    /// [`OffloadError::Kind`]. Whether the marks fit the frame is for [`Offload::check`] to say.
    fn try_from(header: VirtioHeader) -> Result<Self, OffloadError> {
        let checksum = if header.flags & NEEDS_CHECKSUM != 0 {
            Checksum::Needed { start: header.csum_start, offset: header.csum_offset }
        } else if header.flags & DATA_VALID != 0 {
            Checksum::Valid
        } else {
            Checksum::Complete
        };
        let kind = match header.gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP4 => Some(SegmentationKind::Tcp4),
            GSO_TCP6 => Some(SegmentationKind::Tcp6),
            GSO_UDP => Some(SegmentationKind::Udp),
            _ => return Err(OffloadError::Kind(header.gso_type)),
        };
        let ecn = header.gso_type & GSO_ECN != 0;
        let segmentation = kind.map(|kind| Segmentation { kind, size: header.gso_size, header: header.hdr_len, ecn });
        Ok(Self { checksum, segmentation })
    }
}
