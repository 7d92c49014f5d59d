//! Virtual LANs: in which one a frame belongs, and tags (IEEE 802.1Q) put on and taken off by rearranging segments.

use fido_core::heap::HeapError;
use fido_core::memory::Memory;

use crate::frame::{Checksum, Frame, HEADER_BYTES, Offload, TAG_BYTES};

/// The type of a frame with a tag.
const TAGGED: [u8; 2] = [0x81, 0x00];
/// Where a tag is.
const TAG_AT: usize = 12;
/// The identifiers that a VLAN can have.
pub const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// What a port makes of VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// The stations behind it know of none; all that they send belongs to this one.
    Access(u16),
    /// It carries several, with tags.
    Trunk {
        /// Which ones; none named is all.
        vlans: Vec<u16>,
        /// To which a frame without a tag belongs; `None`: to none, it is dropped.
        native: Option<u16>,
    },
}

impl Membership {
    /// Of which VLAN a frame that arrives is; `None` if the port is not in it. A tag that names none (only a priority)
    /// counts as no tag.
    pub(super) fn of(&self, tag: Option<u16>) -> Option<u16> {
        let tag = tag.filter(|vlan| *vlan != 0);
        match (self, tag) {
            (Self::Access(vlan), None) => Some(*vlan),
            (Self::Access(_), Some(_)) => None,
            (Self::Trunk { native, .. }, None) => *native,
            (Self::Trunk { .. }, Some(vlan)) => self.carries(vlan).then_some(vlan),
        }
    }

    /// Whether frames of that VLAN leave by the port.
    pub(super) fn carries(&self, vlan: u16) -> bool {
        match self {
            Self::Access(own) => *own == vlan,
            Self::Trunk { vlans, native } => *native == Some(vlan) || vlans.is_empty() || vlans.contains(&vlan),
        }
    }

    /// Whether they leave with a tag.
    pub(super) fn tags(&self, vlan: u16) -> bool {
        matches!(self, Self::Trunk { native, .. } if *native != Some(vlan))
    }
}

/// A header as it was copied out of a frame: as much of it as there was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) bytes: [u8; HEADER_BYTES + TAG_BYTES],
    pub(super) len: usize,
}

impl Header {
    pub(super) fn destination(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.bytes;
        [a, b, c, d, e, f]
    }

    pub(super) fn source(&self) -> [u8; 6] {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = self.bytes;
        [a, b, c, d, e, f]
    }

    /// Whether it says that there is a tag, and there is none.
    pub(super) fn is_cut_off(&self) -> bool {
        self.len < self.bytes.len() && self.bytes[TAG_AT..TAG_AT + 2] == TAGGED
    }

    /// The VLAN that its tag names, if it has one.
    pub(super) fn tag(&self) -> Option<u16> {
        let tagged = self.len == self.bytes.len() && self.bytes[TAG_AT..TAG_AT + 2] == TAGGED;
        tagged.then(|| u16::from_be_bytes([self.bytes[TAG_AT + 2], self.bytes[TAG_AT + 3]]) & 0xFFF)
    }

    /// A tag for that VLAN; the priority is kept of the tag that there was.
    fn tag_for(&self, vlan: u16) -> [u8; TAG_BYTES] {
        let priority = self.tag().map_or(0, |_| self.bytes[TAG_AT + 2] & 0xF0);
        let [high, low] = vlan.to_be_bytes();
        [TAGGED[0], TAGGED[1], priority | high & 0x0F, low]
    }
}

/// A frame with another tag: one for `vlan` or, if that is `None`, none. No byte of it is
/// changed: a tag is a new segment of the own arena between two of the frame's, and is taken off by leaving it out.
///
/// # Errors
/// [`HeapError`] if there is no room for a tag.
pub(super) fn retagged(frame: &Frame, header: &Header, vlan: Option<u16>, memory: &Memory) -> Result<Frame, HeapError> {
    let is_tagged = header.tag().is_some();
    let rest_at = TAG_AT + if is_tagged { TAG_BYTES } else { 0 };
    let mut rest = frame.payload.clone();
    let mut payload = rest.split_to(TAG_AT as u64);
    drop(rest.split_to((rest_at - TAG_AT) as u64));
    let mut grown = if is_tagged { -(TAG_BYTES as i32) } else { 0 };
    if let Some(vlan) = vlan {
        // One segment for the addresses and the tag: a frame of two segments stays within three.
        let mut buf = memory.alloc(TAG_AT + TAG_BYTES)?;
        let (addresses, tag) = buf.as_mut_slice().split_at_mut(TAG_AT);
        addresses.copy_from_slice(&header.bytes[..TAG_AT]);
        tag.copy_from_slice(&header.tag_for(vlan));
        payload = buf.into_payload();
        grown += TAG_BYTES as i32;
    }
    payload.append(rest);
    Ok(Frame { offload: moved(frame.offload, grown), payload })
}

