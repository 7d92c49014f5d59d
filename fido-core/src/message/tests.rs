//! Every field of a message over its whole range, and at its place.

use super::*;
use proptest::prelude::*;

fn any_frame() -> impl Strategy<Value = Frame> {
    let segment = (any::<u64>(), any::<u32>()).prop_map(|(bits, len)| Segment::new(GlobalAddr::from_bits(bits), len));
    let head = (any::<u8>(), any::<u8>(), any::<[u32; 4]>()).prop_map(|(kind, flags, args)| Head { kind, flags, args });
    (head, any::<u16>(), any::<u16>(), any::<u16>(), prop::array::uniform3(segment))
        .prop_map(|(head, loan, returned, count, segments)| Frame { head, loan, returned, count, segments })
}

#[test]
fn each_field_is_where_the_protocol_has_it() {
    let empty = Frame { head: Head::default(), loan: 0, returned: 0, count: 0, segments: [NO_SEGMENT; 3] };
    assert_eq!(empty.encode(), [0; 15]);
    let only = |change: fn(&mut Frame), at: usize, word: u32| {
        let mut frame = empty;
        change(&mut frame);
        let mut words = [0; 15];
        words[at] = word;
        assert_eq!(frame.encode(), words);
        assert_eq!(Frame::decode(&words), frame);
    };
    only(|f| f.head.kind = u8::MAX, 0, 0x0000_00FF);
    only(|f| f.head.flags = u8::MAX, 0, 0x0000_FF00);
    only(|f| f.count = u16::MAX, 0, 0xFFFF_0000);
    only(|f| f.loan = u16::MAX, 1, 0x0000_FFFF);
    only(|f| f.returned = u16::MAX, 1, 0xFFFF_0000);
    only(|f| f.head.args[0] = u32::MAX, 2, u32::MAX);
    only(|f| f.head.args[3] = u32::MAX, 5, u32::MAX);
    only(|f| f.segments[0].addr = GlobalAddr::from_bits(u64::from(u32::MAX)), 6, u32::MAX);
    only(|f| f.segments[0].addr = GlobalAddr::from_bits(u64::from(u32::MAX) << 32), 7, u32::MAX);
    only(|f| f.segments[0].len = u32::MAX, 8, u32::MAX);
    only(|f| f.segments[1].addr = GlobalAddr::from_bits(1), 9, 1);
    only(|f| f.segments[2].addr = GlobalAddr::from_bits(1 << 63), 13, 1 << 31);
    only(|f| f.segments[2].len = u32::MAX, 14, u32::MAX);
}

#[test]
fn returns_up_to_the_limit() {
    let tags: Vec<u16> = (1..=MAX_RETURNS as u16 + 1).collect();
    for count in [0, 1, 2, MAX_RETURNS - 1, MAX_RETURNS] {
        assert_eq!(decode_returns(&encode_returns(tags[..count].iter().copied())).collect::<Vec<_>>(), &tags[..count]);
    }
    let one_past = encode_returns(tags.iter().copied());
    assert_eq!(decode_returns(&one_past).collect::<Vec<_>>(), &tags[..MAX_RETURNS]);
    assert_eq!((one_past[0], one_past[2], one_past[14]), (0xF0, 0x0002_0001, 0x001A_0019));
    let mut holey = one_past;
    holey[3] &= 0xFFFF_0000;
    assert_eq!(decode_returns(&holey).collect::<Vec<_>>(), [1, 2], "a 0 ends them");
}

#[test]
fn an_entry_byte_by_byte() {
    let segment = Segment::new(GlobalAddr::from_bits(0x0807_0605_0403_0201), 0x0C0B_0A09);
    assert_eq!(encode_entry(segment), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]);
    assert_eq!(decode_entry([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]), segment);
}

proptest! {
    #[test]
    fn frames_survive(frame in any_frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode()), frame);
    }

    #[test]
    fn any_words_are_a_message_that_encodes_to_them(words: [u32; 15]) {
        prop_assert_eq!(Frame::decode(&words).encode(), words);
    }

    #[test]
    fn returns_survive(tags in prop::collection::vec(1u16.., 0..=MAX_RETURNS)) {
        let words = encode_returns(tags.iter().copied());
        prop_assert_eq!(decode_returns(&words).collect::<Vec<_>>(), tags);
    }

    #[test]
    fn any_words_are_some_returns(words: [u32; 15]) {
        prop_assert!(decode_returns(&words).count() <= MAX_RETURNS);
    }

    #[test]
    fn entries_survive(bits: u64, len: u32) {
        let segment = Segment::new(GlobalAddr::from_bits(bits), len);
        prop_assert_eq!(decode_entry(encode_entry(segment)), segment);
    }
}
