//! The hypervisor's own trace (`xentrace`): how often each processor came into Xen, and for what.
//!
//! Source of the format: `xen/include/public/trace.h` of Xen 4.17, and `tools/xentrace/xentrace.c` for what the tool adds.

use std::collections::BTreeMap;

/// The events that `xentrace -e` is to record for [`count`]: entries from PV guests, exits from and calls by PVH guests.
pub const EVENTS: &str = "0x283000";

/// The tool says which processor the records that follow are of.
const CPU_CHANGE: u32 = 0x0001_f003;
/// Records did not fit: how many there were is not known.
const LOST_RECORDS: u32 = 0x0001_f001;
/// All kinds of entry from a PV guest, one digit each.
const PV_ENTRY: u32 = 0x0020_1000;
const PV_HYPERCALL: u32 = PV_ENTRY + 13;
/// The number of the hypercall in the first word; the rest says which arguments follow.
const CALL_NUMBER: u32 = 0xf_ffff;
/// A PVH guest leaves for Xen, with a 32-bit address and with a 64-bit one.
const HVM_EXIT: u32 = 0x0008_1002;
const HVM_HYPERCALL: u32 = 0x0008_2012;
/// The event's addresses have 64 bits.
const WIDE: u32 = 0x100;

/// What a processor was in Xen for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Hypercalls, by their numbers.
    pub hypercalls: BTreeMap<u32, u64>,
    /// All entries that the guest caused, hypercalls included: traps, faults, exits.
    pub all: u64,
}

impl Entries {
    /// All hypercalls.
    #[must_use]
    pub fn hypercalls(&self) -> u64 {
        self.hypercalls.values().sum()
    }

    /// Hypercalls with this number.
    #[must_use]
    pub fn of(&self, number: u32) -> u64 {
        self.hypercalls.get(&number).copied().unwrap_or_default()
    }
}

/// `__HYPERVISOR_event_channel_op`.
pub const EVENT_CHANNEL_OP: u32 = 32;
/// `__HYPERVISOR_xen_version`.
pub const XEN_VERSION: u32 = 17;

/// Why a trace says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It ends within a record.
    #[error("the trace ends within a record, at byte {0}")]
    Torn(usize),
    /// Records before the first processor's name.
    #[error("the trace begins with records of no processor")]
    NoProcessor,
    /// The hypervisor's buffers were too small.
    #[error("Xen's trace buffers were too small: records are lost")]
    Lost,
}

/// Counts a trace's entries by processor.
///
/// # Errors
/// A trace that is no trace, or has holes.
pub fn count(trace: &[u8]) -> Result<BTreeMap<u32, Entries>, TraceError> {
    let mut found: BTreeMap<u32, Entries> = BTreeMap::new();
    let mut processor = None;
    let mut at = 0;
    let word = |at: usize| -> Result<u32, TraceError> {
        let bytes = trace.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(TraceError::Torn(at))
    };
    while at < trace.len() {
        let head = word(at)?;
        let (event, extra, has_time) = (head & 0x0fff_ffff, head >> 28 & 7, head >> 31 == 1);
        let body = at + 4 + if has_time { 8 } else { 0 };
        let next = body + extra as usize * 4;
        if next > trace.len() {
            return Err(TraceError::Torn(at));
        }
        match event {
            CPU_CHANGE => processor = Some(word(body)?),
            LOST_RECORDS => return Err(TraceError::Lost),
            _ => {
                let processor = processor.ok_or(TraceError::NoProcessor)?;
                let number = if extra == 0 { None } else { Some(word(body)? & CALL_NUMBER) };
                note(found.entry(processor).or_default(), event & !WIDE, number);
            }
        }
        at = next;
    }
    Ok(found)
}

fn note(entries: &mut Entries, event: u32, number: Option<u32>) {
    if let Some(number) = number.filter(|_| event == PV_HYPERCALL || event == HVM_HYPERCALL) {
        *entries.hypercalls.entry(number).or_default() += 1;
    }
    // A PVH guest's call comes with an exit, which is counted.
    entries.all += u64::from(event & !0xfff == PV_ENTRY || event == HVM_EXIT);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(event: u32, time: bool, extra: &[u32]) -> Vec<u8> {
        let head = event | (extra.len() as u32) << 28 | u32::from(time) << 31;
        let mut words = vec![head];
        words.extend(if time { &[1, 2][..] } else { &[] });
        words.extend(extra);
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn entries_are_counted_where_they_happened() {
        let trace = [
            record(CPU_CHANGE, false, &[1, 4096]),
            record(PV_HYPERCALL, true, &[32 | 5 << 20, 1, 2]),
            record(PV_HYPERCALL | WIDE, true, &[17, 1, 2, 3]),
            record(PV_ENTRY + 6, true, &[7]),
            record(CPU_CHANGE, false, &[2, 4096]),
            record(HVM_EXIT | WIDE, true, &[1, 2, 3]),
            record(HVM_HYPERCALL, true, &[29]),
            record(0x0002_8006, true, &[]),
            record(CPU_CHANGE, false, &[1, 4096]),
            record(PV_HYPERCALL, false, &[32]),
        ];
        let found = count(&trace.concat()).unwrap();
        assert_eq!(found[&1], Entries { hypercalls: [(32, 2), (17, 1)].into(), all: 4 });
        assert_eq!(found[&2], Entries { hypercalls: [(29, 1)].into(), all: 1 });
        assert_eq!((found[&1].hypercalls(), found[&1].of(XEN_VERSION), found[&2].of(XEN_VERSION)), (3, 1, 0));
        assert_eq!(count(&[]).unwrap(), BTreeMap::new());
    }

    #[test]
    fn what_cannot_be_counted_is_an_error() {
        let begin = record(CPU_CHANGE, false, &[1, 4096]);
        assert_eq!(count(&record(PV_HYPERCALL, true, &[])), Err(TraceError::NoProcessor));
        assert_eq!(count(&[begin.clone(), record(LOST_RECORDS, true, &[9, 0])].concat()), Err(TraceError::Lost));
        let whole = [begin.clone(), record(PV_HYPERCALL, true, &[1, 2])].concat();
        for length in begin.len() + 1..whole.len() {
            assert!(matches!(count(&whole[..length]), Err(TraceError::Torn(_))), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_counted_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = count(&bytes);
        }
    }
}
