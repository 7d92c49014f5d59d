//! To which flow a frame belongs, as a number: so that one queue carries all of a flow, in order.
//!
//! Frames of one flow have the same addresses and, with TCP and UDP, the same ports. All fragments of a packet must
//! stay together, and only the first one has ports: so fragments go by their addresses, and of a flow with some
//! fragments these may overtake the rest, as on any network card. Behind IPv6 extension headers nothing is looked for:
//! such packets go by their addresses, too. What is not IP goes by its hardware addresses. VLAN tags count.
//!
//! The number is symmetric: both directions of a conversation have the same one. So whoever serves a queue of a device
//! sees all of a connection, and needs to share nothing about it with the others. The price is nothing: frames of the
//! two directions never meet in one queue anyway, because a queue's directions are separate rings.
//!
//! It is not keyed. Who may choose addresses and ports freely can bring all its flows into one queue, and gains that
//! they share what one queue can do.

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::window::AddressError;

/// How many bytes of a frame are looked at, at most: an Ethernet header with two tags, the longest IPv4 header, ports.
pub const LOOKED_BYTES: usize = 14 + 2 * 4 + 60 + 4;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The number of a frame's flow, from a copy of its first [`LOOKED_BYTES`] bytes.
///
/// # Errors
/// [`AddressError`] if they cannot be read.
pub fn flow_hash(memory: &Memory, frame: &Payload) -> Result<u32, AddressError> {
    let mut bytes = [0; LOOKED_BYTES];
    let count = memory.read_header(frame, 0, &mut bytes)?;
    Ok(hash(bytes.get(..count).unwrap_or(&bytes)))
}

/// One side of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    address: u128,
    port: u16,
}

/// The number of the flow of a frame that begins with these bytes.
pub fn hash(bytes: &[u8]) -> u32 {
    let (mut at, mut vlans) = (12, 0);
    for _ in 0..2 {
        if let Some(0x8100 | 0x88a8) = number(bytes, at) {
            vlans = vlans << 12 | u64::from(number(bytes, at + 2).unwrap_or(0) & 0xfff);
            at += 4;
        }
    }
    let ip = bytes.get(at + 2..).unwrap_or(&[]);
    let ends = match number(bytes, at) {
        Some(0x0800) => ipv4(ip),
        Some(0x86dd) => ipv6(ip),
        _ => None,
    };
    let (kind, a, b) = ends.unwrap_or_else(|| (0, mac(bytes, 0), mac(bytes, 6)));
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let ports = u64::from(low.port) << 16 | u64::from(high.port);
    let mut state = mixed(vlans << 40 | u64::from(kind) << 32 | ports);
    for word in [low.address, high.address].into_iter().flat_map(|address| [address as u64, (address >> 64) as u64]) {
        state = mixed(state ^ word);
    }
    (state >> 32) as u32
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014), after an addition that keeps 0 from staying 0.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn ipv4(ip: &[u8]) -> Option<(u8, End, End)> {
    let (first, protocol) = (*ip.first()?, *ip.get(9)?);
    // More fragments follow, or this is not the first.
    let is_fragment = number(ip, 6)? & 0x3fff != 0;
    let transport = if is_fragment { None } else { Some(usize::from(first & 0xf) * 4) };
    ends(protocol, (ip.get(12..16)?, ip.get(16..20)?), ip, transport)
}

fn ipv6(ip: &[u8]) -> Option<(u8, End, End)> {
    ends(*ip.get(6)?, (ip.get(8..24)?, ip.get(24..40)?), ip, Some(40))
}

fn ends(protocol: u8, (from, to): (&[u8], &[u8]), ip: &[u8], transport: Option<usize>) -> Option<(u8, End, End)> {
    let at = transport.filter(|_| matches!(protocol, TCP | UDP));
    let ports = at.and_then(|at| Some((number(ip, at)?, number(ip, at + 2)?)));
    // Without ports the protocol is no part of it either: a first fragment may say UDP where others say "fragment".
    let (kind, (from_port, to_port)) = ports.map_or((0, (0, 0)), |ports| (protocol, ports));
    Some((kind, End { address: big(from), port: from_port }, End { address: big(to), port: to_port }))
}

