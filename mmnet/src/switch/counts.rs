//! What becomes of frames in a switch, beside what its ports count themselves.

/// Counts of one port of a switch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Frames that came from here and went to everybody.
    pub flooded: u64,
    /// Frames that came from here and belong nowhere else: for a station behind the same port, or from a mirror port.
    pub filtered: u64,
    /// Frames that came from here beyond a storm limit.
    pub storm: u64,
    /// Frames that came from here and belong to no VLAN of the port.
    pub vlan: u64,
    /// Frames that came from here for protocols between neighbours.
    pub reserved: u64,
    /// Frames that came from here and are none: cut off, from a group's address, or gone with the domain that wrote them.
    pub invalid: u64,
    /// Frames that were to leave here and may not: too long, or with marks that do not fit.
    pub unfit: u64,
    /// Frames that were to leave here with a tag for which there was no room in the heap.
    pub no_memory: u64,
}

impl PortCounts {
    /// All that were dropped, and not for want of room in the device.
    pub fn dropped(&self) -> u64 {
        self.filtered + self.storm + self.vlan + self.reserved + self.invalid + self.unfit + self.no_memory
    }
}
