//! A learning switch: Ethernet frames between many ports, by address.
//!
//! It copies the first 18 bytes of each frame to see where it goes, and touches nothing else: frames cross it as the
//! segments they came as, in whatever arenas they lie, and what comes back of them goes straight to who lent them. A frame to
//! several ports goes to each as a clone of the list.
//!
//! No port can hold up another: a turn takes a bounded number of frames from each, one after the other and beginning with
//! another each time; what a port cannot take at once it drops and counts. How many frames a port may send to everybody
//! (broadcast and multicast; to stations that are not known) can be limited.
//!
//! It is a hub for trees, not for rings: it speaks no spanning tree protocol, and frames of such protocols end here.

mod counts;
pub mod fuzzing;
mod settings;
mod storm;
mod table;
#[cfg(test)]
mod tests;
mod vlan;

use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::wait::Source;

pub use counts::PortCounts;
pub use settings::{PortSettings, SettingsError, SwitchSettings};
pub use table::MAX_STATIONS;
pub use vlan::{Membership, VLANS};

use crate::frame::{Frame, FramePort, HEADER_BYTES, TAG_BYTES, lies_in};
use storm::Bucket;
use table::{Station, Table};
use vlan::{Header, retagged};

/// The most ports of a switch.
pub const MAX_PORTS: usize = 256;
/// Frames taken from one port before the next has its turn.
const BATCH: usize = 32;
/// Dead domains whose bytes may still be on the way here.
const REMEMBERED_DEAD: usize = 8;
/// Addresses of protocols between neighbours, which no switch passes on (IEEE 802.1D): all but the last four bits.
const RESERVED: [u8; 6] = [0x01, 0x80, 0xC2, 0, 0, 0];

#[derive(Debug)]
struct Port<P> {
    device: P,
    settings: PortSettings,
    counts: PortCounts,
    broadcast: Option<Bucket>,
    unknown: Option<Bucket>,
}

/// Where a frame goes.
enum Way {
    To(usize),
    Everywhere,
}

/// A switch over ports of one kind. One thread's.
#[derive(Debug)]
pub struct Switch<P> {
    ports: Vec<Port<P>>,
    table: Table,
    memory: Memory,
    began: Instant,
    /// The port whose turn is first.
    first: usize,
    dead: Vec<DomainId>,
}

impl<P: FramePort> Switch<P> {
    /// A switch that knows no station yet; `memory` is of its domain.
    ///
    /// # Errors
    /// [`SettingsError`] that says what makes no sense.
    pub fn new(settings: SwitchSettings, ports: Vec<(PortSettings, P)>, memory: Memory) -> Result<Self, SettingsError> {
        settings.check()?;
        if ports.len() > MAX_PORTS {
            return Err(SettingsError::Ports(ports.len()));
        }
        ports.iter().try_for_each(|(settings, _)| settings.check())?;
        let port = |(settings, device): (PortSettings, P)| Port {
            device,
            broadcast: settings.broadcast.map(Bucket::new),
            unknown: settings.unknown.map(Bucket::new),
            counts: PortCounts::default(),
            settings,
        };
        Ok(Self {
            ports: ports.into_iter().map(port).collect(),
            table: Table::new(settings.stations, settings.age),
            memory,
            began: Instant::now(),
            first: 0,
            dead: Vec::new(),
        })
    }

    /// Moves frames along, a bounded number, and hands them on. Whether there were any; if not, wait for the
    /// [`Switch::sources`].
    pub fn turn(&mut self) -> bool {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let count = self.ports.len();
        let mut worked = false;
        for step in 0..count {
            let from = (self.first + step) % count;
            for _ in 0..BATCH {
                let Some(frame) = self.ports[from].device.recv() else { break };
                worked = true;
                self.forward(from, frame, now);
            }
        }
        self.first = (self.first + 1) % count.max(1);
        self.ports.iter_mut().for_each(|port| port.device.flush());
        worked
    }

