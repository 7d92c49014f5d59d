//! The kernel and its modules out of Debian's package. It is unpacked here, so that nothing is under emulation.
//!
//! Source of the format: `Documentation/arch/x86/boot.rst` of the Linux kernel.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::exec::{ExecError, Supervisor};
use super::{TestbedError, io_error};
use crate::image::closure::Modules;

const LIMIT: Duration = Duration::from_secs(120);

/// The compressed kernel inside a "bzImage" and what unpacks it, if it is one and compressed with xz, lz4 or zstd.
fn payload(image: &[u8]) -> Option<(&'static [&'static str], &[u8])> {
    const XZ: &[u8] = b"\xfd7zXZ\0";
    const LZ4: &[u8] = b"\x02\x21\x4c\x18";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let begin = (sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(begin..begin.checked_add(word(0x24c)?)?)?;
    if payload.starts_with(XZ) {
        return Some((&["xz", "--decompress", "--stdout", "--single-stream"], payload));
    }
    // The kernel's build puts the unpacked size behind it, which the format itself does not have.
    let (packed, _size) = payload.split_last_chunk::<4>()?;
    if packed.starts_with(ZSTD) {
        return Some((&["zstd", "--decompress", "--stdout"], packed));
    }
    packed.starts_with(LZ4).then_some((&["lz4", "--decompress", "--stdout"], packed))
}

/// Writes the ELF file that is in `image` to `to`.
///
/// # Errors
/// An image of another kind, or what `xz`, `lz4` or `zstd` says.
pub fn extract(supervisor: &Supervisor, image: &Path, to: &Path) -> Result<(), TestbedError> {
    let bytes = fs::read(image).map_err(io_error(image))?;
    let (words, payload) = payload(&bytes).ok_or_else(|| TestbedError::BadKernel(image.to_path_buf()))?;
    decompress(supervisor, words, payload, to)
}

/// Leaves `vmlinux`, and in `modules` those of `names` with what they need, of the kernel's package in `folder`.
///
/// # Errors
/// What is not in the package, or what [`extract`] says.
pub fn unpacked(supervisor: &Supervisor, folder: &Path, names: &[&str]) -> Result<(), TestbedError> {
    let packed = only(&folder.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    extract(supervisor, &packed, &folder.join("vmlinux"))?;
    let modules = folder.join("modules");
    fs::create_dir(&modules).map_err(io_error(&modules))?;
    for file in Modules::find(&folder.join("lib/modules"))?.load_order(names)? {
        let to = modules.join(file.file_name().unwrap_or_default());
        fs::copy(&file, &to).map_err(io_error(&to))?;
    }
    keep(folder, &["vmlinux", "modules"])
}

/// Unpacks those modules of the kernel's package in `folder` that are packed with xz, as those of later kernels are. What
/// they need in turn stays packed, and is missed if it is there.
///
/// # Errors
/// A folder that cannot be read, or what `xz` says.
pub fn unpack_modules(supervisor: &Supervisor, folder: &Path, names: &[&str]) -> Result<(), TestbedError> {
    let mut open = vec![folder.join("lib/modules")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let path = entry.map_err(io_error(&folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else if name.strip_suffix(".ko.xz").is_some_and(|name| names.contains(&name)) {
                supervisor.run(Command::new("xz").arg("--decompress").arg(&path), LIMIT)?;
            }
        }
    }
    Ok(())
}

/// The one file of a folder whose name is like that.
///
/// # Errors
/// There is none, or the folder cannot be read.
pub fn only(folder: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf, TestbedError> {
    let files = fs::read_dir(folder).map_err(io_error(folder))?;
    let found = files.flatten().find(|entry| is_it(&entry.file_name().to_string_lossy()));
    found.map(|entry| entry.path()).ok_or_else(|| TestbedError::NotInPackage(folder.to_path_buf()))
}

/// Removes everything else from a folder.
///
/// # Errors
/// The system's.
pub fn keep(folder: &Path, names: &[&str]) -> Result<(), TestbedError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let entry = entry.map_err(io_error(folder))?;
        if !names.iter().any(|name| entry.file_name() == *name) {
            let path = entry.path();
            let is_folder = entry.file_type().map_err(io_error(&path))?.is_dir();
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(io_error(&path))?;
        }
    }
    Ok(())
}

/// Runs a decompressor over bytes and writes what comes out to `to`.
///
/// # Errors
/// The decompressor's or the system's.
pub fn decompress(supervisor: &Supervisor, words: &[&str], bytes: &[u8], to: &Path) -> Result<(), TestbedError> {
    let mut input = tempfile::NamedTempFile::new().map_err(io_error(to))?;
    input.write_all(bytes).map_err(io_error(input.path()))?;
    let output = File::create(to).map_err(io_error(to))?;
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(File::open(input.path()).map_err(io_error(input.path()))?);
    command.stdout(output).stderr(Stdio::inherit());
    let mut running = supervisor.start(&mut command)?;
    let what = words.join(" ");
    match running.wait(supervisor, LIMIT, || Ok(false))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(ExecError::Failed { what, status, output: String::new() }.into()),
        None => Err(ExecError::Hangs { what, limit: LIMIT, output: String::new() }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(sectors: u8, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let begin = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512 + 16;
        image.truncate(begin.min(image.len()));
        image.resize(begin, 0);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let payload_bytes = b"\xfd7zXZ\0kernel";
        for sectors in [0, 1, 31] {
            let mut whole = image(sectors, payload_bytes);
            assert_eq!(payload(&whole).unwrap().1, payload_bytes, "{sectors}");
            whole.push(0);
            assert_eq!(payload(&whole).unwrap().1, payload_bytes, "{sectors}");
        }
    }

    #[test]
    fn the_size_behind_lz4_and_zstd_is_cut_off() {
        let (words, packed) =
            payload(&image(4, b"\x02\x21\x4c\x18kernel\x01\0\0\0")).map(|(w, p)| (w, p.to_vec())).unwrap();
        assert_eq!((words[0], &packed[..]), ("lz4", &b"\x02\x21\x4c\x18kernel"[..]));
        let whole = image(4, b"\x28\xb5\x2f\xfdkernel\x01\0\0\0");
        let (words, packed) = payload(&whole).unwrap();
        assert_eq!((words[0], packed), ("zstd", &b"\x28\xb5\x2f\xfdkernel"[..]));
    }

    #[test]
    fn what_is_no_such_image_is_refused() {
        let good = image(4, b"\xfd7zXZ\0kernel");
        assert_eq!(payload(&good[..good.len() - 1]), None, "cut short");
        assert_eq!(payload(&image(4, b"\x1f\x8bkernel")), None, "compressed otherwise");
        assert_eq!(payload(&good[..0x203]), None);
        assert_eq!(payload(b""), None);
        let mut far = good;
        far[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&far), None);
    }
}