/// The marks of a frame whose header has grown so many bytes.
fn moved(offload: Offload, grown: i32) -> Offload {
    let shift = |place: u16| place.saturating_add_signed(grown as i16);
    let Offload { mut checksum, mut segmentation } = offload;
    if let Checksum::Needed { start, .. } = &mut checksum {
        *start = shift(*start);
    }
    if let Some(cut) = segmentation.as_mut().filter(|cut| cut.header > 0) {
        cut.header = shift(cut.header);
    }
    Offload { checksum, segmentation }
}

#[cfg(test)]
mod tests {
    use fido_core::testing::private_memory;

    use super::*;
    use crate::frame::{Segmentation, SegmentationKind};

    fn frame(memory: &Memory, bytes: &[u8]) -> (Frame, Header) {
        let mut buf = memory.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(bytes);
        let frame: Frame = buf.into_payload().into();
        let mut header = [0; HEADER_BYTES + TAG_BYTES];
        let len = memory.read_header(&frame.payload, 0, &mut header).unwrap();
        (frame, Header { bytes: header, len })
    }

    fn bytes(memory: &Memory, frame: &Frame) -> Vec<u8> {
        let mut bytes = vec![0; frame.payload.len() as usize];
        memory.read_header(&frame.payload, 0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_tag_goes_on_and_off_without_touching_the_frame() {
        let memory = private_memory(1 << 20);
        let plain: Vec<u8> = (0..60).collect();
        let (mut untagged, header) = frame(&memory, &plain);
        let cut = |header| Segmentation { kind: SegmentationKind::Tcp4, size: 9, header, ecn: false };
        untagged.offload =
            Offload { checksum: Checksum::Needed { start: 34, offset: 16 }, segmentation: Some(cut(54)) };
        let tagged = retagged(&untagged, &header, Some(0x123), &memory).unwrap();
        let expected = [&plain[..12], &[0x81, 0, 0x01, 0x23], &plain[12..]].concat();
        assert_eq!(bytes(&memory, &tagged), expected);
        let moved = Offload { checksum: Checksum::Needed { start: 38, offset: 16 }, segmentation: Some(cut(58)) };
        assert_eq!(tagged.offload, moved);
        let (mut with_priority, header) = frame(&memory, &expected);
        with_priority.offload = tagged.offload;
        let off = retagged(&with_priority, &header, None, &memory).unwrap();
        assert_eq!((bytes(&memory, &off), off.offload), (plain, untagged.offload));
        assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    }

    #[test]
    fn a_priority_survives_another_tag_and_a_short_header_has_none() {
        let memory = private_memory(1 << 20);
        let mut bytes_in = [7; 30];
        bytes_in[12..16].copy_from_slice(&[0x81, 0, 0xE0, 0]);
        let (given, header) = frame(&memory, &bytes_in);
        assert_eq!(header.tag(), Some(0));
        let out = retagged(&given, &header, Some(4094), &memory).unwrap();
        assert_eq!(bytes(&memory, &out)[12..18], [0x81, 0, 0xEF, 0xFE, 7, 7]);
        assert_eq!(frame(&memory, &bytes_in[..17]).1.tag(), None);
    }

    #[test]
    fn who_is_in_which_vlan() {
        let access = Membership::Access(5);
        assert_eq!((access.of(None), access.of(Some(0)), access.of(Some(5))), (Some(5), Some(5), None));
        let trunk = Membership::Trunk { vlans: vec![5, 6], native: Some(9) };
        assert_eq!((trunk.of(None), trunk.of(Some(6)), trunk.of(Some(7))), (Some(9), Some(6), None));
        assert!(trunk.carries(9) && !trunk.tags(9) && trunk.tags(5) && !access.tags(5));
        let all = Membership::Trunk { vlans: vec![], native: None };
        assert_eq!((all.of(None), all.of(Some(4000))), (None, Some(4000)));
    }
}
