//! Arrays whose power fails, whose process is killed and whose members fail, at any step, over and over.
//!
//! One run is an array in use, drawn from a seed: level, members, sizes, requests. At some step everything stops; disks
//! then have what disks have, and often a member is gone for good at the same moment. After the next assembly (which may
//! be interrupted as well) every sector must have what was acknowledged, or what was being written; and it must still
//! have it when one more member fails, if there was redundancy left. Then it goes on.
//!
//! `RAID_SEEDS=1000..2000 cargo test -p mmblk --test raid_crash` runs others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod raid_sim {
    pub mod disk;
    pub mod model;
}

use std::ops::Range;

use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use mmblk::backend::raid::assemble::assemble;
use mmblk::backend::raid::create::{CreateOptions, create, least_log_bytes};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidOptions, RaidQueue};
use mmblk::queue::{BlockOp, BlockQueue};
use raid_sim::disk::{Disk, Power, Random, SECTOR};
use raid_sim::model::{Model, content};

const CHUNK: u64 = 4096;
const STRIPES: u64 = 12;
/// Polls without any progress before a run counts as hung.
const PATIENCE: u32 = 200_000;
const DEPTH: usize = 8;

/// What a run has shown, so that it is seen that it shows anything.
#[derive(Debug, Default)]
struct Seen {
    crashes: u64,
    members_lost: u64,
    interrupted_assemblies: u64,
    rebuilds: u64,
    degraded_checks: u64,
}

struct Run {
    random: Random,
    power: Power,
    memory: Memory,
    disks: Vec<Disk>,
    member_bytes: u64,
    options: RaidOptions,
    model: Model,
    number: u32,
    /// Requests in flight: sectors and number of a write, or the time of a flush.
    flying: Vec<(u64, Flying)>,
    next_id: u64,
    level: Level,
    /// Disks that have failed since the array was assembled.
    breaks: u64,
}

#[derive(Debug, Clone)]
enum Flying {
    Write(Range<usize>, u32, bool),
    Flush(u64),
    Read(Range<usize>),
}

impl Run {
    fn new(seed: u64) -> Self {
        let random = Random::new(seed);
        let power = Power::new(u64::MAX);
        let memory = private_memory(16 << 20);
        let level = if random.chance(80) { Level::Raid5 } else { Level::Raid1 };
        let members = if level == Level::Raid5 { 3 + random.below(3) } else { 2 + random.below(2) };
        let log_bytes = if random.chance(40) { least_log_bytes(CHUNK as u32, 512) } else { 256 << 10 };
        let member_bytes = ((128 << 10) + log_bytes).next_multiple_of(64 << 10) + STRIPES * CHUNK;
        let disks: Vec<Disk> = (0..members).map(|_| Disk::new(member_bytes, &random, &power)).collect();
        let options = RaidOptions {
            depth: DEPTH as u32,
            log_full_stripes: random.chance(50),
            allow_degraded: true,
            ..RaidOptions::default()
        };
        let queues = disks.iter().map(|disk| MemberQueue::new(disk.queue(&memory))).collect();
        let create_options = CreateOptions { level, chunk: CHUNK as u32, log_bytes, zeroed: true };
        create(queues, &create_options, &memory).unwrap();
        let data = if level == Level::Raid5 { members - 1 } else { 1 };
        let model = Model::new((STRIPES * data * CHUNK) as usize / SECTOR);
        Self {
            random,
            power,
            memory,
            disks,
            member_bytes,
            options,
            model,
            number: 0,
            flying: Vec::new(),
            next_id: 0,
            level,
            breaks: 0,
        }
    }

    fn assemble(&self) -> Result<RaidQueue, mmblk::backend::raid::RaidError> {
        let whole = self.disks.iter().filter(|disk| !disk.is_broken());
        let queues = whole.map(|disk| MemberQueue::new(disk.queue(&self.memory))).collect();
        assemble(queues, None, self.options, &self.memory)
    }

    /// The next request: partial and whole stripes, here and there. Never over what is in flight.
    fn request(&mut self, queue: &mut RaidQueue) {
        let width = queue.layout().stripe_bytes() as usize / SECTOR;
        let sectors = queue.geometry().bytes as usize / SECTOR;
        if self.random.chance(6) {
            self.submit(queue, BlockOp::Flush, Flying::Flush(self.model.now()));
            return;
        }
        let stripe = self.random.below(STRIPES.min(5)) as usize * width;
        let (start, len) = match self.random.below(5) {
            0 => (stripe, width),
            1 => (stripe, width * (1 + self.random.below(2) as usize)),
            2 => (stripe + self.random.below(width as u64) as usize, 1 + self.random.below(width as u64) as usize),
            _ => (stripe + self.random.below(width as u64) as usize, 1 + self.random.below(8) as usize),
        };
        let range = start.min(sectors - 1)..(start + len).min(sectors);
        let busy = self.flying.iter().any(|(_, flying)| match flying {
            Flying::Write(other, ..) | Flying::Read(other) => other.start < range.end && range.start < other.end,
            Flying::Flush(_) => false,
        });
        if busy || range.is_empty() {
            return;
        }
        let offset = (range.start * SECTOR) as u64;
        if self.random.chance(15) {
            let len = (range.len() * SECTOR) as u32;
            self.submit(queue, BlockOp::Read { offset, len }, Flying::Read(range));
            return;
        }
        self.number += 1;
        let number = self.number;
        let mut buf = self.memory.alloc(range.len() * SECTOR).unwrap();
        for (sector, bytes) in range.clone().zip(buf.as_mut_slice().chunks_mut(SECTOR)) {
            bytes.copy_from_slice(&content(number, sector));
        }
        let whole = |sector: usize| {
            let stripe = sector / width;
            range.start <= stripe * width && (stripe + 1) * width <= range.end
        };
        self.model.begin(range.clone(), number, whole);
        let durable = self.random.chance(25);
        let op = BlockOp::Write { offset, data: buf.into_payload(), durable };
        self.submit(queue, op, Flying::Write(range, number, durable));
    }

