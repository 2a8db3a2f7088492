//! Files that the program keeps for its next start, in the user's cache directory.
//!
//! They have names by kind and key, and only the user can read and write them. A file gets its name
//! when it is complete, so that an interrupted run leaves the old file or the new one.

use anyhow::{Context as _, Result};
use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Names the directory to use in place of the user's. If it is empty, nothing is kept.
const DIRECTORY: &str = "FLASHTILE_CACHE_DIR";

/// The directory of all kept files; `None` where the system names none, or the user wants none.
pub(crate) fn directory() -> Option<PathBuf> {
    match env::var_os(DIRECTORY) {
        Some(directory) if directory.is_empty() => None,
        Some(directory) => Some(directory.into()),
        None => platform_directory().map(|directory| directory.join("flashtile")),
    }
}

/// The platform's directory for data that can be made again.
fn platform_directory() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::home_dir().filter(|home| home.is_absolute());
    if cfg!(windows) {
        return absolute("LOCALAPPDATA");
    }
    if cfg!(target_os = "macos") {
        return home().map(|home| home.join("Library/Caches"));
    }
    absolute("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")))
}

/// The file of a kind (`tuning.txt`, say) for a key, in the directory of kept files.
pub(crate) fn path(kind: &str, key: &str) -> Option<PathBuf> {
    let (name, extension) = kind.split_once('.').unwrap_or((kind, "bin"));
    let name = format!("{name}-{:016x}.{extension}", hash(key.as_bytes()));
    directory().map(|directory| directory.join(name))
}

/// The contents of a kept file; `None` if there is none.
///
/// # Errors
/// A file that cannot be read, that holds more than `most` bytes, or that other users can change.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(Some(bytes))
}

/// Whether only its owner can change a file. Other systems than Unix protect the directory.
pub(crate) fn is_private(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o022 == 0)
    }
    #[cfg(not(unix))]
    path.exists()
}

/// Whether files can be kept at `path`. Makes its folder.
///
/// # Errors
/// Why not.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let tried = fs::create_dir_all(folder)
        .and_then(|()| tempfile::Builder::new().prefix(".flashtile-").tempfile_in(folder));
    tried.map(|_| ()).with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a kept file.
///
/// # Errors
/// A folder or file that cannot be written. The old file then stays.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        // A temporary file is its owner's alone.
        let mut file = tempfile::Builder::new().prefix(".flashtile-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// FNV-1a. The standard library's hashers may change between its versions.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_as_a_whole_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/file");
        assert_eq!(read(&path, 10).expect("no file is no error"), None);
        check_writable(&path).expect("the folder is made");
        write(&path, b"first").expect("writable");
        write(&path, b"second").expect("writable");
        assert_eq!(read(&path, 6).expect("readable"), Some(b"second".to_vec()));
        assert!(read(&path, 5).is_err() && is_private(&path));
        let names: Vec<_> = fs::read_dir(folder.path().join("deep")).expect("there").collect();
        assert_eq!(names.len(), 1, "no temporary file remains");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_change_is_not_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        assert!(is_private(file.path()));
        let shared = fs::Permissions::from_mode(0o620);
        fs::set_permissions(file.path(), shared).expect("it is ours");
        assert!(!is_private(file.path()));
    }

    /// Known values of FNV-1a.
    #[test]
    fn names_stay_the_same() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
