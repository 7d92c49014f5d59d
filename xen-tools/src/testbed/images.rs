//! What the testbed boots: hypervisor, kernel, dom0's and the guests' images.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::exec::Supervisor;
use super::kernel::{self, keep, only};
use super::module;
use super::packages::{self, Package};
use super::programs::Programs;
use super::{TestbedError, io_error};
use crate::image::closure::Modules;
use crate::image::cpio::Archive;
use crate::image::guest::{self, Guest};

/// Changes with what is made from the packages, so that old entries are not used.
const VERSION: &str = "4";

/// The package of the hypervisor.
const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";

/// The packages of dom0: the toolstack, and the libraries that it needs.
const DOM0: [&str; 22] = [
    "busybox-static",
    "libc6",
    "libgcc-s1",
    "liblzma5",
    "libnfs-utils",
    "libnfs13",
    "libuuid1",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "libzstd1",
    "xen-utils-4.17",
    "xenstore-utils",
    "zlib1g",
];

/// The toolstack's programs in dom0.
const TOOLS: [&str; 7] = [
    "usr/lib/xen-4.17/bin/xl",
    "usr/lib/xen-4.17/bin/xen-init-dom0",
    "usr/lib/xen-4.17/bin/xenconsoled",
    "usr/lib/xen-4.17/bin/xenstored",
    "usr/lib/xen-4.17/bin/xentrace",
    "usr/bin/nfs-cp",
    "usr/bin/xenstore-ls",
];

/// The meta-package of the kernel.
const KERNEL: &str = "linux-image-amd64";

/// Kernel modules of dom0 and of the guests.
const DOM0_MODULES: [&str; 10] = [
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-netback",
    "xen-blkback",
    "bridge",
    "tun",
    "loop",
];
const GUEST_MODULES: [&str; 5] = ["xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-netfront", "xen-blkfront"];

/// What Debian gives, in the cache.
pub struct Parts {
    /// The hypervisor, not compressed.
    pub hypervisor: PathBuf,
    /// The kernel of dom0 and the guests, an ELF file.
    pub kernel: PathBuf,
    modules: Modules,
    own_module: Option<PathBuf>,
    dom0: PathBuf,
}

impl Parts {
    /// Asks apt for versions, and makes what the cache does not have.
    ///
    /// # Errors
    /// Packages that cannot be had, or what is not in them.
    pub fn prepare(supervisor: &Supervisor, root: &Path, source: &Path, again: bool) -> Result<Self, TestbedError> {
        let cache = Cache::open(root)?;
        let image = packages::stands_for(supervisor, KERNEL)?;
        let mut names = vec![HYPERVISOR, image.as_str()];
        names.extend(DOM0);
        let mut resolved = packages::resolve(supervisor, &names)?;
        let mut take =
            |name: &str| -> Vec<Package> { resolved.extract_if(.., |package| package.name == name).collect() };
        let (hypervisor, kernel) = (take(HYPERVISOR), take(&image));
        let own_module = module::is_there(source)
            .then(|| module::build(supervisor, (&cache, root), (source, &image), again))
            .transpose()?;
        let modules: Vec<&str> = DOM0_MODULES.into_iter().chain(GUEST_MODULES).collect();
        // Who adds a program or a module gets a new image, whatever else the cache has.
        let version = format!("{VERSION} {TOOLS:?} {modules:?}");
        let entry = |name, packages: &[Package], then: &dyn Fn(&Path) -> Result<(), TestbedError>| {
            packages::entry(supervisor, (&cache, root), (name, &version), packages, again, then)
        };
        let hypervisor = entry("hypervisor", &hypervisor, &|folder| hypervisor_of(supervisor, folder))?;
        let kernel = entry("kernel", &kernel, &|folder| kernel::unpacked(supervisor, folder, &modules))?;
        let dom0 = entry("dom0", &resolved, &|folder| dom0_of(folder))?;
        Ok(Self {
            hypervisor: hypervisor.join("xen"),
            kernel: kernel.join("vmlinux"),
            modules: Modules::find(&kernel.join("modules"))?,
            own_module,
            dom0: dom0.join("dom0.cpio"),
        })
    }

