//! Two guests whose images and configurations are made by the commands that users have, `fido xen image` and `fido xen
//! config`, and in which the command line itself runs: `fido xen doctor`. For the scenario `doctor`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::exec::Supervisor;
use super::programs::Programs;
use super::{TestbedError, io_error};

const LIMIT: Duration = Duration::from_secs(60);
/// The guests: one that has everything, and one that lacks modules.
const WELL: &str = "well";
const ILL: &str = "ill";

/// What dom0 needs of it: where it is there, and the file here. All is made in `folder`; `modules` are the files of all
/// kernel modules there are.
///
/// # Errors
/// What the commands say.
pub fn make(
    supervisor: &Supervisor,
    folder: &Path,
    programs: &Programs,
    modules: &[PathBuf],
    pvh: bool,
) -> Result<Vec<(PathBuf, PathBuf)>, TestbedError> {
    let folder = folder.join("clinic");
    let all = folder.join("modules");
    fs::create_dir_all(&all).map_err(io_error(&all))?;
    for module in modules {
        let place = all.join(module.file_name().unwrap_or_default());
        std::os::unix::fs::symlink(module, &place).map_err(io_error(&place))?;
    }
    let program = programs.file("fido");
    let manifest = folder.join("clinic.toml");
    fs::write(&manifest, text(&program, pvh)).map_err(io_error(&manifest))?;
    let own = std::env::current_exe().map_err(io_error(Path::new("this program")))?;
    let run = |words: &[&str], files: &[(&str, &Path)], last: &[&str]| {
        let mut command = Command::new(&own);
        command.args(["xen"]).args(words);
        files.iter().for_each(|(option, file)| {
            command.arg(option).arg(file);
        });
        supervisor.run(command.args(last), LIMIT).map(drop)
    };
    let init = programs.file("fido-init");
    let (manifest_text, program_text) = (manifest.to_string_lossy(), program.to_string_lossy());
    let files = [("--init", init.as_path()), ("--modules", &all)];
    let image = ["image", &manifest_text, "--domain", WELL];
    run(&image, &[&files[..], &[("--output", &folder)]].concat(), &[])?;
    // Without gntdev and our module there are no windows, and no arenas worth the name.
    let image = ["image", &program_text, "--module", "xen-evtchn", "--module", "xen-gntalloc"];
    let output = folder.join(format!("{ILL}.cpio"));
    run(&image, &[&files[..], &[("--output", &output)]].concat(), &["--", "xen", "doctor"])?;
    run(&["config", &manifest_text], &[("--output", &folder)], &[])?;
    let mut made = vec![("usr/bin/fido".into(), program), ("guest/clinic.toml".into(), manifest)];
    for name in [WELL, ILL] {
        for file in [format!("{name}.cpio"), format!("clinic-{name}.cfg")] {
            made.push((Path::new("guest").join(&file), folder.join(&file)));
        }
    }
    Ok(made)
}

fn text(program: &Path, pvh: bool) -> String {
    let kind = if pvh { "pvh" } else { "pv" };
    let domain = |name: &str, cpu: u32| {
        format!(
            "\n[domain.{name}]\nprogram = {program:?}\nargs = [\"xen\", \"doctor\"]\narena = \"2MiB\"\n\n\
             [domain.{name}.xen]\ntype = \"{kind}\"\nkernel = \"/guest/vmlinux\"\nimage = \"/guest/{name}.cpio\"\n\
             memory = \"192MiB\"\ncpus = [{cpu}]\n"
        )
    };
    format!("appliance = \"clinic\"\nplatform = \"xen\"\n{}{}", domain(WELL, 1), domain(ILL, 2))
}

#[cfg(test)]
mod tests {
    use conn_mgr::Manifest;

    use super::*;

    #[test]
    fn the_manifest_is_one() {
        for pvh in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("clinic.toml");
            fs::write(&file, text(Path::new("/a b/fido"), pvh)).unwrap();
            let manifest = Manifest::load(&file).unwrap();
            assert_eq!(manifest.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>(), [WELL, ILL]);
        }
    }
}
