//! What a switch is to be, and what makes no sense.

use super::MAX_PORTS;
use super::table::MAX_STATIONS;
use super::vlan::{Membership, VLANS};

/// Settings of the whole switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchSettings {
    /// How many stations it remembers, at most; rounded up to four times a power of two.
    pub stations: usize,
    /// Seconds of silence after which one is forgotten.
    pub age: u32,
}

impl Default for SwitchSettings {
    fn default() -> Self {
        Self { stations: 4096, age: 300 }
    }
}

/// Settings of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSettings {
    /// What it is called.
    pub name: String,
    /// Its VLANs.
    pub membership: Membership,
    /// Frames to groups and to everybody that may come from it each second; `None`: any number.
    pub broadcast: Option<u32>,
    /// Frames to stations that are not known that may come from it each second; `None`: any number.
    pub unknown: Option<u32>,
    /// Whether it gets a copy of every frame that comes to the switch, as it came, and takes no other part.
    pub mirror: bool,
}

impl PortSettings {
    /// A port in VLAN 1 without limits.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), membership: Membership::Access(1), broadcast: None, unknown: None, mirror: false }
    }

    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let wrong = |vlan: &u16| !VLANS.contains(vlan);
        let vlan = match &self.membership {
            Membership::Access(vlan) => Some(*vlan).filter(wrong),
            Membership::Trunk { vlans, native } => vlans.iter().chain(native).copied().find(wrong),
        };
        if let Some(vlan) = vlan {
            return Err(SettingsError::Vlan { port: self.name.clone(), vlan });
        }
        if [self.broadcast, self.unknown].contains(&Some(0)) {
            return Err(SettingsError::Limit { port: self.name.clone() });
        }
        Ok(())
    }
}

/// Why a switch cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Too many ports.
    #[error("{0} ports; a switch has at most {MAX_PORTS}")]
    Ports(usize),
    /// Too few or too many stations.
    #[error("a table of {0} stations; it must be 1 to {MAX_STATIONS}")]
    Stations(usize),
    /// They would be forgotten at once.
    #[error("stations are to be forgotten after 0 seconds; it must be at least 1")]
    Age,
    /// No such VLAN.
    #[error("port {port:?}: VLAN {vlan}; it must be {} to {}", VLANS.start(), VLANS.end())]
    Vlan {
        /// The port.
        port: String,
        /// The VLAN.
        vlan: u16,
    },
    /// A limit of nothing.
    #[error("port {port:?}: a limit of 0 frames a second; it must be at least 1")]
    Limit {
        /// The port.
        port: String,
    },
}

impl SwitchSettings {
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if !(1..=MAX_STATIONS).contains(&self.stations) {
            return Err(SettingsError::Stations(self.stations));
        }
        if self.age == 0 { Err(SettingsError::Age) } else { Ok(()) }
    }
}
