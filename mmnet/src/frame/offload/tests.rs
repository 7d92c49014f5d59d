use proptest::prelude::*;

use super::*;

const TCP: Checksum = Checksum::Needed { start: 34, offset: 16 };

fn cut(size: u16, header: u16) -> Offload {
    let segmentation = Some(Segmentation { kind: SegmentationKind::Tcp4, size, header, ecn: false });
    Offload { checksum: TCP, segmentation }
}

#[test]
fn a_checksum_lies_in_its_frame() {
    let marks = Offload { checksum: TCP, segmentation: None };
    assert_eq!(marks.check(52, 1500), Ok(()));
    assert_eq!(marks.check(51, 1500), Err(OffloadError::Checksum { start: 34, offset: 16, len: 51 }));
    let wild = Offload { checksum: Checksum::Needed { start: u16::MAX, offset: u16::MAX }, segmentation: None };
    assert!(wild.check(65_535, 1500).is_err());
}

#[test]
fn segments_have_bytes_and_fit_the_port() {
    for (size, fits) in [(0, false), (1, true), (1500, true), (1501, false)] {
        assert_eq!(cut(size, 54).check(9000, 1500).is_ok(), fits, "{size}");
    }
    assert!(cut(1448, 9000).check(9000, 1500).is_ok());
    assert_eq!(cut(1448, 9001).check(9000, 1500), Err(OffloadError::Header { header: 9001, len: 9000 }));
    let bare = Offload { checksum: Checksum::Valid, ..cut(1448, 54) };
    assert_eq!(bare.check(9000, 1500), Err(OffloadError::CutWithoutChecksum));
}

#[test]
fn the_header_is_virtios() {
    let marks = Offload {
        segmentation: Some(Segmentation { kind: SegmentationKind::Tcp6, size: 0x5a8, header: 0x4a, ecn: true }),
        ..cut(0, 0)
    };
    let bytes = VirtioHeader::from(marks).to_bytes();
    assert_eq!(bytes, [1, 0x84, 0x4a, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]);
    assert_eq!(Offload::try_from(VirtioHeader::from_bytes(bytes)), Ok(marks));
}

proptest! {
    #[test]
    fn whatever_arrives_is_marks_or_an_error(bytes in any::<[u8; VIRTIO_HEADER_BYTES]>(), len in 0u64..70_000) {
        let header = VirtioHeader::from_bytes(bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        let (flags, words) = header.to_words(7);
        let (again, own) = VirtioHeader::from_words(flags, words);
        prop_assert_eq!((VirtioHeader { num_buffers: header.num_buffers, ..again }, own), (header, 7));
        if let Ok(marks) = Offload::try_from(header) {
            prop_assert_eq!(Offload::try_from(VirtioHeader::from(marks)), Ok(marks));
            let _ = marks.check(len, 1500);
        }
    }
}
