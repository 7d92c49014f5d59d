use super::*;
use crate::testing::private_memory;

const PAGE: u64 = 4096;

fn file(pages: u64, sealed: bool) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, pages * PAGE).unwrap();
    if sealed {
        rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::SHRINK).unwrap();
    }
    fd
}

fn region(guest: u64, user: u64, pages: u64) -> Region {
    Region { guest: guest * PAGE, user: user * PAGE, len: pages * PAGE, offset: 0, file: file(pages, true) }
}

fn map(regions: &[Region]) -> Result<Foreign, ForeignError> {
    Foreign::map(Generation::FIRST, regions)
}

#[test]
fn bytes_are_found_by_both_addresses_and_only_inside() {
    let memory = map(&[region(16, 100, 2), region(1, 200, 3)]).unwrap();
    memory.guest(PAGE, 4).unwrap().write(0, b"text");
    let mut text = [0; 4];
    assert_eq!(memory.user(200 * PAGE, 4).unwrap().read(0, &mut text), 4);
    assert_eq!(&text, b"text");
    assert_eq!(memory.guest(18 * PAGE - 1, 100).unwrap().len(), 1, "up to the region's end");
    assert!(memory.guest(18 * PAGE, 1).is_none());
    assert!(memory.guest(0, 1).is_none());
    assert!(memory.guest(u64::MAX, 1).is_none());
    assert!(memory.user(102 * PAGE - 1, 1).is_some());
    assert!(memory.user(102 * PAGE - 1, 2).is_none());
    assert!(memory.user(u64::MAX, 1).is_none());
}

#[test]
fn a_table_that_lies_is_refused() {
    let wrong = |edit: fn(&mut Region)| {
        let mut one = region(16, 100, 2);
        edit(&mut one);
        map(&[one, region(1, 200, 3)]).unwrap_err().to_string()
    };
    assert!(matches!(map(&[]), Err(ForeignError::Regions(0))));
    let many = |count| (0..count).map(|n| region(2 * n, 2 * n, 1)).collect::<Vec<_>>();
    assert!(map(&many(MAX_REGIONS as u64)).is_ok());
    assert!(matches!(map(&many(MAX_REGIONS as u64 + 1)), Err(ForeignError::Regions(_))));
    assert!(wrong(|r| r.file = file(2, false)).contains("sealed"));
    assert!(wrong(|r| r.file = std::fs::File::open("/dev/null").unwrap().into()).contains("sealed"));
    assert!(wrong(|r| r.file = file(1, true)).contains("0x2000 of a file of 0x1000"));
    assert!(wrong(|r| r.offset = PAGE).contains("0x3000 of a file of 0x2000"));
    assert!(wrong(|r| r.len = 0).contains("whole pages"));
    assert!(wrong(|r| r.guest += 1).contains("whole pages"));
    assert!(wrong(|r| r.guest = 0_u64.wrapping_sub(PAGE)).contains("beyond"));
    assert!(wrong(|r| r.offset = 0_u64.wrapping_sub(PAGE)).contains("beyond"));
    assert!(wrong(|r| r.guest = 3 * PAGE).contains("overlaps"));
    assert!(wrong(|r| r.user = 199 * PAGE).contains("overlaps"));
}

#[test]
fn payload_may_lie_there_and_reads_may_go_there() {
    let memory = private_memory(1 << 20);
    let foreign = map(&[region(0, 0, 4)]).unwrap();
    let area = foreign.guest(10, 5).unwrap();
    area.write(0, b"guest");
    let payload = crate::payload::Payload::held(area.segment(), Arc::new(()));
    assert!(memory.copy_in(&payload).is_err(), "no window yet");
    memory.windows().insert(foreign.window().clone());
    assert_eq!(memory.copy_in(&payload).unwrap().unwrap().as_slice(), b"guest");

    let mut landing = Landing::default();
    for (at, len) in [(PAGE, 2), (PAGE + 7, 0), (2 * PAGE, 3), (3 * PAGE, 9)] {
        landing.push(foreign.guest(at, len).unwrap());
    }
    assert_eq!((landing.areas().len(), landing.len()), (3, 14));
    assert_eq!(memory.land(&payload, &landing).unwrap(), 5);
    let read = |at, len| {
        let mut out = vec![0; len];
        foreign.guest(at, len as u32).unwrap().read(0, &mut out);
        out
    };
    assert_eq!((read(PAGE, 3), read(2 * PAGE, 4)), (b"gu\0".to_vec(), b"est\0".to_vec()));
    assert_eq!(memory.stats().payload_bytes_copied.get(), 10);
}

#[test]
fn words_are_checked_by_the_program_itself() {
    let foreign = map(&[region(0, 0, 1)]).unwrap();
    let area = foreign.guest(8, 16).unwrap();
    area.store_u32(4, 0x0403_0201, Ordering::Relaxed);
    assert_eq!(area.load_u16(6, Ordering::Relaxed), 0x0403);
    assert_eq!(area.load_u64(0, Ordering::Relaxed), 0x0403_0201_0000_0000);
    for at in [1, 13, usize::MAX] {
        let beyond = std::panic::AssertUnwindSafe(|| area.load_u32(at, Ordering::Relaxed));
        assert!(std::panic::catch_unwind(beyond).is_err(), "{at}");
    }
}
