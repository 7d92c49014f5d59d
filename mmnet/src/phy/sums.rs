//! Checksums at the border of smoltcp: none is computed for what stays in the appliance, and none is believed that
//! nobody has verified.
//!
//! What the stack sends gets the mark [`Checksum::Needed`]: the sum of the pseudo header stands where the checksum
//! goes, and the edge of the appliance does the rest, if the frame ever gets there. (The header checksum of IPv4 and
//! ICMP's are real: virtio has no mark for the one, and the other is not worth one.)
//!
//! What arrives with that mark, or as [`Checksum::Valid`], never left memory or has been verified. Only a frame that is
//! [`Checksum::Complete`] came from somewhere else as it is, and is verified here. It could not be left to smoltcp:
//! whether that verifies is a property of the whole device.

use std::num::NonZeroU16;

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use crate::frame::{Checksum, HEADER_BYTES, Offload, Segmentation, SegmentationKind};

const IPV6_HEADER: usize = 40;
/// Where the checksum is in a TCP header and in a UDP header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Where what is in a frame that the stack has just written.
struct Layout {
    kind: SegmentationKind,
    protocol: u8,
    /// The addresses, source and destination.
    addresses: std::ops::Range<usize>,
    /// Where the transport's header begins.
    transport: usize,
}

impl Layout {
    fn of(frame: &[u8]) -> Option<Self> {
        let ip = HEADER_BYTES;
        match frame.get(12..14)? {
            [0x08, 0x00] => {
                let transport = ip + usize::from(frame.get(ip)? & 0xf) * 4;
                let protocol = *frame.get(ip + 9)?;
                Some(Self { kind: SegmentationKind::Tcp4, protocol, addresses: ip + 12..ip + 20, transport })
            }
            [0x86, 0xdd] => {
                let protocol = *frame.get(ip + 6)?;
                let transport = ip + IPV6_HEADER;
                Some(Self { kind: SegmentationKind::Tcp6, protocol, addresses: ip + 8..ip + 40, transport })
            }
            _ => None,
        }
    }
}

/// Marks a frame that the stack has just written and, if `size` says so, wants to have cut: puts the pseudo header's sum
/// where the checksum goes. A frame of no transport that has one stays as it is.
pub(super) fn mark(frame: &mut [u8], size: Option<NonZeroU16>) -> Offload {
    marks(frame, size).unwrap_or_default()
}

fn marks(frame: &mut [u8], size: Option<NonZeroU16>) -> Option<Offload> {
    let Layout { kind, protocol, addresses, transport } = Layout::of(frame)?;
    let place = match IpProtocol::from(protocol) {
        IpProtocol::Tcp => TCP_CHECKSUM,
        IpProtocol::Udp => UDP_CHECKSUM,
        _ => return None,
    };
    let len = frame.len().checked_sub(transport)?;
    let words = frame.get(addresses)?.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + u32::from(protocol) + len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = transport + place;
    frame.get_mut(at..at + 2)?.copy_from_slice(&(sum as u16).to_be_bytes());
    let segmentation = match size {
        Some(size) => {
            let header = transport + usize::from(frame.get(transport + 12)? >> 4) * 4;
            Some(Segmentation { kind, size: size.get(), header: header as u16, ecn: false })
        }
        None => None,
    };
    Some(Offload { checksum: Checksum::Needed { start: transport as u16, offset: place as u16 }, segmentation })
}

/// Whether all checksums in a frame that nobody vouches for are right. Where there are none, or none that smoltcp would
/// look behind (fragments, ARP), there is nothing to be wrong.
pub(super) fn is_sound(frame: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return false };
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => is_sound_ipv4(ethernet.payload()),
        EthernetProtocol::Ipv6 => is_sound_ipv6(ethernet.payload()),
        _ => true,
    }
}

fn is_sound_ipv4(packet: &[u8]) -> bool {
    let Ok(packet) = Ipv4Packet::new_checked(packet) else { return false };
    if !packet.verify_checksum() {
        return false;
    }
    if packet.more_frags() || packet.frag_offset() > 0 {
        return true;
    }
    is_sound_transport(packet.next_header(), packet.src_addr().into(), packet.dst_addr().into(), packet.payload())
}

/// Behind an extension header nothing is looked for, and so nothing believed.
fn is_sound_ipv6(packet: &[u8]) -> bool {
    let Ok(packet) = Ipv6Packet::new_checked(packet) else { return false };
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    match packet.next_header() {
        IpProtocol::Icmpv6 => {
            Icmpv6Packet::new_checked(packet.payload()).is_ok_and(|icmp| icmp.verify_checksum(&from, &to))
        }
        next @ (IpProtocol::Tcp | IpProtocol::Udp) => {
            is_sound_transport(next, from.into(), to.into(), packet.payload())
        }
        _ => false,
    }
}

