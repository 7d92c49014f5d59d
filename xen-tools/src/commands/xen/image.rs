//! `fido xen image`: a bootable image for a program, or for each guest of a manifest.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use conn_mgr::Manifest;
use xen_tools::image::closure::Modules;
use xen_tools::image::guest::{Guest, Libraries};

/// What a component on platform `xen` needs of the kernel.
const MODULES: [&str; 3] = ["xen-evtchn", "xen-gntdev", "xen-gntalloc"];

/// Taken along where they are: Fido's own module (a guest whose arena has one reader does without), and the drivers of
/// `vif` and `disk`.
const OPTIONAL: [&str; 3] = ["fido_arena", "xen-netfront", "xen-blkfront"];

#[derive(Args)]
pub struct Command {
    /// A manifest, or one program.
    from: PathBuf,
    /// With a manifest: only this domain.
    #[arg(long)]
    domain: Option<String>,
    /// Where the image goes: a file for a program; for a manifest a folder, instead of the places that it names.
    #[arg(long)]
    output: Option<PathBuf>,
    /// The first process, linked statically [default: `fido-init` beside this program].
    #[arg(long)]
    init: Option<PathBuf>,
    /// The folder with the modules of the guests' kernel [default: those of the running kernel].
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A kernel module, with all that it needs; can be repeated, replaces the usual ones.
    #[arg(long = "module", value_name = "NAME")]
    names: Vec<String>,
    /// No kernel modules: the guests' kernel has everything built in.
    #[arg(long, conflicts_with_all = ["modules", "names"])]
    no_modules: bool,
    /// A further file, as `PLACE=FILE`: where it is in the image, and which it is; can be repeated.
    #[arg(long = "file", value_name = "PLACE=FILE", value_parser = placed)]
    files: Vec<(PathBuf, PathBuf)>,
    /// Takes the libraries of programs that are linked dynamically along, from below this root (`/`, say).
    #[arg(long, value_name = "ROOT")]
    libraries: Option<PathBuf>,
    /// A library that the program opens itself when it runs; can be repeated.
    #[arg(long = "library", value_name = "NAME", requires = "libraries")]
    opened: Vec<String>,
    /// The program's arguments, without a manifest.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// One image to be made.
struct Job {
    program: PathBuf,
    arguments: Vec<String>,
    output: PathBuf,
}

impl Command {
    pub fn run(self) -> ExitCode {
        super::super::end(self.make())
    }

    fn make(self) -> Result<(), String> {
        let jobs = self.jobs()?;
        let init = self.init.clone().map_or_else(default_init, Ok)?;
        let modules = self.load_order()?;
        for Job { program, arguments, output } in jobs {
            let libraries = self.libraries.clone().map(|root| Libraries { root, opened: self.opened.clone() });
            let (init, files, modules) = (init.clone(), self.files.clone(), modules.clone());
            let guest = Guest { init, program, arguments, files, libraries, modules };
            let bytes = write(&guest, &output)?;
            super::super::say(io::stdout().lock(), &format_args!("{}: {} KiB", output.display(), bytes.div_ceil(1024)));
        }
        Ok(())
    }

    fn jobs(&self) -> Result<Vec<Job>, String> {
        if is_program(&self.from)? {
            if self.domain.is_some() {
                return Err("--domain goes with a manifest, and this is a program".to_owned());
            }
            let output = self.output.clone().ok_or("a program needs --output FILE")?;
            return Ok(vec![Job { program: self.from.clone(), arguments: self.arguments.clone(), output }]);
        }
        if !self.arguments.is_empty() {
            return Err("with a manifest, its `args` are the program's arguments".to_owned());
        }
        let manifest = Manifest::load(&self.from).map_err(|error| error.to_string())?;
        if let Some(name) = self.domain.as_ref().filter(|name| manifest.position(name).is_none()) {
            return Err(format!("there is no domain `{name}`"));
        }
        let wanted = manifest.domains.iter().filter(|d| self.domain.as_ref().is_none_or(|name| *name == d.name));
        wanted
            .map(|domain| {
                let name = &domain.name;
                let guest = domain.guest.as_ref();
                let place = guest.ok_or_else(|| format!("domain `{name}` has no table [domain.{name}.xen]"))?;
                let output = self.output.as_ref().map(|folder| folder.join(format!("{name}.cpio")));
                let output = output.unwrap_or_else(|| place.image.clone());
                Ok(Job { program: domain.program.clone(), arguments: domain.args.clone(), output })
            })
            .collect()
    }

    fn load_order(&self) -> Result<Vec<PathBuf>, String> {
        if self.no_modules {
            return Ok(Vec::new());
        }
        let usual: Vec<String> = MODULES.iter().map(|&name| name.to_owned()).collect();
        let names = if self.names.is_empty() { &usual } else { &self.names };
        let folder = self.modules.clone().unwrap_or_else(|| {
            Path::new("/lib/modules").join(rustix::system::uname().release().to_string_lossy().as_ref())
        });
        let hint = |error| format!("{error}; name the modules' folder of the guests' kernel with --modules");
        let modules = Modules::find(&folder).map_err(hint)?;
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        if self.names.is_empty() {
            names.extend(OPTIONAL.iter().filter(|name| modules.has(name)));
        }
        modules.load_order(&names).map_err(|error| error.to_string())
    }
}

fn placed(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (place, file) = text.split_once('=').ok_or("it must be PLACE=FILE")?;
    Ok((place.trim_start_matches('/').into(), file.into()))
}

fn default_init() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = own.with_file_name("fido-init");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(format!("there is no {}; build the package xen-guest statically and name it with --init", beside.display()))
}

fn is_program(path: &Path) -> Result<bool, String> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.take(4).read_to_end(&mut start).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(start == b"\x7fELF")
}

/// Writes an image; what was there under the name stays until it is complete.
fn write(guest: &Guest, to: &Path) -> Result<u64, String> {
    let archive = guest.archive().map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("{}: {error}", to.display());
    let folder = to.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    archive.write(BufWriter::new(partial.as_file_mut())).map_err(|error| error.to_string())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    partial.as_file().set_permissions(readable).map_err(failed)?;
    partial.persist(to).map_err(|error| failed(error.error))?;
    fs::metadata(to).map(|file| file.len()).map_err(failed)
}
