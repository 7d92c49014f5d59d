//! How large the tables of grants must be for a manifest.
//!
//! An arena is granted page by page, once for each domain that reads it. Each grant takes an entry of its owner's grant
//! table, and each mapping one or two entries of its reader's maptrack table. Both tables have a limit in frames, which
//! Xen sets for all guests and a guest's configuration within that. Too small a table shows only when an arena is
//! granted or mapped, so the sizes are derived here, from the manifest alone.

use fido_core::heritage::bytes_for;

use crate::manifest::{ARENA_GRAIN, GuestType, Manifest};

/// Entries of a frame of the grant table (version 1: 8 bytes each).
pub const GRANTS_PER_FRAME: u64 = 512;
/// Entries of a frame of the maptrack table (16 bytes each).
pub const MAPTRACKS_PER_FRAME: u64 = 256;
/// Xen's own limits, if its command line does not change them.
pub const XEN_DEFAULT: GrantLimits = GrantLimits { grant_frames: 64, maptrack_frames: 1024 };

/// References that a page of a reference list holds.
const REFERENCES_PER_PAGE: u64 = 1024;
/// Grants for what else a guest shares: its console, xenstore, and the rings and buffers of network and block devices.
const DEVICE_GRANTS: u64 = 4096;

/// The most bytes that a guest can leave to its successor: dom0 holds a copy while there is none.
pub const MAX_HERITAGE: u64 = 64 << 20;

/// Limits of a guest's two tables, in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantLimits {
    /// Of the grant table: xl's `max_grant_frames`, Xen's `gnttab_max_frames`.
    pub grant_frames: u32,
    /// Of the maptrack table: xl's `max_maptrack_frames`, Xen's `gnttab_max_maptrack_frames`.
    pub maptrack_frames: u32,
}

impl GrantLimits {
    /// The larger of two, table by table.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            grant_frames: self.grant_frames.max(other.grant_frames),
            maptrack_frames: self.maptrack_frames.max(other.maptrack_frames),
        }
    }

    /// What must stand on Xen's command line so that guests can have these limits; empty if its defaults do. An xl
    /// configuration that asks for more than Xen allows is refused.
    #[must_use]
    pub fn command_line(self) -> String {
        let mut words = Vec::new();
        if self.grant_frames > XEN_DEFAULT.grant_frames {
            words.push(format!("gnttab_max_frames={}", self.grant_frames));
        }
        if self.maptrack_frames > XEN_DEFAULT.maptrack_frames {
            words.push(format!("gnttab_max_maptrack_frames={}", self.maptrack_frames));
        }
        words.join(" ")
    }
}

/// What the domain at a position needs, and never less than Xen's defaults: those are what drivers are used to. `None`
/// if there is no such domain.
///
/// One reader is counted beyond those of the manifest: while a reader is replaced, its predecessor may still have the
/// pages mapped. A reader has windows on two incarnations of each peer, the dead one's until its fence is complete. Who
/// inherits is read by dom0, too, and reads what was left.
#[must_use]
pub fn of_domain(manifest: &Manifest, index: usize) -> Option<GrantLimits> {
    let domain = manifest.domains.get(index)?;
    let readers = (0..manifest.domains.len()).filter(|other| manifest.reads(*other).contains(&index)).count() as u64;
    let incarnations = if readers == 0 { 0 } else { readers + 1 };
    let keepers = u64::from(domain.inherit);
    let grants = (incarnations + keepers) * grants_per_reader(domain.arena) + DEVICE_GRANTS;
    let kind = domain.guest.as_ref().map(|guest| guest.kind).unwrap_or_default();
    // The kernel of a PV guest has each page mapped twice: for itself and for the process.
    let entries = match kind {
        GuestType::Pv => 2,
        GuestType::Pvh => 1,
    };
    let maptracks = entries * mapped_pages(manifest, index) + DEVICE_GRANTS;
    let frames = |entries: u64, per_frame| u32::try_from(entries.div_ceil(per_frame)).unwrap_or(u32::MAX);
    let needed = GrantLimits {
        grant_frames: frames(grants, GRANTS_PER_FRAME),
        maptrack_frames: frames(maptracks, MAPTRACKS_PER_FRAME),
    };
    Some(needed.max(XEN_DEFAULT))
}

