//! What every guest boots: kernel, modules and programs out of Debian's packages, unpacked and kept in the testbed's
//! cache.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};

use crate::image::closure::{self, Modules};
use crate::image::cpio::Archive;
use crate::testbed::cache::Cache;
use crate::testbed::exec::Supervisor;
use crate::testbed::packages::{self, Package};
use crate::testbed::{self, TestbedError, io_error, kernel};

/// Changes with what is made from the packages, so that old entries are not used.
const VERSION: &str = "1";

/// The meta-package of the kernel. That for clouds has the drivers of virtual hardware, and boots in half the time.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The kernel modules that guests can load. NVMe, ext4 and the serial ports are built in.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "sd_mod", "nbd"];

/// The programs of guests besides busybox, and the packages that have them. fio alone needs most of [`LIBRARIES`].
const PROGRAMS: [(&str, &str); 5] = [
    ("usr/bin/fio", "fio"),
    ("sbin/mkfs.ext4", "e2fsprogs"),
    ("sbin/e2fsck", "e2fsprogs"),
    ("sbin/sfdisk", "fdisk"),
    ("sbin/nbd-client", "nbd-client"),
];

/// The packages with the libraries of the programs. One that is missing here is named by the error that it causes.
const LIBRARIES: &str = "libacl1 libaio1 libargon2-1 libblkid1 libboost-iostreams1.74.0 libboost-thread1.74.0 libbz2-1.0 \
    libc6 libcom-err2 libcryptsetup12 libdaxctl1 libdevmapper1.02.1 libext2fs2 libfdisk1 libffi8 libfmt9 libgcc-s1 \
    libgfapi0 libgfrpc0 libgfxdr0 libglusterfs0 libgmp10 libgnutls30 libgssapi-krb5-2 libhogweed6 libibverbs1 libicu72 \
    libidn2-0 libjson-c5 libk5crypto3 libkeyutils1 libkmod2 libkrb5-3 libkrb5support0 liblzma5 libnbd0 libndctl6 \
    libnettle8 libnl-3-200 libnl-genl-3-200 libnl-route-3-200 libnuma1 libp11-kit0 libpcre2-8-0 libpmem1 libpmemblk1 \
    librados2 librbd1 librdmacm1 libreadline8 libselinux1 libsmartcols1 libssl3 libstdc++6 libtasn1-6 libtinfo6 \
    libtirpc3 libudev1 libunistring2 libuuid1 libxml2 libzstd1 zlib1g";

const BUSYBOX: &str = "busybox-static";

/// Kernel, modules and programs, ready to be booted.
pub struct Kit {
    supervisor: Supervisor,
    /// The supervisor stops when this is gone.
    _running: Sender<()>,
    kernel: PathBuf,
    modules: Modules,
    image: PathBuf,
}

impl Kit {
    /// Asks apt for versions, and makes what the cache does not have. Fetches apt's lists if they are missing and this
    /// is root.
    ///
    /// # Errors
    /// Packages that cannot be had, what is not in them, or programs of the host that are missing.
    pub fn prepare() -> Result<Self, TestbedError> {
        let (running, stop) = mpsc::channel();
        let supervisor = Supervisor::new(stop);
        let root = testbed::default_cache();
        let (kernel, image) = testbed::with_lists(&supervisor, &|_| (), || prepare(&supervisor, &root))?;
        let modules = Modules::find(&kernel.join("modules"))?;
        Ok(Self { supervisor, _running: running, kernel: kernel.join("vmlinux"), modules, image })
    }

    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    pub(super) fn kernel(&self) -> &Path {
        &self.kernel
    }

    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// The files of modules (`"name parameters"`) and of what they need, in load order, with the parameters.
    pub(super) fn modules<'a>(&self, wanted: &[&'a str]) -> Result<Vec<(PathBuf, &'a str)>, TestbedError> {
        let split = |module: &&'a str| module.split_once(' ').unwrap_or((module, ""));
        let wanted: Vec<(&str, &str)> = wanted.iter().map(split).collect();
        let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
        let parameters = |file: &Path| {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            wanted.iter().find(|(name, _)| *name == stem).map_or("", |(_, parameters)| parameters)
        };
        let files = self.modules.load_order(&names)?;
        Ok(files.into_iter().map(|file| (file.clone(), parameters(&file))).collect())
    }
}

/// The cache's folder with kernel and modules, and its image of programs.
fn prepare(supervisor: &Supervisor, root: &Path) -> Result<(PathBuf, PathBuf), TestbedError> {
    let cache = Cache::open(root)?;
    let kernel = packages::stands_for(supervisor, KERNEL)?;
    let mut names = vec![kernel.as_str(), BUSYBOX];
    names.extend(LIBRARIES.split_whitespace());
    names.extend(PROGRAMS.iter().map(|(_, package)| *package));
    names.dedup();
    let mut tools = packages::resolve(supervisor, &names)?;
    let kernel: Vec<Package> = tools.extract_if(.., |package| package.name == kernel).collect();
    let entry = |name, packages: &[Package], then: &dyn Fn(&Path) -> Result<(), TestbedError>| {
        packages::entry(supervisor, (&cache, root), (name, VERSION), packages, false, then)
    };
    let kernel = entry("guest-kernel", &kernel, &|folder| kernel::unpacked(supervisor, folder, &MODULES))?;
    let tools = entry("guest-tools", &tools, &tools_of)?;
    Ok((kernel, tools.join("tools.cpio")))
}

/// `tools.cpio`: busybox and the programs with their libraries.
fn tools_of(folder: &Path) -> Result<(), TestbedError> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 5, 1)?;
    archive.host_file("bin/busybox", &folder.join("bin/busybox"), true)?;
    for place in ["proc", "sys", "tmp", "mnt"] {
        archive.folder(place)?;
    }
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(|(program, _)| folder.join(program)).collect();
    for program in &programs {
        archive.host_file(Path::new("bin").join(program.file_name().unwrap_or_default()), program, true)?;
    }
    for (name, host) in closure::libraries(folder, &programs)? {
        // The loader is asked for by its full path.
        let place = if name.starts_with("ld-linux") { "lib64" } else { "usr/lib/x86_64-linux-gnu" };
        archive.host_file(Path::new(place).join(name), &host, true)?;
    }
    let to = folder.join("tools.cpio");
    archive.write(BufWriter::new(File::create(&to).map_err(io_error(&to))?))?;
    kernel::keep(folder, &["tools.cpio"])
}
