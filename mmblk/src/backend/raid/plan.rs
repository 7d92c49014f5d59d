//! What a write to one stripe of a RAID 5 has to read and to write.
//!
//! The rows of a stripe are looked at in *bands*: ranges of rows in which the same chunks are written. (A write that
//! begins in the middle of one chunk and ends in the middle of another has up to three.) A band in which all data is
//! written needs no reading. In the others the parity comes either from the old parity and the old data of what is
//! written (read-modify-write), or from the data that is not written (reconstruct-write): whichever reads less, or
//! whichever can be done if a member is missing. In each case it is the exclusive or of what is read and what is
//! written.

use std::ops::Range;

use super::layout::Layout;

/// Rows that are to be read from a member for a band.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) member: usize,
    pub(super) rows: Range<u32>,
    /// The band's index.
    pub(super) band: usize,
}

/// Rows in which the same chunks are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) rows: Range<u32>,
    /// The chunks that are written.
    pub(super) chunks: Vec<usize>,
}

/// What a write has to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// For the parity; none if the parity's member is missing.
    pub(super) bands: Vec<Band>,
    pub(super) reads: Vec<Read>,
    /// All data of every row that is touched is written.
    pub(super) full: bool,
}

/// The rows of `chunk` that a range of a stripe touches.
pub(super) fn rows_of(range: &Range<u64>, chunk: usize, chunk_bytes: u32) -> Range<u32> {
    let base = chunk as u64 * u64::from(chunk_bytes);
    let start = range.start.clamp(base, base + u64::from(chunk_bytes)) - base;
    let end = range.end.clamp(base, base + u64::from(chunk_bytes)) - base;
    start as u32..end as u32
}