/// The pages of others that the domain at a position can have mapped at one time.
fn mapped_pages(manifest: &Manifest, index: usize) -> u64 {
    let Some(domain) = manifest.domains.get(index) else { return 0 };
    let read = manifest.reads(index).into_iter().map(|peer| grants_per_reader(manifest.domains[peer].arena));
    let left = grants_per_reader(bytes_for(domain.arena.min(MAX_HERITAGE) as usize));
    2 * read.sum::<u64>() + u64::from(domain.inherit) * left
}

/// What the hypervisor needs for the page tables of the PVH guest at a position, in MiB: xl's `shadow_memory`. `None` for
/// a PV guest, which has its own.
///
/// xl gives a guest 1 MiB for each processor and 8 KiB for each MiB of its memory. A PVH guest maps windows at addresses
/// beyond its memory, for which it gives nothing: they are counted here as if they were memory. Without that, a window
/// that is larger than the guest cannot be mapped.
#[must_use]
pub fn paging_mebibytes(manifest: &Manifest, index: usize) -> Option<u64> {
    const PAGES_PER_MEBIBYTE: u64 = 256;
    const MEBIBYTES_PER_MEBIBYTE_OF_TABLES: u64 = 128;
    let guest = manifest.domains.get(index)?.guest.as_ref().filter(|guest| guest.kind == GuestType::Pvh)?;
    let memory = (guest.memory >> 20) + mapped_pages(manifest, index).div_ceil(PAGES_PER_MEBIBYTE);
    Some(u64::from(guest.vcpus) + memory.div_ceil(MEBIBYTES_PER_MEBIBYTE_OF_TABLES))
}

/// What Xen must allow for all domains of a manifest.
#[must_use]
pub fn of_hypervisor(manifest: &Manifest) -> GrantLimits {
    let all = (0..manifest.domains.len()).filter_map(|index| of_domain(manifest, index));
    all.fold(XEN_DEFAULT, GrantLimits::max)
}