    /// The files of all kernel modules that there are, ours included.
    #[must_use]
    pub fn modules(&self) -> Vec<PathBuf> {
        self.modules.files().map(Path::to_path_buf).chain(self.own_module.clone()).collect()
    }

    /// Writes the whole image of dom0, guests' image and kernel included, and further files: where, and which.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn write_dom0(
        &self,
        programs: &Programs,
        further: &[(PathBuf, PathBuf)],
        to: &Path,
    ) -> Result<(), TestbedError> {
        let mut modules = self.modules.load_order(&GUEST_MODULES)?;
        modules.extend(self.own_module.clone());
        let guest = |program: &str, arguments: &[&str]| -> Result<Vec<u8>, TestbedError> {
            let guest = Guest {
                init: programs.file("fido-init"),
                program: programs.guests(program),
                libraries: programs.libraries(),
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                modules: modules.clone(),
                ..Guest::default()
            };
            let mut image = Vec::new();
            guest.archive()?.write(&mut image)?;
            Ok(image)
        };
        let mut archive = Archive::new();
        archive.host_file("init", &programs.file("testbed-dom0"), true)?;
        archive.host_file("guest/vmlinux", &self.kernel, false)?;
        // Scenarios that create guests themselves name the program's part on the kernel's command line.
        archive.file("guest/image.cpio", guest("testbed-guest", &[])?, false)?;
        for part in ["conformance", "chain", "pace", "handshake"] {
            archive.file(format!("guest/{part}.cpio"), guest("testbed-guest", &[part])?, false)?;
        }
        for domain in ["net", "fs", "disk"] {
            let image = guest("nas-demo", &["component", domain])?;
            archive.file(format!("guest/nas-{domain}.cpio"), image, false)?;
        }
        for (place, host) in further {
            archive.host_file(place, host, true)?;
        }
        archive.host_file("usr/sbin/fidod", &programs.file("fidod"), true)?;
        // What the toolstack runs for network interfaces, and for disks.
        archive.link("bin/testbed-vif", "/init")?;
        archive.link("etc/xen/scripts/block", "/init")?;
        guest::modules(&mut archive, &self.modules.load_order(&DOM0_MODULES)?)?;
        let write = || {
            let mut file = File::create(to)?;
            std::io::copy(&mut File::open(&self.dom0)?, &mut file)?;
            Ok(file)
        };
        archive.write(BufWriter::new(write().map_err(io_error(to))?))?;
        Ok(())
    }
}

/// `xen` from the package's compressed hypervisor.
fn hypervisor_of(supervisor: &Supervisor, folder: &Path) -> Result<(), TestbedError> {
    let boot = folder.join("boot");
    let packed = only(&boot, |name| name.ends_with(".gz"))?;
    let bytes = fs::read(&packed).map_err(io_error(&packed))?;
    kernel::decompress(supervisor, &["gzip", "--decompress", "--stdout"], &bytes, &folder.join("xen"))?;
    keep(folder, &["xen"])
}

/// `dom0.cpio`: the toolstack with its libraries, and busybox for who looks around.
fn dom0_of(folder: &Path) -> Result<(), TestbedError> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 5, 1)?;
    let tools: Vec<PathBuf> = TOOLS.iter().map(|tool| folder.join(tool)).collect();
    for (place, host) in TOOLS.iter().zip(&tools) {
        archive.host_file(place, host, true)?;
    }
    guest::needed(&mut archive, folder, &tools)?;
    // Opened by the C library when a thread is cancelled, and so in nobody's list.
    let unwinder = "lib/x86_64-linux-gnu/libgcc_s.so.1";
    archive.host_file(Path::new("usr").join(unwinder), &folder.join(unwinder), true)?;
    archive.file("etc/xen/xl.conf", *b"", false)?;
    archive.host_file("bin/busybox", &folder.join("bin/busybox"), true)?;
    archive.link("bin/sh", "busybox")?;
    archive.link("var/run", "/run")?;
    archive.link("var/lock", "/run/lock")?;
    let to = folder.join("dom0.cpio");
    archive.write(BufWriter::new(File::create(&to).map_err(io_error(&to))?))?;
    keep(folder, &["dom0.cpio"])
}
