//! The doctor over folders that stand for a system.

use std::fs;
use std::io;
use std::path::Path;

use conn_mgr::xen::limits::XEN_DEFAULT;
use tempfile::TempDir;

use super::machine::{Access, System};
use super::*;

/// A folder with what a system has; the store and xl are said.
struct Patient {
    root: TempDir,
    system: System,
    number: Result<u32, String>,
    info: Result<String, String>,
    forbidden: Vec<&'static str>,
}

impl Machine for Patient {
    fn read(&self, path: &str) -> Option<String> {
        self.system.read(path)
    }
    fn open(&self, path: &str, access: Access) -> io::Result<()> {
        // Root may open everything, and tests may be root.
        if self.forbidden.contains(&path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.system.open(path, access)
    }
    fn domain_number(&self) -> Result<u32, String> {
        self.number.clone()
    }
    fn hypervisor_info(&self) -> Result<String, String> {
        self.info.clone()
    }
}

impl Patient {
    /// A guest that has everything.
    fn guest() -> Self {
        let root = tempfile::tempdir().unwrap();
        let patient = Self {
            system: System::new(root.path()),
            root,
            number: Ok(7),
            info: Err("not dom0".to_owned()),
            forbidden: Vec::new(),
        };
        for (path, text) in [
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/guest_type", "PV\n"),
            ("sys/hypervisor/version/major", "4\n"),
            ("sys/hypervisor/version/minor", "17\n"),
            ("sys/hypervisor/version/extra", ".5\n"),
            ("sys/module/xen_gntalloc/parameters/limit", "16401\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "xen\n"),
            ("proc/cpuinfo", "model name\t: Real Thing\nflags\t\t: smap smep avx\n"),
            ("dev/xen/xenbus", ""),
            ("dev/xen/gntdev", ""),
            ("dev/xen/gntalloc", ""),
            ("dev/xen/evtchn", ""),
            ("dev/fido_arena", ""),
        ] {
            patient.write(path, text);
        }
        patient
    }

    fn dom0() -> Self {
        let mut patient = Self::guest();
        patient.write("proc/xen/capabilities", "control_d\n");
        patient.write("dev/xen/privcmd", "");
        patient.number = Ok(0);
        patient.info = Ok("host : x\nxen_commandline        : console=com1 gnttab_max_frames=128\nx : y\n".to_owned());
        patient
    }

    fn write(&self, path: &str, text: &str) {
        let place = self.root.path().join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    fn without(self, path: &str) -> Self {
        fs::remove_file(self.root.path().join(path)).unwrap();
        self
    }

    fn findings(&self, limits: GrantLimits) -> Vec<Finding> {
        match examine(self, &Wants { arena: 64 << 20, limits }) {
            Diagnosis::Findings(findings) => findings,
            Diagnosis::NotXen(why) => panic!("{why}"),
        }
    }

    /// The findings that are not good.
    fn complaints(&self) -> Vec<Finding> {
        let mut findings = self.findings(XEN_DEFAULT);
        findings.retain(|finding| finding.verdict != Verdict::Good);
        findings
    }
}

#[track_caller]
fn one(patient: &Patient, verdict: Verdict, what: &str, fix: &str) {
    let complaints = patient.complaints();
    let [finding] = &complaints[..] else { panic!("{complaints:#?}") };
    assert_eq!(finding.verdict, verdict, "{finding}");
    assert!(finding.what.contains(what) && finding.fix.contains(fix), "{finding}");
}

#[test]
fn without_xen_it_says_so() {
    for (patient, why) in [
        (Patient::guest().without("sys/hypervisor/type"), "not a Xen guest: /sys/hypervisor/type does not exist"),
        (
            {
                let patient = Patient::guest();
                patient.write("sys/hypervisor/type", "kvm\n");
                patient
            },
            "not a Xen guest: /sys/hypervisor/type says `kvm`",
        ),
    ] {
        let wants = Wants { arena: 0, limits: XEN_DEFAULT };
        assert_eq!(examine(&patient, &wants), Diagnosis::NotXen(why.to_owned()));
    }
}

#[test]
fn who_has_everything_is_well() {
    assert_eq!(Patient::guest().complaints(), []);
    assert_eq!(Patient::dom0().complaints(), []);
    let said = |patient: Patient| patient.findings(XEN_DEFAULT)[0].to_string();
    assert_eq!(said(Patient::guest()), "ok   this is a PV guest of Xen 4.17.5");
    assert_eq!(said(Patient::dom0()), "ok   this is dom0 of Xen 4.17.5");
}

#[test]
fn missing_devices_name_their_modules() {
    use Verdict::Bad;
    one(&Patient::guest().without("dev/xen/xenbus"), Bad, "/dev/xen/xenbus (xenstore)", "devtmpfs");
    one(&Patient::guest().without("dev/xen/gntdev"), Bad, "/dev/xen/gntdev (windows)", "modprobe xen-gntdev");
    one(&Patient::guest().without("dev/xen/evtchn"), Bad, "/dev/xen/evtchn (bells)", "modprobe xen-evtchn");
    one(&Patient::dom0().without("dev/xen/privcmd"), Bad, "/dev/xen/privcmd", "modprobe xen-privcmd");
    one(&Patient::guest().without("dev/xen/gntalloc").without("dev/fido_arena"), Bad, "no arenas", "xen-gntalloc");
}

#[test]
fn without_our_module_arenas_have_one_reader_and_gntalloc_must_be_large_enough() {
    let patient = Patient::guest().without("dev/fido_arena");
    one(&patient, Verdict::Note, "arenas have one reader", "xen-tools/kmod");
    patient.write("sys/module/xen_gntalloc/parameters/limit", "16400\n");
    let complaints = patient.complaints();
    assert_eq!(complaints.len(), 2, "{complaints:#?}");
    assert_eq!(complaints[1].verdict, Verdict::Bad);
    assert_eq!(complaints[1].fix, "echo 16401 > /sys/module/xen_gntalloc/parameters/limit");
    let patient = Patient::guest();
    patient.write("sys/module/xen_gntalloc/parameters/limit", "1024\n");
    one(&patient, Verdict::Note, "limit of 1024 pages", "echo 16401");
    patient.write("sys/module/xen_gntalloc/parameters/limit", "many\n");
    one(&patient, Verdict::Note, "not known", "");
    assert_eq!(Patient::guest().without("dev/xen/gntalloc").complaints(), [], "the module is enough");
}

#[test]
fn a_device_that_may_not_be_opened_is_told_from_a_missing_one() {
    let mut patient = Patient::guest();
    patient.forbidden = vec!["/dev/xen/gntdev"];
    one(&patient, Verdict::Bad, "/dev/xen/gntdev", "run as root");
}

#[test]
fn xenstored_must_answer() {
    let mut patient = Patient::guest();
    patient.number = Err("no reply within 30 s".to_owned());
    one(&patient, Verdict::Bad, "no reply within 30 s", "in dom0");
    let mut patient = Patient::dom0();
    patient.number = Err("nobody listens".to_owned());
    one(&patient, Verdict::Bad, "nobody listens", "start xenstored");
}

#[test]
fn the_limits_of_xen_are_held_against_what_is_needed() {
    let wanted = |grant_frames, maptrack_frames| GrantLimits { grant_frames, maptrack_frames };
    let bad = |patient: &Patient, wanted| {
        let findings = patient.findings(wanted);
        findings.into_iter().filter(|finding| finding.verdict == Verdict::Bad).map(|f| f.fix).collect::<Vec<_>>()
    };
    let patient = Patient::dom0();
    assert_eq!(bad(&patient, wanted(128, 1024)), [""; 0]);
    let fixes = bad(&patient, wanted(129, 1025));
    let [grant, maptrack] = &fixes[..] else { panic!("{fixes:?}") };
    assert!(grant.contains("gnttab_max_frames=129 ") && maptrack.contains("gnttab_max_maptrack_frames=1025 "));
    let mut patient = Patient::dom0();
    patient.info =
        Ok("xen_commandline : gnttab_max_frames=0x200 gnttab_max_frames=9 gnttab_max_frames=0x81".to_owned());
    assert_eq!(bad(&patient, wanted(129, 1024)), [""; 0], "the last one counts, in any base");
    for info in [Err("xl: not found".to_owned()), Ok("nothing".to_owned())] {
        patient.info = info;
        one(&patient, Verdict::Note, "Xen's limits are not known", "");
    }
}

#[test]
fn an_emulated_processor_must_not_show_what_crashes() {
    let cpu = |flags: &str| {
        let patient = Patient::guest();
        patient.write("proc/cpuinfo", &format!("model name\t: QEMU TCG CPU version 2.5+\nflags\t\t: {flags}\n"));
        patient
    };
    one(&cpu("fpu avx"), Verdict::Note, "emulated", "");
    let complaints = cpu("fpu smap smep").complaints();
    assert_eq!(complaints[1].verdict, Verdict::Bad);
    assert_eq!(complaints[1].fix, "start QEMU with -cpu max,-smap,-smep");
    let pvh = cpu("fpu avx f16c");
    pvh.write("sys/hypervisor/guest_type", "PVH\n");
    let complaints = pvh.complaints();
    assert!(complaints[1].what.contains("avx, f16c: PVH guests crash"), "{complaints:#?}");
}

#[test]
fn a_slow_clock_is_noted() {
    let patient = Patient::guest();
    patient.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    one(&patient, Verdict::Note, "clock source hpet", "tsc_mode");
}

#[test]
fn the_real_system_can_be_looked_at() {
    let system = System::new(Path::new("/"));
    match examine(&system, &Wants { arena: 64 << 20, limits: XEN_DEFAULT }) {
        Diagnosis::NotXen(why) => assert!(why.starts_with("not a Xen guest"), "{why}"),
        Diagnosis::Findings(findings) => assert!(findings.len() > 5),
    }
}
