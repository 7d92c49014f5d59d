//! Where a domain's program is.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// Finds a program by the name in a manifest whose file is in `folder`:
///
/// 1. an absolute path is taken as it is;
/// 2. otherwise it is looked up relative to `folder`;
/// 3. a bare name (no slash) then beside the running executable,
/// 4. and then in the folders of `PATH`.
///
/// The first one that is an executable file is it. The answer is absolute wherever that can be told.
pub fn locate(program: &str, folder: &Path) -> Option<PathBuf> {
    if program.is_empty() || program.contains('\0') {
        return None;
    }
    let mut candidates = vec![folder.join(program)];
    if !program.contains('/') {
        candidates.extend(std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(program))));
        let path = std::env::var_os("PATH").unwrap_or_default();
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join(program)));
    }
    let found = candidates.into_iter().find(|candidate| is_executable(candidate))?;
    Some(std::path::absolute(&found).unwrap_or(found))
}

/// Whether this process may execute that file.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_search() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(locate("sh", folder.path()).unwrap().file_name().unwrap(), "sh", "from PATH");
        let own = std::env::current_exe().unwrap();
        let name = own.file_name().unwrap().to_str().unwrap();
        assert_eq!(locate(name, folder.path()).unwrap(), own, "beside the running executable");
        let local = folder.path().join("sh");
        std::fs::copy("/bin/sh", &local).unwrap();
        assert_eq!(locate("sh", folder.path()).unwrap(), local, "the manifest's folder comes first");
        assert_eq!(locate("./sh", folder.path()).unwrap(), folder.path().join("./sh"));
        assert_eq!(locate(own.to_str().unwrap(), folder.path()).unwrap(), own);
        std::fs::write(folder.path().join("text"), "not executable").unwrap();
        for missing in ["text", "", "a\0b", "no-such-program-anywhere", "../sh/sh"] {
            assert_eq!(locate(missing, folder.path()), None, "{missing:?}");
        }
    }
}
