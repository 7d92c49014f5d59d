//! What is particular to files: opening, locking, truncation, waiting for buffers, dropping with requests in flight.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::private_memory;
use fido_core::waiter::Waiter;
use tempfile::TempDir;

use super::{FileDevice, FileError, FileOptions, FileQueue};
use crate::blocking::{Blocking, Copied};
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, MAX_DEPTH};

pub(super) const BYTES: u64 = 8 << 20;

pub(super) fn options(dir: &TempDir) -> FileOptions {
    let path = dir.path().join("image");
    FileOptions { create_bytes: Some(BYTES), lock_wait: Duration::ZERO, depth: 8, ..FileOptions::new(path) }
}

fn open(dir: &TempDir) -> FileDevice {
    FileDevice::open(&options(dir)).unwrap()
}

fn device() -> (TempDir, FileDevice) {
    let dir = tempfile::tempdir().unwrap();
    let device = open(&dir);
    (dir, device)
}

fn blocking(device: &FileDevice) -> Blocking<FileQueue> {
    let memory = private_memory(16 << 20);
    Blocking::new(device.queue(memory.clone()).unwrap(), memory, Waiter::new(WaitStrategy::Sleep).unwrap())
}

pub(super) fn poll_until(queue: &mut FileQueue) -> BlockCompletion {
    let deadline = Instant::now() + Duration::from_secs(20);
    queue.flush_submissions();
    loop {
        if let Some(completion) = queue.poll() {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion came");
        std::thread::yield_now();
    }
}

pub(super) fn submit(queue: &mut FileQueue, id: u64, op: BlockOp) {
    assert!(queue.submit(id, op).is_ok());
}

pub(super) fn filled(memory: &Memory, byte: u8, len: usize) -> Payload {
    let mut buf = memory.alloc(len).unwrap();
    buf.as_mut_slice().fill(byte);
    buf.into_payload()
}

#[test]
fn a_new_image_is_sparse_and_keeps_its_size() {
    use std::os::unix::fs::MetadataExt;
    let (dir, device) = device();
    let metadata = std::fs::metadata(dir.path().join("image")).unwrap();
    assert_eq!((metadata.len(), device.geometry().bytes), (BYTES, BYTES));
    assert!(metadata.blocks() * 512 < BYTES);
    drop(device);
    let again = FileDevice::open(&FileOptions { create_bytes: Some(2 * BYTES), ..options(&dir) }).unwrap();
    assert_eq!(again.geometry().bytes, BYTES, "an image that exists is not resized");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let existing = |path: PathBuf| FileOptions { create_bytes: None, path, ..options(&dir) };
    let error = |options: &FileOptions| FileDevice::open(options).unwrap_err();
    let missing = error(&existing(dir.path().join("none")));
    assert!(matches!(missing, FileError::Missing { .. }) && missing.to_string().contains("none"), "{missing}");
    assert!(matches!(error(&existing(dir.path().join("no/dir"))), FileError::Missing { .. }));
    assert!(matches!(error(&existing(dir.path().into())), FileError::Kind { .. }));
    assert!(matches!(error(&existing(Path::new("/dev/null").into())), FileError::Kind { .. }));
    let small = dir.path().join("small");
    std::fs::write(&small, [0; 4095]).unwrap();
    assert!(matches!(error(&existing(small.clone())), FileError::TooSmall { bytes: 4095, needed: 4096, .. }));
    std::fs::write(&small, [0; 4097]).unwrap();
    assert_eq!(FileDevice::open(&existing(small.clone())).unwrap().geometry().bytes, 4096);
    let needed = FileOptions { min_bytes: 4098, ..existing(small) };
    assert!(matches!(error(&needed), FileError::TooSmall { bytes: 4097, needed: 4098, .. }));
}

#[test]
fn an_impossible_geometry_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        FileOptions { block: 1000, ..options(&dir) },
        FileOptions { depth: 0, ..options(&dir) },
        FileOptions { depth: MAX_DEPTH + 1, ..options(&dir) },
        FileOptions { create_bytes: Some(BYTES + 1), ..options(&dir) },
        FileOptions { create_bytes: Some(0), ..options(&dir) },
    ] {
        assert!(matches!(FileDevice::open(&wrong), Err(FileError::Geometry { .. })), "{wrong:?}");
    }
    assert!(!dir.path().join("image").exists());
}