    fn submit(&mut self, queue: &mut RaidQueue, op: BlockOp, flying: Flying) {
        self.next_id += 1;
        trace(|| format!("begin {flying:?}"));
        assert!(queue.submit(self.next_id, op).is_ok());
        self.flying.push((self.next_id, flying));
    }

    /// Uses the array until the power fails. What completes after that has not been heard.
    fn use_array(&mut self, queue: &mut RaidQueue) -> Result<(), String> {
        let mut idle = 0;
        while !self.power.is_off() {
            if self.flying.len() < DEPTH && self.random.chance(40) {
                self.request(queue);
            }
            if self.random.chance(1) && self.random.chance(50) {
                self.lose_member(queue);
            }
            let Some(completion) = queue.poll() else {
                idle += 1;
                if idle > PATIENCE {
                    return Err(format!("nothing moves: {:?} {:?}", self.flying, queue.status()));
                }
                continue;
            };
            idle = 0;
            if self.power.is_off() {
                break;
            }
            let at = self.flying.iter().position(|(id, _)| *id == completion.id).unwrap();
            let (_, flying) = self.flying.remove(at);
            trace(|| format!("ended {flying:?}"));
            let data =
                completion.result.map_err(|error| format!("{flying:?} failed: {error}: {:?}", queue.status()))?;
            match flying {
                Flying::Write(range, number, durable) => self.model.acknowledge(range, number, durable),
                Flying::Flush(then) => self.model.flushed(then),
                Flying::Read(range) => self.check_read(&range, &data)?,
            }
        }
        Ok(())
    }

    fn check_read(&self, range: &Range<usize>, data: &fido_core::payload::Payload) -> Result<(), String> {
        let mut bytes = vec![0; range.len() * SECTOR];
        self.memory.read_header(data, 0, &mut bytes).unwrap();
        for (sector, bytes) in range.clone().zip(bytes.chunks(SECTOR)) {
            if let Some(number) = self.model.newest(sector)
                && number != u32::MAX
                && content(number, sector) != bytes
            {
                return Err(format!("a read of sector {sector} did not find write {number}"));
            }
        }
        Ok(())
    }

    /// A disk begins to fail while the array is in use, if the array can do without it; a new one comes.
    fn lose_member(&mut self, queue: &mut RaidQueue) {
        let status = queue.status();
        // One at a time: the array must have noticed the last one, and have done with it.
        if status.kicked < self.breaks || !status.roles.iter().all(|role| *role == Role::Active) {
            return;
        }
        self.breaks = status.kicked + 1;
        let whole: Vec<usize> = (0..self.disks.len()).filter(|disk| !self.disks[*disk].is_broken()).collect();
        trace(|| format!("a disk fails: {status:?}"));
        self.disks[whole[self.random.below(whole.len() as u64) as usize]].fail();
        if self.random.chance(40) {
            // Whatever has made it fail takes the rest down in a moment.
            self.power.set(1 + self.random.below(40));
        }
        if self.random.chance(60) {
            let disk = Disk::new(self.member_bytes, &self.random, &self.power);
            queue.add_spare(MemberQueue::new(disk.queue(&self.memory))).unwrap();
            self.disks.push(disk);
        }
    }

    /// Reads everything.
    fn read_all(&self, queue: &mut RaidQueue) -> Result<Vec<u8>, String> {
        let len = queue.geometry().bytes as u32;
        assert!(queue.submit(0, BlockOp::Read { offset: 0, len }).is_ok());
        for _ in 0..PATIENCE {
            if let Some(completion) = queue.poll() {
                let data =
                    completion.result.map_err(|error| format!("cannot read all: {error}: {:?}", queue.status()))?;
                let mut bytes = vec![0; len as usize];
                self.memory.read_header(&data, 0, &mut bytes).unwrap();
                return Ok(bytes);
            }
        }
        Err(format!("a read hangs: {:?}", queue.status()))
    }

