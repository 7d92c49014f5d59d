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
use crate::testbed::packages::{self, Lists, Package};
use crate::testbed::{self, TestbedError, io_error, kernel};

/// Changes with what is made from the packages, so that old entries are not used.
const VERSION: &str = "1";

/// The meta-package of the kernel. That for clouds has the drivers of virtual hardware, and boots in half the time.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The kernel modules that guests can load. NVMe, ext4 and the serial ports are built in.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "sd_mod", "nbd"];

/// Those of the kernel from Debian's backports.
const LATER_MODULES: [&str; 1] = ["ublk_drv"];

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
        Self::with_kernel(kernel)
    }

    /// As [`Kit::prepare`], with the kernel of Debian's backports (Linux 6.12), for what 6.1 does not have.
    ///
    /// # Errors
    /// As for [`Kit::prepare`].
    pub fn prepare_later() -> Result<Self, TestbedError> {
        Self::with_kernel(later_kernel)
    }

    fn with_kernel(
        kernel: fn(&Supervisor, &Cache, &Path) -> Result<PathBuf, TestbedError>,
    ) -> Result<Self, TestbedError> {
        let (running, stop) = mpsc::channel();
        let supervisor = Supervisor::new(stop);
        let root = testbed::default_cache();
        let prepare = || {
            let cache = Cache::open(&root)?;
            Ok((kernel(&supervisor, &cache, &root)?, tools(&supervisor, &cache, &root)?))
        };
        let (kernel, image) = testbed::with_lists(&supervisor, &|_| (), prepare)?;
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

/// The cache's folder with kernel and modules.
fn kernel(supervisor: &Supervisor, cache: &Cache, root: &Path) -> Result<PathBuf, TestbedError> {
    let name = packages::stands_for(supervisor, KERNEL)?;
    let packages = packages::resolve(supervisor, &[&name])?;
    packages::entry(supervisor, (cache, root), ("guest-kernel", VERSION), &packages, false, |folder| {
        kernel::unpacked(supervisor, folder, &MODULES)
    })
}

/// The cache's folder with the kernel of the backports, and its modules.
fn later_kernel(supervisor: &Supervisor, cache: &Cache, root: &Path) -> Result<PathBuf, TestbedError> {
    let lists = Lists::backports(root)?;
    let prepare = || {
        let name = lists.stands_for(supervisor, KERNEL)?;
        let packages = lists.resolve(supervisor, &[&name])?;
        packages::entry(supervisor, (cache, root), ("guest-kernel-later", VERSION), &packages, false, |folder| {
            kernel::unpack_modules(supervisor, folder, &LATER_MODULES)?;
            kernel::unpacked(supervisor, folder, &LATER_MODULES)
        })
    };
    match prepare() {
        // The lists are missing, or older than what there is.
        Err(TestbedError::NoPackage(_) | TestbedError::Exec(_)) => {
            lists.update(supervisor)?;
            prepare()
        }
        kernel => kernel,
    }
}

/// The image of programs.
fn tools(supervisor: &Supervisor, cache: &Cache, root: &Path) -> Result<PathBuf, TestbedError> {
    let mut names = vec![BUSYBOX];
    names.extend(LIBRARIES.split_whitespace());
    names.extend(PROGRAMS.iter().map(|(_, package)| *package));
    names.dedup();
    let packages: Vec<Package> = packages::resolve(supervisor, &names)?;
    let tools = packages::entry(supervisor, (cache, root), ("guest-tools", VERSION), &packages, false, tools_of)?;
    Ok(tools.join("tools.cpio"))
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