#[test]
fn an_image_has_one_owner() {
    let (dir, device) = device();
    let queue = device.queue(private_memory(1 << 20)).unwrap();
    drop(device);
    let error = FileDevice::open(&options(&dir)).unwrap_err();
    assert!(matches!(error, FileError::Locked { .. }) && error.to_string().contains("image"), "{error}");
    drop(queue);
    // The kernel may hold the file a moment longer than the ring.
    FileDevice::open(&FileOptions { lock_wait: Duration::from_secs(10), ..options(&dir) }).unwrap();
}

#[test]
fn what_may_only_be_read_is_shared_with_others_that_only_read() {
    let (dir, device) = device();
    blocking(&device).write_from(0, &[3; 4096], true, Copied::Metadata).unwrap();
    let read_only = FileOptions { read_only: true, ..options(&dir) };
    assert!(matches!(FileDevice::open(&read_only), Err(FileError::Locked { .. })));
    drop(device);
    let wait = FileOptions { lock_wait: Duration::from_secs(10), ..read_only.clone() };
    let both = [FileDevice::open(&wait).unwrap(), FileDevice::open(&read_only).unwrap()];
    assert!(matches!(FileDevice::open(&options(&dir)), Err(FileError::Locked { .. })));
    for device in &both {
        let mut disk = blocking(device);
        let mut found = [0; 4096];
        disk.read_into(0, &mut found, Copied::Metadata).unwrap();
        assert_eq!((found, disk.features().read_only), ([3; 4096], true));
        assert_eq!(disk.write_from(0, &[4; 4096], false, Copied::Metadata), Err(BlockError::ReadOnly));
        assert_eq!(disk.write_zeroes(0, 4096, false, true), Err(BlockError::ReadOnly));
        disk.flush().unwrap();
    }
    let missing = FileOptions { path: dir.path().join("none"), ..read_only };
    assert!(matches!(FileDevice::open(&missing), Err(FileError::Missing { .. })), "nothing is created");
}

#[test]
fn a_size_that_makes_no_sense_changes_nothing() {
    let (dir, device) = device();
    let image = std::fs::OpenOptions::new().write(true).open(dir.path().join("image")).unwrap();
    image.set_len(4095).unwrap();
    assert!(matches!(device.refresh(), Err(FileError::TooSmall { bytes: 4095, needed: 4096, .. })));
    assert_eq!(device.geometry().bytes, BYTES);
    image.set_len(4096 + 4095).unwrap();
    assert_eq!((device.refresh().unwrap().bytes, device.geometry().bytes), (4096, 4096));
}

#[test]
fn a_lock_is_waited_for() {
    let (dir, device) = device();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(device);
    });
    FileDevice::open(&FileOptions { lock_wait: Duration::from_secs(10), ..options(&dir) }).unwrap();
    late.join().unwrap();
}

#[test]
fn queues_share_the_device_and_data_outlives_it() {
    let (dir, device) = device();
    let (mut a, mut b) = (blocking(&device), blocking(&device));
    a.write_from(4096, &[5; 8192], true, Copied::Metadata).unwrap();
    let mut found = vec![0; 8192];
    b.read_into(4096, &mut found, Copied::Metadata).unwrap();
    assert_eq!(found, [5; 8192]);
    drop((a, b, device));
    assert_eq!(std::fs::read(dir.path().join("image")).unwrap()[4096..12288], [5; 8192]);
}

#[test]
fn a_truncated_image_is_an_error_and_no_more() {
    let (dir, device) = device();
    let mut disk = blocking(&device);
    let image = std::fs::OpenOptions::new().write(true).open(dir.path().join("image")).unwrap();
    image.set_len(6000).unwrap();
    assert_eq!(disk.read(4096, 4096).unwrap_err(), BlockError::Io { errno: libc::EIO });
    assert_eq!(disk.read(BYTES - 4096, 4096).unwrap_err(), BlockError::Io { errno: libc::EIO });
    assert!(disk.read(0, 4096).is_ok());
    disk.write_from(8192, &[1; 4096], false, Copied::Metadata).unwrap();
    assert!(disk.read(4096, 4096).is_ok(), "the write has made the image longer again");
    drop(dir);
}