    /// Everything stops, is started again, and is looked at.
    fn crash(&mut self, queue: RaidQueue, seen: &mut Seen) -> Result<RaidQueue, String> {
        let status = queue.status();
        trace(|| format!("crash: {status:?}"));
        drop(queue);
        seen.crashes += 1;
        seen.rebuilds += status.rebuilds;
        let power_lost = self.random.chance(60);
        self.disks.iter().for_each(|disk| disk.crash(power_lost));
        self.flying.clear();
        // One that had failed without anybody having noticed is the one that is lost.
        let unnoticed = std::mem::take(&mut self.breaks) > status.kicked;
        self.disks.retain(|disk| !disk.is_broken());
        let mut queue =
            self.next_assembly(seen, !unnoticed && status.roles.iter().all(|role| *role == Role::Active), power_lost)?;
        trace(|| format!("power lost: {power_lost}; assembled: {:?}", queue.status()));
        let found = self.read_all(&mut queue)?;
        let degraded = queue.status().roles.iter().any(|role| *role != Role::Active);
        let may_tear = !self.options.log_full_stripes && degraded && self.level == Level::Raid5;
        self.model.after_crash(&found, power_lost, may_tear)?;
        if !degraded && self.random.chance(40) {
            // The redundancy is right too: it is all the same without any one member.
            let member = self.random.below(queue.status().roles.len() as u64) as usize;
            queue.fail_member(member);
            let again = self.read_all(&mut queue)?;
            seen.degraded_checks += 1;
            if let Some(at) = found.iter().zip(&again).position(|(a, b)| a != b) {
                return Err(format!("without member {member} sector {} is another", at / SECTOR));
            }
            let disk = Disk::new(self.member_bytes, &self.random, &self.power);
            queue.add_spare(MemberQueue::new(disk.queue(&self.memory))).unwrap();
            self.disks.push(disk);
        }
        Ok(queue)
    }

    /// Assembles what is left; the power may fail again meanwhile. Often a disk has gone at the same moment.
    fn next_assembly(&mut self, seen: &mut Seen, whole: bool, power_lost: bool) -> Result<RaidQueue, String> {
        let mut lost = false;
        for _ in 0..20 {
            let interrupt = self.random.chance(25);
            self.power.set(if interrupt { 1 + self.random.below(120) } else { u64::MAX });
            if !lost && whole && self.random.chance(60) {
                let at = self.random.below(self.disks.len() as u64) as usize;
                // A disk that has never become a member is no loss.
                self.disks.remove(at);
                seen.members_lost += 1;
                lost = true;
            }
            self.drop_strangers();
            match self.assemble() {
                Ok(queue) if !self.power.is_off() => {
                    self.power.set(u64::MAX);
                    return Ok(queue);
                }
                Ok(queue) => drop(queue),
                Err(error) if !self.power.is_off() => return Err(format!("cannot be assembled: {error}")),
                Err(_) => {}
            }
            seen.interrupted_assemblies += 1;
            self.disks.iter().for_each(|disk| disk.crash(power_lost));
        }
        Err("cannot be assembled in 20 attempts".into())
    }

    /// Members that the others do not count on any more, and disks that never became members, are taken out, as an
    /// operator would after reading the error.
    fn drop_strangers(&mut self) {
        use mmblk::backend::raid::assemble::AssembleError;
        loop {
            let queues: Vec<MemberQueue> =
                self.disks.iter().map(|disk| MemberQueue::new(disk.queue(&self.memory))).collect();
            let error = mmblk::backend::raid::assemble::examine(queues, None, self.options, &self.memory);
            match error {
                Err(mmblk::backend::raid::RaidError::Assemble(
                    AssembleError::Stale { member, .. } | AssembleError::NoSuperblock { member, .. },
                )) => {
                    self.disks.remove(member);
                }
                _ => return,
            }
        }
    }
}

/// With `RAID_TRACE=1`, what happens.
fn trace(what: impl FnOnce() -> String) {
    if std::env::var_os("RAID_TRACE").is_some() {
        eprintln!("{}", what());
    }
}

fn run(seed: u64, seen: &mut Seen) -> Result<(), String> {
    let mut run = Run::new(seed);
    let mut queue = run.assemble().map_err(|error| error.to_string())?;
    for _ in 0..3 {
        run.power.set(50 + run.random.below(600));
        run.use_array(&mut queue)?;
        queue = run.crash(queue, seen)?;
    }
    Ok(())
}

#[test]
fn no_acknowledged_byte_is_lost() {
    let chosen = std::env::var("RAID_SEEDS");
    let seeds = chosen.as_deref().unwrap_or("0..50");
    let (from, to) = seeds.split_once("..").unwrap();
    let mut seen = Seen::default();
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &mut seen)));
        let failed = match result {
            Ok(Ok(())) => continue,
            Ok(Err(message)) => message,
            Err(_) => "it panicked".into(),
        };
        panic!("{failed}\nreplay: RAID_SEEDS={seed}..{} cargo test -p mmblk --test raid_crash", seed + 1);
    }
    println!("{seen:?}");
    // A few seeds that somebody has chosen need not have shown everything.
    let all = seen.crashes > 0 && seen.members_lost > 0 && seen.degraded_checks > 0 && seen.interrupted_assemblies > 0;
    assert!(chosen.is_ok() || all && seen.rebuilds > 0, "{seen:?}");
}