/// The arena's pages, the lists of their references, and the page that the lists begin with.
fn grants_per_reader(arena: u64) -> u64 {
    let pages = arena.div_ceil(ARENA_GRAIN);
    let lists = pages.div_ceil(REFERENCES_PER_PAGE);
    pages + lists + lists.div_ceil(REFERENCES_PER_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Domain, Guest, Link, Platform};

    const MIB: u64 = 1 << 20;

    /// A chain of three: `a` and `b` are linked, `b` and `c`; `c` also reads `a`.
    fn chain(arenas: [u64; 3], kind: GuestType) -> Manifest {
        let domain = |(name, arena): (&str, u64)| Domain {
            arena,
            guest: Some(Guest { kind, ..Guest::new("k", "i") }),
            ..Domain::new(name, "/p")
        };
        let mut domains: Vec<_> = ["a", "b", "c"].into_iter().zip(arenas).map(domain).collect();
        domains[2].windows = vec!["a".to_owned()];
        let links = vec![Link::new("ab", "a", "b"), Link::new("bc", "b", "c")];
        Manifest { platform: Platform::Xen, domains, links, ..Manifest::new("chain") }
    }

    #[test]
    fn small_arenas_need_no_more_than_xen_gives() {
        let manifest = chain([MIB, MIB, MIB], GuestType::Pv);
        assert!((0..3).all(|index| of_domain(&manifest, index) == Some(XEN_DEFAULT)));
        assert_eq!(of_hypervisor(&manifest).command_line(), "");
        assert_eq!(of_domain(&manifest, 3), None);
    }

    #[test]
    fn grants_are_counted_by_readers_and_mappings_by_what_is_read() {
        let gib = 1 << 30;
        let manifest = chain([gib, MIB, MIB], GuestType::Pv);
        // 262144 pages, 256 lists, a root: two readers and one on its way out.
        let pages = 262_144 + 256 + 1;
        let small = 256 + 1 + 1;
        let a = of_domain(&manifest, 0).unwrap();
        assert_eq!(u64::from(a.grant_frames), (3 * pages + 4096_u64).div_ceil(512));
        assert_eq!(a.maptrack_frames, 1024, "it reads little");
        let c = of_domain(&manifest, 2).unwrap();
        assert_eq!(c.grant_frames, 64);
        assert_eq!(u64::from(c.maptrack_frames), (2 * 2 * (pages + small) + 4096_u64).div_ceil(256));
        let pvh = of_domain(&chain([gib, MIB, MIB], GuestType::Pvh), 2).unwrap();
        assert_eq!(u64::from(pvh.maptrack_frames), (2 * (pages + small) + 4096_u64).div_ceil(256));
        let line = of_hypervisor(&manifest).command_line();
        assert_eq!(line, "gnttab_max_frames=1546 gnttab_max_maptrack_frames=4121");
    }

    #[test]
    fn who_inherits_is_read_by_dom0_and_reads_what_was_left() {
        let mut manifest = chain([1 << 30, MIB, MIB], GuestType::Pvh);
        manifest.domains[0].inherit = true;
        let needed = of_domain(&manifest, 0).unwrap();
        let pages: u64 = 262_144 + 256 + 1;
        assert_eq!(u64::from(needed.grant_frames), (4 * pages + 4096).div_ceil(512));
        // 16384 pages of heritage, 3 before it, 17 lists, a root; and windows of 1 MiB on b: 256 pages, a list, a root.
        let left = 16_387 + 17 + 1;
        assert_eq!(u64::from(needed.maptrack_frames), 1024.max((2 * 258 + left + 4096_u64).div_ceil(256)));
    }

    #[test]
    fn the_tables_of_a_pvh_guest_are_for_its_memory_and_its_windows() {
        let mut manifest = chain([1 << 30, MIB, MIB], GuestType::Pvh);
        // 2 × (262144 + 256 + 1) pages of `a` and 2 × 258 of `b`, beyond the 256 MiB of a guest.
        let windows = (2 * 262_401 + 2 * 258_u64).div_ceil(256);
        manifest.domains[2].guest.as_mut().unwrap().memory = 256 * MIB;
        assert_eq!(paging_mebibytes(&manifest, 2), Some(1 + (256 + windows).div_ceil(128)));
        // One page beyond 128 MiB of memory and windows is the first that needs one MiB more.
        manifest.domains[1].arena = 14_321 * ARENA_GRAIN;
        let guest = manifest.domains[0].guest.as_mut().unwrap();
        let mapped = 2 * (14_321 + 14 + 1_u64);
        guest.memory = (128 * 256 - mapped) / 256 * MIB;
        assert_eq!(paging_mebibytes(&manifest, 0), Some(2));
        manifest.domains[0].guest.as_mut().unwrap().memory += MIB;
        assert_eq!(paging_mebibytes(&manifest, 0), Some(3));
        assert_eq!(paging_mebibytes(&chain([MIB; 3], GuestType::Pv), 0), None);
        assert_eq!(paging_mebibytes(&manifest, 3), None);
    }

    /// The first size that one frame more is needed for.
    #[test]
    fn the_default_is_left_exactly_when_it_is_full() {
        // One reader and one on its way out: 2 × (pages + lists + 1) + 4096 ≤ 64 × 512.
        let frames = |pages: u64| {
            let mut manifest = chain([MIB; 3], GuestType::Pv);
            manifest.domains[2].arena = pages * ARENA_GRAIN;
            of_domain(&manifest, 2).unwrap().grant_frames
        };
        assert_eq!((frames(14_321), frames(14_322)), (64, 65));
    }

    #[test]
    fn the_largest_appliance_does_not_overflow() {
        let largest = fido_core::addr::MAX_ARENA_BYTES;
        let mut manifest = Manifest::new("large");
        manifest.domains = (0..crate::manifest::MAX_DOMAINS)
            .map(|n| Domain { arena: largest, ..Domain::new(format!("d{n}"), "/p") })
            .collect();
        let all: Vec<_> = (1..manifest.domains.len()).map(|n| format!("d{n}")).collect();
        manifest.domains[0].windows = all;
        assert!(of_domain(&manifest, 0).unwrap().maptrack_frames > 1 << 31);
    }
}