/// The image is memory that is sealed against writes: then writes fail and a flush, by itself, succeeds.
#[test]
fn after_a_failed_durable_write_no_flush_succeeds_until_the_device_is_opened_anew() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let image = memfd_create("image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&image));
    rustix::fs::ftruncate(&image, BYTES).unwrap();
    let options = FileOptions::new(path);
    let device = FileDevice::open(&options).unwrap();
    let (mut a, mut b) = (blocking(&device), blocking(&device));
    a.write_from(0, &[1; 4096], true, Copied::Metadata).unwrap();
    fcntl_add_seals(&image, SealFlags::WRITE).unwrap();
    let failed = Err(BlockError::Io { errno: libc::EPERM });
    assert_eq!(a.write_from(0, &[2; 4096], false, Copied::Metadata), failed);
    b.flush().unwrap();
    assert_eq!(a.write_from(0, &[2; 4096], true, Copied::Metadata), failed);
    for queue in [&mut a, &mut b, &mut blocking(&device)] {
        assert_eq!(queue.flush(), failed);
        assert_eq!(queue.flush(), failed, "not only once");
        assert_eq!(queue.write_from(0, &[2; 4096], true, Copied::Metadata), failed);
        assert!(queue.read(0, 4096).is_ok());
    }
    drop((a, b, device));
    blocking(&FileDevice::open(&options).unwrap()).flush().unwrap();
}

/// As above; but here nobody asks for durable writes.
#[test]
fn a_device_that_writes_through_has_no_other_writes() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let image = memfd_create("image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&image));
    rustix::fs::ftruncate(&image, BYTES).unwrap();
    let device = FileDevice::open(&FileOptions { write_through: true, ..FileOptions::new(path) }).unwrap();
    let mut queue = blocking(&device);
    queue.write_from(0, &[1; 4096], false, Copied::Metadata).unwrap();
    fcntl_add_seals(&image, SealFlags::WRITE).unwrap();
    let failed = Err(BlockError::Io { errno: libc::EPERM });
    assert_eq!(queue.write_from(0, &[2; 4096], false, Copied::Metadata), failed);
    assert_eq!(queue.flush(), failed, "what was to be durable is lost");
}

#[test]
fn a_discarded_range_reads_zeros_and_frees_space() {
    use std::os::unix::fs::MetadataExt;
    let (dir, device) = device();
    let mut disk = blocking(&device);
    disk.write_from(0, &vec![1; 8 << 20], true, Copied::Metadata).unwrap();
    let used = || std::fs::metadata(dir.path().join("image")).unwrap().blocks() * 512;
    let before = used();
    disk.discard(0, BYTES).unwrap();
    let mut found = vec![9; 8 << 20];
    disk.read_into(0, &mut found, Copied::Metadata).unwrap();
    // A file system that cannot punch holes keeps the data, which is allowed.
    assert!(found.iter().all(|b| *b == 0) && used() < before || found.iter().all(|b| *b == 1));
}

