//! The table of addresses: behind which port a station was last heard.
//!
//! As in a switch of silicon, it is an array of sets with a few places each: a station can be in one set only, found by a
//! hash with a secret. So its size is fixed, nothing is allocated while frames pass, and when more stations hash to a set
//! than it has places, the one that has been silent longest makes room.

use std::hash::{BuildHasher, RandomState};

/// Places of a set.
const WAYS: usize = 4;
/// The most stations that a table can be made for.
pub const MAX_STATIONS: usize = 1 << 20;

/// A station as the switch knows it: its address, in its VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Station(u64);

impl Station {
    pub(super) fn new(vlan: u16, address: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = address;
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | u64::from(vlan) << 48)
    }
}

/// One place. Vacant at first: no station has the address of zeros, see [`Table::learn`].
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    station: Station,
    /// When it was last heard, in seconds.
    heard: u32,
    port: u16,
}

/// Where stations are.
#[derive(Debug)]
pub(super) struct Table {
    sets: Box<[[Place; WAYS]]>,
    secret: u64,
    /// Seconds of silence after which a station is forgotten.
    age: u32,
    /// Stations that made room for others before their time.
    pub(super) evicted: u64,
}

impl Table {
    /// For about `stations` stations (at least one, at most [`MAX_STATIONS`]; rounded up), each forgotten after `age`
    /// seconds of silence.
    pub(super) fn new(stations: usize, age: u32) -> Self {
        let sets = stations.clamp(1, MAX_STATIONS).div_ceil(WAYS).next_power_of_two();
        let secret = RandomState::new().hash_one(sets) | 1;
        Self { sets: vec![[Place::default(); WAYS]; sets].into(), secret, age, evicted: 0 }
    }

    fn set(&self, station: Station) -> usize {
        // Multiplication by a secret odd number; the upper bits depend on all of the key.
        let mixed = station.0.wrapping_mul(self.secret);
        ((mixed ^ mixed >> 29).wrapping_mul(self.secret) >> 32) as usize & (self.sets.len() - 1)
    }

    /// Notes that a station was heard at a port at `now`, in seconds.
    pub(super) fn learn(&mut self, station: Station, port: u16, now: u32) {
        let set = self.set(station);
        let places = &mut self.sets[set];
        let here = places.iter().position(|place| place.station == station);
        let place = here.unwrap_or_else(|| {
            let silence = |place: &Place| if place.station.0 == 0 { u32::MAX } else { now.wrapping_sub(place.heard) };
            let (oldest, silent) =
                (0..WAYS).map(|at| (at, silence(&places[at]))).max_by_key(|(_, silent)| *silent).unwrap_or((0, 0));
            self.evicted += u64::from(silent <= self.age);
            oldest
        });
        places[place] = Place { station, heard: now, port };
    }

    /// Behind which port a station is, if it was heard lately.
    pub(super) fn find(&self, station: Station, now: u32) -> Option<u16> {
        let place = self.sets[self.set(station)].iter().find(|place| place.station == station)?;
        (now.wrapping_sub(place.heard) <= self.age).then_some(place.port)
    }

    /// Stations that were heard lately.
    pub(super) fn stations(&self, now: u32) -> usize {
        let places = self.sets.iter().flatten();
        places.filter(|place| place.station.0 != 0 && now.wrapping_sub(place.heard) <= self.age).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(number: u32) -> Station {
        let [a, b, c, d] = number.to_be_bytes();
        Station::new(1, [2, 0, a, b, c, d])
    }

    #[test]
    fn stations_are_found_where_they_were_heard_last_until_they_age() {
        let mut table = Table::new(1024, 300);
        table.learn(station(1), 3, 10);
        table.learn(station(2), 4, 10);
        assert_eq!((table.find(station(1), 310), table.find(station(1), 311)), (Some(3), None));
        table.learn(station(1), 5, 12);
        assert_eq!((table.find(station(1), 312), table.find(station(2), 20)), (Some(5), Some(4)));
        assert_eq!(table.find(Station::new(2, [2, 0, 0, 0, 0, 1]), 20), None, "another VLAN");
        assert_eq!((table.stations(20), table.stations(312)), (2, 1));
    }

    #[test]
    fn no_more_than_its_places_are_known_and_the_silent_make_room() {
        let mut table = Table::new(64, 300);
        assert_eq!(table.sets.len() * WAYS, 64);
        for number in 0..10_000 {
            table.learn(station(number), 1, 5);
        }
        assert!(table.stations(5) <= 64 && table.evicted >= 10_000 - 64);
        let mut table = Table::new(1, 300);
        for number in 0..5 {
            table.learn(station(number), 1, 5 + number);
        }
        assert_eq!(table.find(station(0), 9), None, "it has been silent longest");
        assert!((1..5).all(|number| table.find(station(number), 9).is_some()) && table.evicted == 1);
    }
}
