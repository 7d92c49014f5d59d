//! The heap at its limits, and its buffers against a model that knows every byte.

use super::*;
use crate::testing::private_memory;
use proptest::prelude::*;

#[test]
fn the_limits_of_a_buffer() {
    let memory = private_memory(130 << 20);
    for wanted in [0, MAX_BUFFER_BYTES as usize + 1, usize::MAX] {
        assert_eq!(memory.alloc(wanted).unwrap_err(), HeapError::Size { wanted: wanted as u64 });
    }
    let largest = memory.alloc(MAX_BUFFER_BYTES as usize).unwrap();
    assert_eq!((largest.len() as u64, memory.heap().used()), (MAX_BUFFER_BYTES, MAX_BUFFER_BYTES));
    assert_eq!(memory.alloc(1).unwrap().len(), 1);
}

#[test]
fn a_full_heap_says_what_it_lacks_and_recovers() {
    let memory = private_memory(64 << 10);
    let capacity = memory.heap().capacity();
    let mut all = Vec::new();
    let error = loop {
        match memory.alloc(4096) {
            Ok(buf) => all.push(buf),
            Err(error) => break error,
        }
    };
    assert_eq!(all.len() as u64, capacity / 4096);
    assert_eq!(error, HeapError::Exhausted { wanted: 4096, used: capacity, capacity });
    let last = all.pop().unwrap();
    std::thread::spawn(move || drop(last)).join().unwrap();
    assert!(memory.alloc(64).is_ok() && memory.alloc(4096).is_ok(), "what another thread has freed is there");
}

#[test]
fn every_size_is_rounded_and_aligned_as_promised() {
    let memory = private_memory(1 << 20);
    for len in (1..=300).chain([2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193]) {
        let buf = memory.alloc(len).unwrap();
        let pages = len.div_ceil(4096).next_power_of_two() * 4096;
        let rounded = if len <= 2048 { len.next_power_of_two().max(64) } else { pages };
        assert_eq!(memory.heap().used(), rounded as u64, "{len} bytes");
        let align = if len >= 4096 { 4096 } else { 64 };
        assert!(buf.as_ptr().addr().get().is_multiple_of(align), "{len} bytes at {:p}", buf.as_ptr());
        let end = buf.segment().addr.offset() + len as u64;
        assert!(buf.segment().addr.offset() >= memory.arena().heap_start() && end <= memory.arena().len());
    }
    assert_eq!(memory.heap().used(), 0);
}

#[test]
fn a_buffer_is_lent_while_it_is_filled() {
    let memory = private_memory(64 << 10);
    let mut filling = Filling::new(memory.alloc(10).unwrap());
    assert!(filling.room() == 10 && filling.is_unlent());
    let mut lent = Payload::new();
    for (len, room) in [(3, 7), (0, 7), (7, 0), (1, 0)] {
        let (spare, piece) = (filling.spare(), len.min(filling.room()));
        for at in 0..piece {
            // SAFETY: within the room that `spare` promises.
            unsafe { spare.add(at).write(10 - filling.room() as u8 + at as u8) };
        }
        lent.append(filling.lend(len));
        assert_eq!(filling.room(), room);
    }
    let mut out = [0; 11];
    assert_eq!(memory.read_header(&lent, 0, &mut out), Ok(10));
    assert_eq!(out, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    assert_eq!((lent.parts().len(), filling.is_unlent()), (1, false), "pieces of one buffer join");
    drop(filling);
    assert_ne!(memory.heap().used(), 0, "still on loan");
    drop(lent);
    assert_eq!(memory.heap().used(), 0);
}

#[test]
fn a_truncated_buffer_is_its_front() {
    let memory = private_memory(64 << 10);
    let mut buf = memory.alloc(100).unwrap();
    for (len, left) in [(usize::MAX, 100), (101, 100), (40, 40), (50, 40), (0, 0)] {
        buf.truncate(len);
        assert_eq!((buf.len(), buf.segment().len, buf.as_slice().len()), (left, left as u32, left));
    }
    assert!(buf.into_payload().is_empty());
    assert_eq!(memory.heap().used(), 0, "an empty payload keeps nothing");
}

proptest! {
    #[test]
    fn buffers_keep_what_was_written(
        ops in prop::collection::vec((1usize..9000, any::<prop::sample::Index>(), 0u8..4), 1..120)
    ) {
        let memory = private_memory(256 << 10);
        let mut live: Vec<(ArenaBuf, u8)> = Vec::new();
        for (step, (len, which, op)) in ops.into_iter().enumerate() {
            if op == 0 && !live.is_empty() {
                let (buf, mark) = live.swap_remove(which.index(live.len()));
                prop_assert!(buf.as_slice().iter().all(|byte| *byte == mark));
            } else {
                match memory.alloc(len) {
                    Ok(mut buf) => {
                        buf.as_mut_slice().fill(step as u8);
                        live.push((buf, step as u8));
                    }
                    Err(error) => {
                        let is_full = matches!(error, HeapError::Exhausted { .. });
                        prop_assert!(is_full && !live.is_empty(), "{error}");
                    }
                }
            }
        }
        for (buf, mark) in &live {
            prop_assert!(buf.as_slice().iter().all(|byte| byte == mark), "{buf:?}");
        }
        drop(live);
        prop_assert_eq!(memory.heap().used(), 0);
        let whole = memory.heap().capacity() / 2;
        prop_assert!(memory.alloc(1 << whole.ilog2()).is_ok(), "and all of it is one piece again");
    }
}
