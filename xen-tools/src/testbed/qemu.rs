//! The emulated machine: its command line, and watching it until it has reported everything.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use xen_guest::report::{Frame, Kind, Reader};

use super::exec::{ExecError, Supervisor, last_lines};
use super::{TestbedError, io_error};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Files in the folder of the machine.
pub const HYPERVISOR: &str = "xen";
/// The kernel of dom0.
pub const KERNEL: &str = "vmlinux";
/// The image of dom0.
pub const IMAGE: &str = "dom0.cpio";
/// What the hypervisor and dom0 write on the console.
pub const CONSOLE: &str = "console.log";
/// What dom0 reports.
pub const REPORT: &str = "report";

/// How long the machine may take until dom0 reports for the first time.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How long one scenario may take, its clearing up included. Longer than what a scenario waits for one thing, after all that
/// comes before: dom0's own message comes first. Shorter than what `.ci/xen` gives to all together.
const SCENARIO_LIMIT: Duration = Duration::from_secs(480);

/// What the machine is like.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its memory, in MiB.
    pub memory: u32,
    /// Its processors. dom0 has the first for itself.
    pub processors: u32,
    /// Guests are PVH and not PV.
    pub pvh: bool,
    /// Its processors go before everything else on the host, which only root can have.
    pub realtime: bool,
    /// The scenarios that it is to run.
    pub scenarios: Vec<String>,
}

impl Machine {
    /// The arguments of QEMU. All files are in its working folder, so that no path can have a comma in it.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        // With SMAP dom0 crashes under emulation. The rest costs time there, or makes PVH guests crash.
        let mut processor = "max,-smap,-smep,-la57,-erms,-fsrm".to_owned();
        if self.pvh {
            processor.push_str(",-avx,-avx2,-fma,-f16c");
        }
        let xen = "console=com1 com1=115200,8n1 dom0_mem=640M,max:640M dom0_max_vcpus=1 dom0_vcpus_pin \
                   gnttab_max_frames=1024 gnttab_max_maptrack_frames=4096 noreboot";
        // The files of a tmpfs may take half of the memory that the image itself leaves; they are as large as the image.
        let mut words = vec!["console=hvc0", "quiet", "panic=-1", "rootfstype=ramfs", "--"];
        if self.pvh {
            words.push("pvh");
        }
        words.extend(self.scenarios.iter().map(String::as_str));
        let modules = format!("{KERNEL} {},{IMAGE}", words.join(" "));
        let serial = |file| format!("file:{file}");
        let (memory, processors) = (self.memory.to_string(), self.processors.to_string());
        let (console, report) = (serial(CONSOLE), serial(REPORT));
        let arguments = [
            ["-accel", "tcg,thread=multi,tb-size=512"],
            ["-cpu", &processor],
            ["-smp", &processors],
            ["-m", &memory],
            ["-display", "none"],
            ["-serial", &console],
            ["-serial", &report],
            ["-kernel", HYPERVISOR],
            ["-append", xen],
            ["-initrd", &modules],
        ];
        let alone = ["-nodefaults", "-no-user-config", "-no-reboot"];
        alone.into_iter().chain(arguments.into_iter().flatten()).map(OsString::from).collect()
    }

    /// Boots the machine in a folder that has all its files, hands over what it reports, and ends it when it has said
    /// that nothing more comes.
    ///
    /// # Errors
    /// A machine that ends or stays silent before that, with the end of its console; the user's wish; an error of `take`.
    pub fn run(
        &self,
        supervisor: &Supervisor,
        folder: &Path,
        mut take: impl FnMut(Frame) -> Result<(), TestbedError>,
    ) -> Result<(), TestbedError> {
        let report = folder.join(REPORT);
        File::create(&report).map_err(io_error(&report))?;
        // Killed with its parent: a testbed that is killed by force leaves no machine behind either.
        let prefix = if self.realtime { &["chrt", "--rr", "1"][..] } else { &[] };
        let mut words = prefix.iter().chain(&["setpriv", "--pdeathsig", "KILL", PROGRAM]);
        let mut command = Command::new(words.next().unwrap_or(&PROGRAM));
        command.args(words).args(self.arguments()).current_dir(folder);
        let errors = folder.join("qemu.log");
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(File::create(&errors).map_err(io_error(&errors))?);
        let mut running = supervisor.start(&mut command)?;
        let mut reports = Reports { file: File::open(&report).map_err(io_error(&report))?, reader: Reader::default() };
        let console = || last_lines(&String::from_utf8_lossy(&fs::read(folder.join(CONSOLE)).unwrap_or_default()));
        let mut limit = (BOOT_LIMIT, "boot".to_owned());
        let mut since = Instant::now();
        loop {
            let tick = Duration::from_millis(50);
            let status = running.wait(supervisor, tick, || Ok(false))?;
            while let Some(frame) = reports.next(&report)? {
                match frame.kind {
                    Kind::End => return Ok(()),
                    Kind::Note | Kind::File => {}
                    Kind::Passed | Kind::Failed => since = Instant::now(),
                }
                limit = (SCENARIO_LIMIT, format!("come to the end of `{}`", frame.name));
                take(frame)?;
            }
            if let Some(status) = status {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                let output = format!("{}\n{said}", console());
                return Err(ExecError::Failed { what: PROGRAM.to_owned(), status, output }.into());
            }
            if since.elapsed() > limit.0 {
                return Err(TestbedError::Silent { what: limit.1.clone(), limit: limit.0, console: console() });
            }
        }
    }
}

struct Reports {
    file: File,
    reader: Reader,
}

impl Reports {
    fn next(&mut self, path: &Path) -> Result<Option<Frame>, TestbedError> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).map_err(io_error(path))?;
        self.reader.push(&bytes);
        Ok(self.reader.next_frame()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(pvh: bool) -> Vec<String> {
        let scenarios = vec!["boot".to_owned(), "forward".to_owned()];
        let machine = Machine { memory: 2048, processors: 3, pvh, realtime: false, scenarios };
        machine.arguments().into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn after(arguments: &[String], option: &str) -> String {
        let at = arguments.iter().position(|word| word == option).unwrap();
        arguments[at + 1].clone()
    }

    #[test]
    fn the_machine_is_as_asked_for() {
        let words = arguments(false);
        assert_eq!((after(&words, "-m"), after(&words, "-smp")), ("2048".to_owned(), "3".to_owned()));
        assert!(after(&words, "-cpu").contains("-smap"));
        assert!(!after(&words, "-cpu").contains("-avx"));
        assert!(after(&arguments(true), "-cpu").contains("-avx"));
    }

    /// QEMU takes each comma for the end of a module.
    #[test]
    fn the_kernels_arguments_have_no_comma() {
        for pvh in [false, true] {
            let modules = after(&arguments(pvh), "-initrd");
            assert_eq!(modules.matches(',').count(), 1, "{modules}");
            let kernel = modules.strip_suffix(",dom0.cpio").unwrap();
            let ours = kernel.split_once(" -- ").unwrap().1;
            assert_eq!(ours, if pvh { "pvh boot forward" } else { "boot forward" });
        }
    }
}