    /// Enters what to wait for.
    pub fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.extend(self.ports.iter_mut().map(|port| &mut port.device as &mut dyn Source));
    }

    /// `dead` is gone and its fence is to be passed: lets go of everything that lies in its arena, now and when it comes
    /// later by way of others.
    pub fn forget(&mut self, dead: DomainId) {
        if self.dead.len() == REMEMBERED_DEAD {
            self.dead.remove(0);
        }
        self.dead.push(dead);
        self.ports.iter_mut().for_each(|port| port.device.forget(dead));
    }

    /// The ports in the order in which they were given: what they are called, the device, and what has become of the frames
    /// that came from it.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = (&str, &P, &PortCounts)> {
        self.ports.iter().map(|port| (&*port.settings.name, &port.device, &port.counts))
    }

    /// How many stations have been heard lately, and how many were forgotten for want of room.
    pub fn stations(&self) -> (usize, u64) {
        (self.table.stations(seconds(self.began.elapsed().as_nanos() as u64)), self.table.evicted)
    }

    fn forward(&mut self, from: usize, frame: Frame, now: u64) {
        if !self.dead.is_empty() && self.dead.iter().any(|dead| lies_in(&frame.payload, *dead)) {
            self.ports[from].counts.invalid += 1;
            return;
        }
        let Some(header) = self.header(&frame) else {
            self.ports[from].counts.invalid += 1;
            return;
        };
        self.mirror(from, &frame);
        let Some((vlan, way)) = self.way(from, &header, now) else { return };
        match way {
            Way::To(to) => self.give(to, frame, &header, vlan),
            Way::Everywhere => {
                self.ports[from].counts.flooded += 1;
                for to in 0..self.ports.len() {
                    let settings = &self.ports[to].settings;
                    if to != from && !settings.mirror && settings.membership.carries(vlan) {
                        self.give(to, frame.clone(), &header, vlan);
                    }
                }
            }
        }
    }

    /// The header of a frame that may have come over a wire: not from a group, and whole.
    fn header(&self, frame: &Frame) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES + TAG_BYTES];
        let len = self.memory.read_header(&frame.payload, 0, &mut bytes).ok()?;
        let header = Header { bytes, len };
        let source = header.source();
        (len >= HEADER_BYTES && source[0] & 1 == 0 && source != [0; 6] && !header.is_cut_off()).then_some(header)
    }

    fn mirror(&mut self, from: usize, frame: &Frame) {
        for (at, port) in self.ports.iter_mut().enumerate() {
            if port.settings.mirror && at != from && port.device.send(frame.clone()).is_err() {
                port.counts.unfit += 1;
            }
        }
    }

    /// Learns where the sender is and finds out where the frame goes, in which VLAN; `None`: nowhere, and that is counted.
    fn way(&mut self, from: usize, header: &Header, now: u64) -> Option<(u16, Way)> {
        let port = &mut self.ports[from];
        let destination = header.destination();
        let [first @ .., last] = destination;
        if port.settings.mirror {
            port.counts.filtered += 1;
            return None;
        }
        if first == RESERVED[..5] && last & 0xF0 == 0 {
            port.counts.reserved += 1;
            return None;
        }
        let Some(vlan) = port.settings.membership.of(header.tag()) else {
            port.counts.vlan += 1;
            return None;
        };
        self.table.learn(Station::new(vlan, header.source()), from as u16, seconds(now));
        let bucket = if destination[0] & 1 == 1 {
            &mut port.broadcast
        } else {
            match self.table.find(Station::new(vlan, destination), seconds(now)) {
                Some(to) if usize::from(to) == from => {
                    port.counts.filtered += 1;
                    return None;
                }
                Some(to) => return Some((vlan, Way::To(to.into()))),
                None => &mut port.unknown,
            }
        };
        if bucket.as_mut().is_some_and(|bucket| !bucket.take(now)) {
            port.counts.storm += 1;
            return None;
        }
        Some((vlan, Way::Everywhere))
    }

    fn give(&mut self, to: usize, frame: Frame, header: &Header, vlan: u16) {
        let port = &mut self.ports[to];
        let tag = port.settings.membership.tags(vlan).then_some(vlan);
        let frame = if header.tag() == tag { Ok(frame) } else { retagged(&frame, header, tag, &self.memory) };
        match frame {
            Ok(frame) => port.counts.unfit += u64::from(port.device.send(frame).is_err()),
            Err(_) => port.counts.no_memory += 1,
        }
    }
}

fn seconds(nanos: u64) -> u32 {
    u32::try_from(nanos / 1_000_000_000).unwrap_or(u32::MAX)
}