/// Plans the write of `range` (bytes within the stripe). `readable` and `writable` say which members can be read and
/// written. `None` if it cannot be done: too much is missing.
pub(super) fn plan(layout: &Layout, stripe: u64, range: &Range<u64>, readable: u32, writable: u32) -> Option<Plan> {
    let has = |mask: u32, member: usize| mask >> member & 1 == 1;
    let parity = layout.parity_member(stripe)?;
    let touched: Vec<Range<u32>> = (0..layout.data_chunks()).map(|chunk| rows_of(range, chunk, layout.chunk)).collect();
    let mut plan = Plan { full: true, ..Plan::default() };
    let mut cuts: Vec<u32> = touched.iter().filter(|rows| !rows.is_empty()).flat_map(|r| [r.start, r.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    for rows in cuts.windows(2).map(|cut| cut[0]..cut[1]) {
        let (written, kept): (Vec<usize>, Vec<usize>) = (0..layout.data_chunks())
            .partition(|chunk| touched[*chunk].start <= rows.start && rows.end <= touched[*chunk].end);
        if written.is_empty() {
            continue;
        }
        plan.full &= kept.is_empty();
        if !has(writable, parity) {
            // Data only; but then none of it may be missing.
            if written.iter().any(|chunk| !has(writable, layout.data_member(stripe, *chunk))) {
                return None;
            }
            continue;
        }
        let members = |chunks: &[usize]| chunks.iter().map(|c| layout.data_member(stripe, *c)).collect::<Vec<_>>();
        let reconstruct = members(&kept);
        let mut modify = members(&written);
        modify.push(parity);
        let can = |members: &[usize]| members.iter().all(|member| has(readable, *member));
        let from = match (can(&reconstruct), can(&modify)) {
            (true, true) if modify.len() < reconstruct.len() => modify,
            (true, _) => reconstruct,
            (false, true) => modify,
            (false, false) => return None,
        };
        let band = plan.bands.len();
        plan.reads.extend(from.into_iter().map(|member| Read { member, rows: rows.clone(), band }));
        plan.bands.push(Band { rows, chunks: written });
    }
    Some(plan)
}

#[cfg(test)]
mod tests {
    use super::super::layout::Level;
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 4096;

    fn layout(members: usize) -> Layout {
        Layout { level: Level::Raid5, members, chunk: CHUNK as u32, data_offset: 0, stripes: 64 }
    }

    fn all(members: usize) -> u32 {
        (1 << members) - 1
    }

    fn reads(plan: &Plan) -> u64 {
        plan.reads.iter().map(|read| u64::from(read.rows.end - read.rows.start)).sum()
    }

    #[test]
    fn a_full_stripe_reads_nothing() {
        let plan = plan(&layout(5), 0, &(0..4 * CHUNK), all(5), all(5)).unwrap();
        assert!(plan.full && plan.reads.is_empty());
        assert_eq!(plan.bands, [Band { rows: 0..4096, chunks: vec![0, 1, 2, 3] }]);
    }

    #[test]
    fn whichever_reads_less() {
        let small = plan(&layout(6), 0, &(512..1024), all(6), all(6)).unwrap();
        let of = |plan: &Plan| plan.reads.iter().map(|read| read.member).collect::<Vec<_>>();
        assert_eq!((of(&small), reads(&small), small.full), (vec![0, 5], 1024, false), "old data and old parity");
        let most = plan(&layout(6), 0, &(0..4 * CHUNK), all(6), all(6)).unwrap();
        assert_eq!((of(&most), reads(&most)), (vec![4], CHUNK), "what is not written");
    }

    #[test]
    fn a_missing_member_decides() {
        let of = |range, missing: usize| {
            let mask = all(5) & !(1 << missing);
            plan(&layout(5), 0, &range, mask, mask).unwrap().reads.iter().map(|r| r.member).collect::<Vec<_>>()
        };
        assert_eq!(of(0..512, 0), [1, 2, 3], "the written one is missing: from the others");
        assert_eq!(of(0..512, 3), [0, 4], "another one is missing: from the old parity");
        assert_eq!(of(0..3 * CHUNK, 3), [0, 1, 2, 4]);
        assert!(of(0..512, 4).is_empty(), "no parity, nothing to compute");
    }

    proptest! {
        /// The parity that a plan leads to is the parity of the data that is then there, whoever is missing.
        #[test]
        fn the_parity_is_right(members in 3usize..7, stripe in 0u64..9, start in 0u64..40, len in 1u64..40, missing in 0usize..8) {
            let layout = layout(members);
            let width = layout.stripe_bytes();
            let range = (start * 512).min(width - 512)..((start + len) * 512).min(width);
            prop_assume!(range.start < range.end);
            let parity = layout.parity_member(stripe).unwrap();
            let missing = (missing < members).then_some(missing);
            let mask = all(members) & !missing.map_or(0, |m| 1 << m);
            let plan = plan(&layout, stripe, &range, mask, mask).unwrap();
            let byte = |seed: u64| (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8;
            let mut disks: Vec<Vec<u8>> = (0..members as u64).map(|m| (0..CHUNK).map(|row| byte(m << 32 | row)).collect()).collect();
            let xor = |disks: &[Vec<u8>], but: usize, row: usize| (0..members).filter(|m| *m != but).fold(0, |sum, m| sum ^ disks[m][row]);
            let rows: Vec<u8> = (0..CHUNK as usize).map(|row| xor(&disks, parity, row)).collect();
            disks[parity] = rows;
            let new = |at: u64| byte(at ^ 0xABCD_EF00_0000);
            let old = disks.clone();
            for at in range.clone() {
                let member = layout.data_member(stripe, (at / CHUNK) as usize);
                disks[member][(at % CHUNK) as usize] = new(at);
            }
            for (index, band) in plan.bands.iter().enumerate() {
                for row in band.rows.clone() {
                    let mut sum = 0;
                    for read in plan.reads.iter().filter(|read| read.band == index) {
                        prop_assert!(Some(read.member) != missing && read.rows == band.rows);
                        sum ^= old[read.member][row as usize];
                    }
                    for chunk in &band.chunks {
                        sum ^= new(*chunk as u64 * CHUNK + u64::from(row));
                    }
                    disks[parity][row as usize] = sum;
                }
            }
            if missing != Some(parity) {
                for row in 0..CHUNK as usize {
                    prop_assert_eq!(disks[parity][row], xor(&disks, parity, row));
                }
            } else {
                prop_assert!(plan.bands.is_empty() && plan.reads.is_empty());
            }
        }
    }
}
