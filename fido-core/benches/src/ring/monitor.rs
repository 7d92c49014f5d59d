//! User-level waiting for a cache line: `umonitor`/`umwait`, `tpause` (WAITPKG) and `monitorx`/`mwaitx`, where the
//! processor has them and the hypervisor and kernel let a process use them.

use super::spin::Relax;

/// One of the ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Monitor {
    /// `umonitor` and `umwait`, in the light state C0.1.
    Umwait,
    /// `tpause` in C0.1: sleeps for a time, whatever happens to the line.
    Tpause,
    /// `monitorx` and `mwaitx` with a time limit.
    Mwaitx,
}

/// All of them.
pub const ALL: [Monitor; 3] = [Monitor::Umwait, Monitor::Tpause, Monitor::Mwaitx];

/// The longest wait, in cycles of the time stamp counter: for a core that would otherwise sleep until an interrupt.
#[cfg(target_arch = "x86_64")]
const CYCLES: u32 = 100_000;
/// How long `tpause` sleeps.
#[cfg(target_arch = "x86_64")]
const NAP_CYCLES: u32 = 200;

impl Monitor {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Umwait => "umwait",
            Self::Tpause => "tpause",
            Self::Mwaitx => "mwaitx",
        }
    }

    /// Why it cannot be had here, or nothing if it can.
    pub fn absent(self) -> Option<&'static str> {
        imp::absent(self)
    }
}

/// `umonitor`, a look, `umwait`.
pub struct Umwait;
/// A short `tpause` between two looks.
pub struct Tpause;
/// `monitorx`, a look, `mwaitx`.
pub struct Mwaitx;

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _rdtsc};

    use super::{CYCLES, Monitor, Mwaitx, NAP_CYCLES, Relax, Tpause, Umwait};

    pub fn absent(monitor: Monitor) -> Option<&'static str> {
        let has = match monitor {
            // Leaf 7, ECX bit 5: WAITPKG.
            Monitor::Umwait | Monitor::Tpause => __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ecx & 1 << 5 != 0,
            // Leaf 0x8000_0001, ECX bit 29: MONITORX. A hypervisor that intercepts it hides the bit.
            Monitor::Mwaitx => {
                __cpuid_count(0x8000_0000, 0).eax >= 0x8000_0001 && __cpuid_count(0x8000_0001, 0).ecx & 1 << 29 != 0
            }
        };
        if !has {
            return Some("not on this CPU (CPUID)");
        }
        let flag = if monitor == Monitor::Mwaitx { "mwaitx" } else { "waitpkg" };
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let listed = info.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|f| f == flag));
        (!listed).then_some("this CPU has it, but the kernel or hypervisor does not list it")
    }

    /// The time stamp that many cycles from now, as halves.
    fn deadline(cycles: u32) -> (u32, u32) {
        // SAFETY: the counter exists on every x86-64.
        let at = unsafe { _rdtsc() } + u64::from(cycles);
        (at as u32, (at >> 32) as u32)
    }

    // The instructions are given as bytes: assemblers know them only where the target has the feature.

    impl Relax for Umwait {
        const WATCHES: bool = true;

        fn watch(line: *const u8) {
            // SAFETY: `umonitor rax` (WAITPKG, checked by `absent` before this type is used) only reads the address.
            unsafe { asm!(".byte 0xf3, 0x0f, 0xae, 0xf0", in("rax") line, options(nostack, preserves_flags)) };
        }

        fn relax() {
            let (low, high) = deadline(CYCLES);
            // SAFETY: `umwait ecx` with ECX bit 0 set (C0.1); it ends at the deadline in EDX:EAX at the latest.
            unsafe {
                asm!(".byte 0xf2, 0x0f, 0xae, 0xf1", in("ecx") 1, in("eax") low, in("edx") high, options(nostack));
            }
        }
    }

    impl Relax for Tpause {
        fn relax() {
            let (low, high) = deadline(NAP_CYCLES);
            // SAFETY: `tpause ecx` with ECX bit 0 set (C0.1); it ends at the deadline in EDX:EAX at the latest.
            unsafe {
                asm!(".byte 0x66, 0x0f, 0xae, 0xf1", in("ecx") 1, in("eax") low, in("edx") high, options(nostack));
            }
        }
    }

    impl Relax for Mwaitx {
        const WATCHES: bool = true;

        fn watch(line: *const u8) {
            // SAFETY: `monitorx rax, ecx, edx` (checked by `absent`) only reads the address; no extensions, no hints.
            unsafe {
                asm!(".byte 0x0f, 0x01, 0xfa", in("rax") line, in("ecx") 0, in("edx") 0,
                    options(nostack, preserves_flags));
            }
        }

        fn relax() {
            // SAFETY: `mwaitx eax, ecx` with a time limit in EBX (ECX bit 1), so it always ends. EBX is the compiler's
            // own and is put back. EAX 0xf0: do not leave C0.
            unsafe {
                asm!("xchg {limit:r}, rbx", ".byte 0x0f, 0x01, 0xfb", "xchg {limit:r}, rbx",
                    limit = inout(reg) u64::from(CYCLES) => _, in("eax") 0xf0, in("ecx") 2,
                    options(nostack, preserves_flags));
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use super::{Monitor, Mwaitx, Relax, Tpause, Umwait};

    pub fn absent(_: Monitor) -> Option<&'static str> {
        Some("not on this architecture")
    }

    impl Relax for Umwait {}
    impl Relax for Tpause {}
    impl Relax for Mwaitx {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the processor has one, it ends by itself even if nobody touches the line.
    #[test]
    fn what_is_there_works() {
        let line = [0u8; 64];
        for monitor in ALL.into_iter().filter(|monitor| monitor.absent().is_none()) {
            match monitor {
                Monitor::Umwait => {
                    Umwait::watch(line.as_ptr());
                    Umwait::relax();
                }
                Monitor::Tpause => Tpause::relax(),
                Monitor::Mwaitx => {
                    Mwaitx::watch(line.as_ptr());
                    Mwaitx::relax();
                }
            }
        }
    }
}
