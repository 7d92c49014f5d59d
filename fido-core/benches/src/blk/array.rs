//! RAID 5: whole stripes against the members alone and together, and parity against a copy.
//!
//! The members are memory that takes its time, as disks do, which shows what an array makes of what its members are able
//! to do; memory as it is and images in a folder, with and without the page cache, show what the processors are able to
//! do. What is compared is said in `mmblk::backend::raid::measure`.

use std::path::Path;

use fido_core::memory::Memory;
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::raid::MemberQueue;
use mmblk::backend::raid::create::CreateOptions;
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::measure::{FullStripe, full_stripe, parity_speed};
use mmblk::device::open_text;
use mmblk::queue::Geometry;

use super::paced::Paced;
use super::{Options, pair};
use crate::Failure;
use crate::other_side::Program;
use crate::report::{Column, Limit, Raw, Row, Table, Target, median};

const MEMBERS: usize = 4;
/// Stripes under way.
const DEPTH: usize = 8;
const LOG_BYTES: u64 = 4 << 20;
const MIB: f64 = (1 << 20) as f64;
/// What a member that takes its time takes in a second.
const RATE: f64 = 150.0 * MIB;
/// What of the data members' sum must be left.
const OF_MEMBERS: f64 = 0.8;
/// Payloads of which parity is made, and the bytes of each.
const SOURCES: [usize; 4] = [2, 3, 4, 8];
const SOURCE_BYTES: usize = 1 << 20;

/// What the members are.
#[derive(Debug, Clone, Copy)]
enum Members {
    Paced,
    Memory,
    Files,
    DirectFiles,
}

const SUBJECTS: [(&str, Members); 4] = [
    ("memory at 150 MiB/s", Members::Paced),
    ("memory", Members::Memory),
    ("file", Members::Files),
    ("file, O_DIRECT", Members::DirectFiles),
];

/// Measures everything about arrays.
pub fn measure(options: &Options, _program: &Program<'_>) -> Result<(Vec<Table>, Vec<Target>), Failure> {
    eprintln!("arrays ...");
    let memory = pair::memory()?;
    let stripes = if options.quick { 32 } else { 256 };
    let mut found: Vec<Vec<FullStripe>> = SUBJECTS.map(|_| Vec::new()).into();
    for _ in 0..options.rounds {
        for ((_, members), found) in SUBJECTS.iter().zip(&mut found) {
            found.push(round(*members, &options.folder(), stripes, &memory)?);
        }
    }
    let mut table = Table::new(
        "raid5",
        format!("whole stripes of RAID 5 of {MEMBERS} ({} rounds)", options.rounds),
        vec![
            Column::new("array, data", "MiB/s", 0),
            Column::new("and parity", "MiB/s", 0),
            Column::new("members alone", "MiB/s", 0),
            Column::new("together", "MiB/s", 0),
            Column::new("array / alone", "", 2),
            Column::new("array / together", "", 2),
        ],
    );
    let mut targets = Vec::new();
    for ((name, _), found) in SUBJECTS.iter().zip(&found) {
        let middle = |of: fn(&FullStripe) -> f64| median(&found.iter().map(of).collect::<Vec<_>>());
        let (array, with_parity, alone, together) = (
            middle(|one| one.array / MIB),
            middle(|one| one.with_parity() / MIB),
            middle(|one| one.alone.iter().sum::<f64>() / MIB),
            middle(|one| one.together / MIB),
        );
        // Both of a ratio are from the same round.
        let (to_alone, to_together) = (middle(FullStripe::to_alone), middle(FullStripe::to_together));
        let cells = [array, with_parity, alone, together, to_alone, to_together].map(Some);
        let raw = Raw::Rounds(found.iter().flat_map(|one| [one.array, one.to_alone()]).collect());
        table.rows.push(Row { raw, ..Row::new(*name, cells.to_vec()) });
        let what = format!("RAID 5, whole stripes, {name}: data and parity, of the members alone");
        targets.push(Target { what, limit: Limit::AtLeast(OF_MEMBERS), measured: Some(to_alone) });
    }
    table.notes.push(
        "members alone: the sum, one after the other; ratios: data and parity to all members, which is as".into(),
    );
    table.notes.push("data to n - 1 of n members; rounds in the raw data".into());
    table.notes.push("where members cost more processor than time, the processors cannot do that sum at once".into());
    Ok((vec![table, parity(&memory)?], targets))
}

/// One new array.
fn round(members: Members, folder: &Path, stripes: u64, memory: &Memory) -> Result<FullStripe, Failure> {
    let options = CreateOptions { zeroed: true, log_bytes: LOG_BYTES, ..CreateOptions::new(Level::Raid5) };
    let bytes = LOG_BYTES + (2 << 20) + stripes * u64::from(options.chunk);
    let images = Images::at(folder);
    let queue = |index: usize| -> Result<MemberQueue, Failure> {
        let in_memory = || MemoryDevice::new(Geometry { bytes, block: 4096, depth: 64 })?.queue(memory.clone());
        Ok(match members {
            Members::Memory => MemberQueue::new(in_memory()?),
            Members::Paced => MemberQueue::new(Paced::new(in_memory()?, RATE)?),
            Members::Files | Members::DirectFiles => {
                let image = images.0.get(index).ok_or("no such member")?.display();
                let direct = if matches!(members, Members::DirectFiles) { ",direct=yes" } else { "" };
                let device = open_text(&format!("file:{image},create={bytes},block=4096,depth=64{direct}"))?;
                MemberQueue::new(device.queue(memory)?)
            }
        })
    };
    let members = (0..MEMBERS).map(queue).collect::<Result<Vec<_>, _>>()?;
    Ok(full_stripe(members, &options, stripes, DEPTH, memory)?)
}

/// The members' images, removed when dropped.
struct Images(Vec<std::path::PathBuf>);

impl Images {
    fn at(folder: &Path) -> Self {
        let path = |index| folder.join(format!("fido-bench-{}-member{index}.img", std::process::id()));
        Self((0..MEMBERS).map(path).collect())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for path in &self.0 {
            // Of members in memory there is none; what cannot be removed is left.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn parity(memory: &Memory) -> Result<Table, Failure> {
    let columns = vec![Column::new("parity", "MiB/s", 0), Column::new("copy", "MiB/s", 0), Column::new("ratio", "", 2)];
    let mut table = Table::new("parity", "parity of payloads of 1 MiB, bytes read (best of 20)", columns);
    for sources in SOURCES {
        let (parity, copy) = parity_speed(memory, sources, SOURCE_BYTES)?;
        let cells = [parity / MIB, copy / MIB, parity / copy].map(Some);
        table.rows.push(Row::new(format!("{sources} sources"), cells.to_vec()));
    }
    Ok(table)
}
