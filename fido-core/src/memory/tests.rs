//! Gathering bytes over the boundaries of segments, against one flat copy of them.

use super::*;
use crate::addr::GlobalAddr;
use crate::testing::private_memory;
use proptest::prelude::*;

/// A payload of buffers of these lengths, and its bytes.
fn scattered(memory: &Memory, lens: &[usize]) -> (Payload, Vec<u8>) {
    let (mut payload, mut flat) = (Payload::new(), Vec::new());
    for &len in lens {
        let mut buf = memory.alloc(len).unwrap();
        for byte in buf.as_mut_slice() {
            *byte = (flat.len() * 7 + 1) as u8;
            flat.push(*byte);
        }
        payload.append(buf.into_payload());
    }
    (payload, flat)
}

#[test]
fn an_address_that_is_wild_is_an_error_wherever_it_is() {
    let memory = private_memory(1 << 20);
    let (mut payload, flat) = scattered(&memory, &[10, 10]);
    let end = GlobalAddr::new(memory.id(), memory.arena().len() - 1).unwrap();
    payload.push(Segment::new(end, 2), None);
    let mut out = [0; 22];
    assert_eq!(memory.read_header(&payload, 0, &mut out[..20]), Ok(20), "it is not touched");
    assert_eq!(out[..20], flat);
    assert!(matches!(memory.read_header(&payload, 0, &mut out), Err(AddressError::OutOfBounds { .. })));
    assert!(matches!(memory.copy_in(&payload), Err(CopyError::Address(_))));
    assert!(memory.translate_all(&payload).is_err());
    assert_eq!(memory.copy_in(&Payload::new()).unwrap().map(|buf| buf.len()), None);
    drop(payload);
    assert_eq!(memory.heap().used(), 0);
}

proptest! {
    #[test]
    fn any_range_is_gathered(
        lens in prop::collection::vec(1usize..100, 0..8), start in 0u64..900, room in 0usize..900
    ) {
        let memory = private_memory(1 << 20);
        let (payload, flat) = scattered(&memory, &lens);
        let mut out = vec![0xEE; room];
        let count = memory.read_header(&payload, start, &mut out).unwrap();
        let rest = flat.get(start as usize..).unwrap_or_default();
        prop_assert_eq!(count, room.min(rest.len()));
        prop_assert_eq!(&out[..count], &rest[..count]);
        prop_assert!(out[count..].iter().all(|byte| *byte == 0xEE));
        let mut out = vec![0xEE; room];
        prop_assert_eq!(memory.copy_to_slice(&payload, &mut out).unwrap(), room.min(flat.len()));
        let copy = memory.copy_in(&payload).unwrap();
        prop_assert_eq!(copy.as_ref().map_or(&[][..], ArenaBuf::as_slice), &flat[..]);
        let spans = memory.translate_all(&payload).unwrap();
        prop_assert_eq!(spans.iter().map(Span::len).sum::<usize>(), flat.len());
    }
}
