//! Devices by description: what is opened, and what is wrong with what cannot be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{GEOMETRY, Rig, conforms};
use fido_core::testing::private_memory;
use mmblk::device::{BoxQueue, Device, OpenError, open_text};
use mmblk::queue::{BlockQueue, Geometry};

fn error(text: &str) -> String {
    match open_text(text) {
        Ok(device) => panic!("{text:?} is {device:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_opened_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image").display().to_string();
    let Geometry { bytes, block, depth } = GEOMETRY;
    for (text, stores) in [
        (format!("null:{bytes},block={block},depth={depth}"), false),
        (format!("file:{image},create=8MiB,block={block},depth={depth},lock-wait=10s"), true),
    ] {
        conforms(|| -> Rig<BoxQueue> {
            let _ = std::fs::remove_file(&image);
            let device = open_text(&text).unwrap();
            Rig::local(stores, |memory| (device.queue(memory).unwrap(), Box::new(())))
        });
    }
}

#[test]
fn an_image_that_grows_is_looked_at_through_layers() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image").display().to_string();
    let device = open_text(&format!("trace(delay(fault(do=die,after=9; file:{image},create=1MiB)))")).unwrap();
    let mut queue = device.queue(&private_memory(1 << 20)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(queue.resized(), None);
    device.refresh().unwrap();
    assert_eq!(queue.resized().unwrap().bytes, 2 << 20);
    let read_only = open_text(&format!("trace(file:{image},read-only=yes,lock-wait=0s)"));
    assert!(matches!(read_only, Err(OpenError::File(_))), "it is in use");
}

#[test]
fn what_cannot_be_opened_is_named() {
    for (text, part) in [
        ("floppy:a", "null, memory, file, nbd, raid0, raid1, raid5, trace"),
        ("null:1GB", "KiB"),
        ("null:1GiB,block=1000", "power of two"),
        ("null:1GiB,depth=5000", "4096"),
        ("null:1GiB,color=red", "color"),
        ("null(null:1)", "nothing"),
        ("trace:1", "one device"),
        ("trace(null:1GiB; null:1GiB)", "not of 2"),
        ("file:", "missing"),
        ("file:/nowhere/image", "/nowhere/image"),
        ("file:x,read-only=maybe", "yes or no"),
        ("nbd:nowhere", "HOST:PORT"),
        ("nbd://host:port/x", "port"),
        ("nbd:unix:/nowhere/socket", "/nowhere/socket"),
        ("nbd:unix:/nowhere/socket,exports=x", "exports"),
        ("delay(read=soon; null:1GiB)", "read=soon"),
        ("fault(null:1GiB)", "do"),
        ("fault(do=explode; null:1GiB)", "explode"),
        ("fault(do=stall; null:1GiB)", "time"),
        ("fault(do=lose,errno=5; null:1GiB)", "errno"),
        ("fault(do=fail,on=write+sing; null:1GiB)", "sing"),
        ("fault(do=fail,chance=101%; null:1GiB)", "100%"),
        ("fault(do=fail,from=1MiB,to=1MiB; null:1GiB)", "between"),
    ] {
        let error = error(text);
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn devices_are_shared_by_threads() {
    fn is_shared<T: Device + ?Sized>(_: &T) {}
    is_shared(&*open_text("null:1GiB").unwrap());
}