fn mac(bytes: &[u8], at: usize) -> End {
    End { address: bytes.get(at..at + 6).map_or(0, big), port: 0 }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn big(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Body of the fuzz target and of the property test: any bytes have a number, and it depends on no more of them than is
/// said, nor on the direction.
///
/// # Panics
/// If it does.
pub fn fuzz(bytes: &[u8]) {
    let all = hash(bytes);
    assert_eq!(hash(&bytes[..bytes.len().min(LOOKED_BYTES)]), all, "looks further than it says");
    if bytes.len() >= 14 && !matches!(bytes[12], 0x08 | 0x81 | 0x86 | 0x88) {
        let mut back = bytes.to_vec();
        back[..12].rotate_left(6);
        assert_eq!(hash(&back), all);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// A frame of IPv4 between `from` and `to`, each with its port.
    fn v4(protocol: u8, from: (u8, u16), to: (u8, u16), tag: Option<u16>) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, to.0, 2, 0, 0, 0, 0, from.0];
        if let Some(tag) = tag {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend([8, 0, 0x45, 0, 0, 40, 1, 2, 0x40, 0, 64, protocol, 9, 9, 10, 0, 0, from.0, 10, 0, 0, to.0]);
        bytes.extend(from.1.to_be_bytes());
        bytes.extend(to.1.to_be_bytes());
        bytes.extend([7; 16]);
        bytes
    }

    fn v6(protocol: u8, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut bytes =
            vec![2, 0, 0, 0, 0, to.0, 2, 0, 0, 0, 0, from.0, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64];
        for end in [from.0, to.0] {
            bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
        }
        bytes.extend(from.1.to_be_bytes());
        bytes.extend(to.1.to_be_bytes());
        bytes
    }

    #[test]
    fn both_directions_are_one_flow_and_other_flows_others() {
        let mut seen = HashSet::new();
        for make in [|p, a, b| v4(p, a, b, None), |p, a, b| v4(p, a, b, Some(5)), |p, a, b| v4(p, a, b, Some(6)), v6] {
            for protocol in [TCP, UDP] {
                for (a, b) in [((1, 1000), (2, 80)), ((1, 1001), (2, 80)), ((2, 1000), (1, 80)), ((3, 80), (2, 80))] {
                    let there = hash(&make(protocol, a, b));
                    assert_eq!(there, hash(&make(protocol, b, a)));
                    assert!(seen.insert(there), "{a:?} {b:?} {protocol}");
                }
            }
        }
    }

    #[test]
    fn fragments_go_by_their_addresses() {
        let (whole, mut first, mut later) =
            (v4(UDP, (1, 5), (2, 6), None), v4(UDP, (1, 5), (2, 6), None), v4(UDP, (1, 99), (2, 98), None));
        first[20] = 0x20;
        later[21] = 0x10;
        assert_eq!(hash(&first), hash(&later));
        assert_ne!(hash(&first), hash(&whole));
        assert_ne!(
            hash(&first),
            hash(&{
                let mut other = v4(UDP, (3, 5), (2, 6), None);
                other[20] = 0x20;
                other
            })
        );
    }

    #[test]
    fn what_a_protocol_without_ports_carries_does_not_count() {
        assert_eq!(hash(&v4(1, (1, 5), (2, 6), None)), hash(&v4(1, (1, 7), (2, 8), None)));
        assert_eq!(hash(&v6(44, (1, 5), (2, 6))), hash(&v6(44, (1, 7), (2, 8))));
        let arp = |from, payload| [&[255; 6][..], &[2, 0, 0, 0, 0, from], &[8, 6], &[payload; 28]].concat();
        assert_eq!(hash(&arp(1, 3)), hash(&arp(1, 4)));
        assert_ne!(hash(&arp(1, 3)), hash(&arp(2, 3)));
    }

    #[test]
    fn flows_spread_evenly() {
        let mut queues = [0; 4];
        for port in 0..4000u16 {
            queues[hash(&v4(TCP, (1, 40_000 + port), (2, 80), None)) as usize % 4] += 1;
        }
        // Each expects 1000; six standard deviations are 164.
        assert!(queues.iter().all(|count| (836..1164).contains(count)), "{queues:?}");
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..140), kind in 0usize..5) {
            let mut bytes = bytes;
            if bytes.len() > 40 {
                let types: [&[u8]; 5] =
                    [&[], &[8, 0, 0x45], &[0x86, 0xdd], &[0x81, 0, 0, 5, 8, 0, 0x4f], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0, 0x4f]];
                bytes[12..12 + types[kind].len()].copy_from_slice(types[kind]);
            }
            fuzz(&bytes);
        }
    }
}