fn is_sound_transport(protocol: IpProtocol, from: IpAddress, to: IpAddress, bytes: &[u8]) -> bool {
    match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(bytes).is_ok_and(|tcp| tcp.verify_checksum(&from, &to)),
        IpProtocol::Udp => UdpPacket::new_checked(bytes).is_ok_and(|udp| udp.verify_checksum(&from, &to)),
        IpProtocol::Icmp => Icmpv4Packet::new_checked(bytes).is_ok_and(|icmp| icmp.verify_checksum()),
        _ => true,
    }
}

/// Body of the fuzz target and of the property test: any bytes are marked and verified without a panic, and marks fit
/// their frame.
///
/// # Panics
/// If they do not.
pub fn fuzz(bytes: &[u8]) {
    let _ = is_sound(bytes);
    let mut frame = bytes.to_vec();
    let size = bytes.first().and_then(|byte| NonZeroU16::new(u16::from(*byte)));
    for size in [None, size] {
        let offload = mark(&mut frame, size);
        // The header's length is the stack's own word; here it is not the stack that wrote.
        let headers = offload.segmentation.is_none_or(|cut| usize::from(cut.header) <= frame.len());
        assert!(offload.check(frame.len() as u64, crate::frame::MAX_MTU).is_ok() || !headers);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Ipv4Address, Ipv4Repr, Ipv6Address, Ipv6Repr, UdpRepr};

    use super::*;

    const PAYLOAD: &[u8] = b"an odd number of bytes.";

    /// A UDP datagram with or without a checksum, and its addresses.
    fn datagram(v6: bool, sums: &ChecksumCapabilities) -> (Vec<u8>, IpAddress, IpAddress) {
        let udp = UdpRepr { src_port: 1000, dst_port: 53 };
        let len = 8 + PAYLOAD.len();
        let header = if v6 { 40 } else { 20 };
        let mut frame = vec![0; HEADER_BYTES + header + len];
        let (from, to): (IpAddress, IpAddress) = if v6 {
            let (a, b) =
                (Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0xffff, 2));
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let ip =
                Ipv6Repr { src_addr: a, dst_addr: b, next_header: IpProtocol::Udp, payload_len: len, hop_limit: 64 };
            ip.emit(&mut Ipv6Packet::new_unchecked(&mut frame[14..]));
            (a.into(), b.into())
        } else {
            let (a, b) = (Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 255, 255, 2));
            frame[12..14].copy_from_slice(&[8, 0]);
            let ip =
                Ipv4Repr { src_addr: a, dst_addr: b, next_header: IpProtocol::Udp, payload_len: len, hop_limit: 64 };
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &ChecksumCapabilities::default());
            (a.into(), b.into())
        };
        let mut packet = UdpPacket::new_unchecked(&mut frame[HEADER_BYTES + header..]);
        udp.emit(&mut packet, &from, &to, PAYLOAD.len(), |room| room.copy_from_slice(PAYLOAD), sums);
        (frame, from, to)
    }

    #[test]
    fn what_an_edge_does_by_the_marks_is_the_checksum() {
        for v6 in [false, true] {
            let (mut frame, ..) = datagram(v6, &ChecksumCapabilities::ignored());
            let (whole, ..) = datagram(v6, &ChecksumCapabilities::default());
            let Checksum::Needed { start, offset } = mark(&mut frame, None).checksum else { panic!("no mark") };
            // As the edge does it: the sum over all from `start` on, with what stands there.
            let mut sum: u32 = frame[usize::from(start)..]
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
                .sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let at = usize::from(start + offset);
            frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            assert_eq!(frame, whole);
            assert!(is_sound(&frame));
        }
    }

    #[test]
    fn a_wrong_bit_anywhere_behind_the_ethernet_header_is_found() {
        let (frame, ..) = datagram(false, &ChecksumCapabilities::default());
        for at in HEADER_BYTES..frame.len() {
            let mut wrong = frame.clone();
            wrong[at] ^= 0x10;
            assert!(!is_sound(&wrong), "byte {at}");
        }
        let (frame, ..) = datagram(true, &ChecksumCapabilities::default());
        for at in HEADER_BYTES + IPV6_HEADER..frame.len() {
            let mut wrong = frame.clone();
            wrong[at] ^= 0x10;
            assert!(!is_sound(&wrong), "byte {at}");
        }
    }

    #[test]
    fn nothing_behind_extension_headers_is_believed() {
        let (mut frame, ..) = datagram(true, &ChecksumCapabilities::default());
        frame[HEADER_BYTES + 6] = 0;
        assert!(!is_sound(&frame));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
            let mut bytes = bytes;
            if bytes.len() > 30 {
                match kind {
                    0 => bytes[12..15].copy_from_slice(&[8, 0, 0x45]),
                    1 => bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]),
                    _ => {}
                }
                bytes[if kind == 0 { 23 } else { 20 }] = 6;
            }
            fuzz(&bytes);
        }
    }
}
