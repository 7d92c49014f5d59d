//! What may be found on the array after a crash.
//!
//! A sector's content is a number, the write's; 0 is "never written".

use std::collections::BTreeMap;

use super::disk::SECTOR;

/// The bytes of a sector that write `number` has written.
pub fn content(number: u32, sector: usize) -> [u8; SECTOR] {
    if number == 0 {
        return [0; SECTOR];
    }
    let mix = u64::from(number) << 32 | sector as u64;
    std::array::from_fn(|i| (mix.wrapping_add(i as u64 / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (8 * (i % 8))) as u8)
}

#[derive(Debug, Clone, Copy)]
struct Version {
    number: u32,
    /// When it was acknowledged, if it was.
    acked: Option<u64>,
    /// It was part of a write of a whole stripe.
    whole: bool,
}

/// What is known of each sector.
pub struct Model {
    stable: Vec<u32>,
    versions: BTreeMap<usize, Vec<Version>>,
    clock: u64,
}

impl Model {
    pub fn new(sectors: usize) -> Self {
        Self { stable: vec![0; sectors], versions: BTreeMap::new(), clock: 0 }
    }

    pub fn begin(&mut self, sectors: std::ops::Range<usize>, number: u32, whole: impl Fn(usize) -> bool) {
        for sector in sectors {
            let version = Version { number, acked: None, whole: whole(sector) };
            self.versions.entry(sector).or_default().push(version);
        }
    }

    pub fn acknowledge(&mut self, sectors: std::ops::Range<usize>, number: u32, durable: bool) {
        self.clock += 1;
        for sector in sectors {
            let Some(versions) = self.versions.get_mut(&sector) else { continue };
            if durable {
                self.stable[sector] = number;
                versions.clear();
            } else if let Some(version) = versions.iter_mut().find(|version| version.number == number) {
                version.acked = Some(self.clock);
            }
        }
    }

    /// The time of a flush that begins.
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// A flush that began at `then` is acknowledged.
    pub fn flushed(&mut self, then: u64) {
        for (sector, versions) in &mut self.versions {
            let last = versions.iter().rposition(|version| version.acked.is_some_and(|acked| acked <= then));
            if let Some(last) = last {
                self.stable[*sector] = versions[last].number;
                versions.drain(..=last);
            }
        }
    }

    /// What every read must find now, if nothing is in flight there.
    pub fn newest(&self, sector: usize) -> Option<u32> {
        match self.versions.get(&sector).and_then(|versions| versions.last()) {
            Some(version) => version.acked.map(|_| version.number),
            None => Some(self.stable[sector]),
        }
    }

    /// Takes over what is found after a crash. What must not be there is returned.
    pub fn after_crash(&mut self, found: &[u8], power_lost: bool, may_tear: bool) -> Result<(), String> {
        for (sector, bytes) in found.chunks(SECTOR).enumerate() {
            let versions = self.versions.get(&sector).cloned().unwrap_or_default();
            let acked = versions.iter().rposition(|version| version.acked.is_some());
            // Without a loss of power what was acknowledged last is there, or what came after it.
            let from = if power_lost { None } else { acked };
            let mut allowed: Vec<u32> = versions[from.unwrap_or(0)..].iter().map(|version| version.number).collect();
            if from.is_none() {
                allowed.push(self.stable[sector]);
            }
            let known = allowed.iter().find(|number| content(**number, sector) == bytes);
            match known {
                Some(number) => self.stable[sector] = *number,
                None if may_tear && versions[from.map_or(0, |at| at + 1)..].iter().any(|version| version.whole) => {
                    // Whatever it is, it is not looked at again: the next write makes it known.
                    self.stable[sector] = u32::MAX;
                }
                None if self.stable[sector] == u32::MAX && allowed.contains(&u32::MAX) => {}
                None => {
                    let other = (0..self.top()).find(|number| content(*number, sector) == bytes);
                    return Err(format!("sector {sector} has write {other:?}, not one of {allowed:?}: {versions:?}"));
                }
            }
        }
        self.versions.clear();
        Ok(())
    }

    fn top(&self) -> u32 {
        let newest = self.versions.values().flatten().map(|version| version.number).max().unwrap_or(0);
        newest.max(self.stable.iter().copied().filter(|number| *number != u32::MAX).max().unwrap_or(0)) + 1
    }
}
