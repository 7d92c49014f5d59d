//! Whatever is said survives the way; whatever is not said this way is refused.

use super::*;
use fido_core::message::KIND_RESERVED;
use proptest::prelude::*;

fn requests() -> impl Strategy<Value = Request> {
    let offset_len = || (any::<u64>(), any::<u32>());
    prop_oneof![
        any::<u32>().prop_map(|version| Request::Identify { version }),
        offset_len().prop_map(|(offset, len)| Request::Read { offset, len }),
        (offset_len(), any::<bool>()).prop_map(|((offset, len), durable)| Request::Write { offset, len, durable }),
        Just(Request::Flush),
        (0..=BLOCK_MASK, 0..=BLOCK_MASK).prop_map(|(block, blocks)| Request::Discard { block, blocks }),
        (0..=BLOCK_MASK, 0..=BLOCK_MASK).prop_map(|(block, blocks)| Request::Extents { block, blocks }),
        (0..=BLOCK_MASK, 0..=BLOCK_MASK, any::<bool>(), any::<bool>())
            .prop_map(|(block, blocks, durable, unmap)| Request::WriteZeroes { block, blocks, durable, unmap }),
    ]
}

fn failures() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::OutOfRange),
        Just(Failure::Misaligned),
        Just(Failure::Size),
        Just(Failure::Address),
        Just(Failure::NoBuffer),
        any::<i32>().prop_map(|errno| Failure::Io { errno }),
        Just(Failure::NoSpace),
        Just(Failure::ReadOnly),
        Just(Failure::Unsupported),
        Just(Failure::Protocol),
        any::<u32>().prop_map(|version| Failure::Version { version }),
    ]
}

fn identities() -> impl Strategy<Value = Identity> {
    let geometry = (1u64..1 << 40, 0u32..=16, 1u32..=4096).prop_map(|(blocks, log, depth)| Geometry {
        bytes: blocks << log,
        block: 1 << log,
        depth,
    });
    (geometry, any::<[bool; 4]>(), 0u32..=6).prop_map(|(geometry, bits, more)| {
        let [read_only, discard, write_zeroes, volatile_cache] = bits;
        let preferred_block = geometry.block << more;
        let features = Features { read_only, discard, write_zeroes, volatile_cache, preferred_block };
        Identity { geometry, features }
    })
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        identities().prop_map(Answer::Identity),
        any::<u32>().prop_map(|len| Answer::Done { len }),
        failures().prop_map(Answer::Failed),
    ]
}

proptest! {
    #[test]
    fn requests_survive(request in requests(), number: u32) {
        let message = request.encode(number);
        prop_assert!(message.kind < KIND_RESERVED);
        prop_assert_eq!(id(&message), number);
        prop_assert_eq!(Request::decode(&message), Ok(request));
        prop_assert_eq!(Answer::decode(&message), Err(CodecError::Kind { kind: message.kind }));
    }

    #[test]
    fn answers_survive(answer in answers(), number: u32) {
        let message = answer.encode(number);
        prop_assert!(message.kind < KIND_RESERVED);
        prop_assert_eq!(id(&message), number);
        prop_assert_eq!(Answer::decode(&message), Ok(answer));
        prop_assert_eq!(Request::decode(&message), Err(CodecError::Kind { kind: message.kind }));
    }

    #[test]
    fn anything_is_decoded_or_refused(kind in prop_oneof![0u8..8, 0x80u8..0x88, any::<u8>()], rest: [u8; 17]) {
        let mut bytes = [kind; 18];
        bytes[1..].copy_from_slice(&rest);
        fuzz(bytes);
        bytes[6..].fill(0);
        fuzz(bytes);
    }
}

#[test]
fn an_absurd_device_is_refused() {
    let identity = |flags, args| Answer::decode(&Head { kind: IDENTITY, flags, args });
    let last = |depth: u32, preferred: u32, bits: u32| depth | preferred << 16 | bits << 24;
    let good = last(1, 12, 15);
    assert!(matches!(identity(32, [0, 0, 1, good]), Err(CodecError::Form { .. })));
    assert!(matches!(identity(9, [0, 0, 1, last(1, 32, 0)]), Err(CodecError::Form { .. })));
    assert!(matches!(identity(9, [0, 0, 1, last(1, 12, 16)]), Err(CodecError::Form { .. })));
    let geometry = |flags, args| match identity(flags, args) {
        Err(CodecError::Geometry(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(geometry(17, [0, 0, 1, good]), GeometryError::Block { .. }));
    assert!(matches!(geometry(9, [0, 0, 0, good]), GeometryError::Bytes { .. }));
    assert!(matches!(geometry(9, [0, 0, 1, last(0, 12, 0)]), GeometryError::Depth { .. }));
    assert!(matches!(geometry(9, [0, 0, 1, last(4097, 12, 0)]), GeometryError::Depth { .. }));
    assert!(matches!(geometry(9, [0, 0, 1, last(1, 8, 0)]), GeometryError::Preferred { .. }));
    assert!(matches!(geometry(9, [0, 0, 1, last(1, 23, 0)]), GeometryError::Preferred { .. }));
    assert!(identity(9, [0, 512, 0, good]).is_ok());
}