/// Memory files can punch holes, but not zero a range in place: there zeros are written.
#[test]
fn zeroes_are_written_where_the_file_system_cannot_do_it_itself() {
    use rustix::fs::{MemfdFlags, memfd_create};
    let image = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&image, BYTES).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&image));
    let mut disk = blocking(&FileDevice::open(&FileOptions { block: 512, ..FileOptions::new(path) }).unwrap());
    let used = || rustix::fs::fstat(&image).unwrap().st_blocks.cast_unsigned() * 512;
    for (durable, unmap) in [(false, false), (true, false), (true, true)] {
        disk.write_from(0, &vec![1; BYTES as usize], false, Copied::Metadata).unwrap();
        disk.write_zeroes(512, BYTES - 1024, durable, unmap).unwrap();
        assert_eq!(used() < BYTES, unmap);
        let mut found = vec![9; BYTES as usize];
        disk.read_into(0, &mut found, Copied::Metadata).unwrap();
        let last = found.len() - 512;
        assert!(found[..512].iter().chain(&found[last..]).all(|byte| *byte == 1));
        assert!(found[512..last].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_read_waits_for_a_buffer() {
    let (_dir, device) = device();
    let memory = private_memory(2 << 20);
    let mut queue = device.queue(memory.clone()).unwrap();
    submit(&mut queue, 1, BlockOp::Read { offset: 0, len: 1 << 20 });
    let first = poll_until(&mut queue).result.unwrap();
    submit(&mut queue, 2, BlockOp::Read { offset: 0, len: 1 << 20 });
    submit(&mut queue, 3, BlockOp::Read { offset: 0, len: 4096 });
    queue.flush_submissions();
    // Returned by another thread while this one sleeps on the wake descriptor.
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
    });
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    let mut ids = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while ids.len() < 2 {
        match queue.poll() {
            Some(completion) => {
                completion.result.unwrap();
                ids.push(completion.id);
            }
            None => {
                assert!(Instant::now() < deadline, "no completion came");
                waiter.idle(&mut [&mut queue], Some(Duration::from_secs(1))).unwrap();
            }
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, [2, 3]);
    other.join().unwrap();
}

#[test]
fn a_read_that_can_have_no_buffer_fails() {
    let (_dir, device) = device();
    let memory = private_memory(2 << 20);
    let mut disk =
        Blocking::new(device.queue(memory.clone()).unwrap(), memory, Waiter::new(WaitStrategy::Sleep).unwrap());
    let _kept = disk.read(0, 1 << 20).unwrap();
    assert_eq!(disk.read(0, 1 << 20).unwrap_err(), BlockError::NoBuffer);
    disk.read(0, 4096).unwrap();
}

#[test]
fn dropping_a_queue_waits_for_its_requests() {
    let (dir, device) = device();
    let memory = private_memory(32 << 20);
    let used = memory.heap().used();
    for handed_on in [true, false] {
        let byte = u8::from(handed_on) + 1;
        let mut queue = device.queue(memory.clone()).unwrap();
        for id in 0..4 {
            let data = filled(&memory, byte, 1 << 20);
            submit(&mut queue, id, BlockOp::Write { offset: id << 20, data, durable: false });
            submit(&mut queue, 10 + id, BlockOp::Read { offset: (4 + id) << 20, len: 1 << 20 });
        }
        if handed_on {
            queue.flush_submissions();
        }
        drop(queue);
        assert_eq!(memory.heap().used(), used, "every buffer is back");
        assert!(std::fs::read(dir.path().join("image")).unwrap()[..4 << 20].iter().all(|b| *b == byte));
    }
}

#[test]
fn a_batch_is_one_system_call_and_reaping_is_none() {
    let (_dir, device) = device();
    let memory = private_memory(16 << 20);
    let mut queue = device.queue(memory.clone()).unwrap();
    let before = memory.stats().snapshot();
    for id in 0..8 {
        submit(&mut queue, id, BlockOp::Read { offset: id * 4096, len: 4096 });
    }
    for _ in 0..8 {
        poll_until(&mut queue).result.unwrap();
    }
    assert_eq!(memory.stats().snapshot().since(&before).syscalls, 1);
}

#[test]
fn the_blocking_face_cuts_what_is_too_long() {
    let (_dir, device) = device();
    let mut disk = blocking(&device);
    let memory = private_memory(16 << 20);
    let mut data = Payload::new();
    let mut expected = Vec::new();
    // 6 MiB in 600 odd segments: beyond both limits.
    for index in 0..600u32 {
        let len = if index == 599 { (6 << 20) - expected.len() } else { 10_000 + (index % 7) as usize };
        let bytes: Vec<u8> = (0..len).map(|i| (i as u32 * 7 + index) as u8).collect();
        let mut buf = memory.alloc(len).unwrap();
        buf.as_mut_slice().copy_from_slice(&bytes);
        expected.extend_from_slice(&bytes);
        data.append(buf.into_payload());
    }
    let own = disk.queue_mut().memory().clone();
    own.windows().insert(memory.arena().window().clone());
    disk.write(4096, data, false).unwrap();
    disk.flush().unwrap();
    assert_eq!(own.stats().snapshot().payload_bytes_copied, 0);
    let lent = disk.read(4096, 6 << 20).unwrap();
    let mut found = vec![0; 6 << 20];
    own.read_header(&lent, 0, &mut found).unwrap();
    assert!(found == expected);
    drop(lent);
    found.fill(0);
    disk.read_into(4096, &mut found, Copied::Payload).unwrap();
    assert!(found == expected);
    assert_eq!(own.stats().snapshot().payload_bytes_copied, 6 << 20);
    disk.write_from(0, &found, false, Copied::Payload).unwrap();
    assert_eq!(own.stats().snapshot().payload_bytes_copied, 12 << 20);
    assert_eq!(disk.read(0, 0).unwrap_err(), BlockError::Size { len: 0, segments: 0 });
    assert!(matches!(disk.read(0, BYTES + 4096), Err(BlockError::OutOfRange { .. })));
    assert!(matches!(disk.write_from(1, &[0; 4096], false, Copied::Metadata), Err(BlockError::Misaligned { .. })));
}
