//! Compiled kernels on disk, because compiling one takes seconds.
//!
//! An entry contains its whole key and a checksum, so that neither another key's entry nor a
//! damaged one is ever used. A writer first writes a temporary file and then renames it, so that
//! readers in other processes see the whole entry or none. Any error with a file means that there
//! is no entry.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// The variable that names the directory of entries. If it is empty, none are kept.
pub(crate) const DIRECTORY: &str = "FLASHTILE_CACHE_DIR";

const MAGIC: &[u8] = b"flashtile cubin 1\n";

/// A directory of entries, or none.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

/// The result of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) cubin: Vec<u8>,
    pub(crate) log: String,
}

impl Cache {
    /// The user's cache.
    pub(crate) fn of_user() -> Self {
        let directory = match env::var_os(DIRECTORY) {
            Some(directory) if directory.is_empty() => None,
            Some(directory) => Some(directory.into()),
            None => platform_directory().map(|directory| directory.join("flashtile")),
        };
        Self { directory }
    }

    /// A cache that keeps nothing.
    pub(crate) fn none() -> Self {
        Self { directory: None }
    }

    /// The entry of `key`, or else the one that `build` returns, which is then kept. The name of
    /// its file starts with `name`.
    pub(crate) fn get_or_build<E>(
        &self,
        name: &str,
        key: &str,
        build: impl FnOnce() -> Result<Entry, E>,
    ) -> Result<Entry, E> {
        let Some(directory) = &self.directory else {
            return build();
        };
        let path = directory.join(format!("{name}-{:016x}.cubin", hash([key.as_bytes()])));
        if let Some(entry) = fs::read(&path).ok().and_then(|bytes| decode(&bytes, key)) {
            return Ok(entry);
        }
        let entry = build()?;
        // If it cannot be kept, the next process compiles it again.
        let _ = write(directory, &path, &encode(key, &entry));
        Ok(entry)
    }
}

/// The platform's directory for data that can be made again.
fn platform_directory() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(windows) {
        return absolute("LOCALAPPDATA");
    }
    absolute("XDG_CACHE_HOME").or_else(|| {
        env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache"))
    })
}

fn write(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(directory)?;
    let unique = format!(".{}-{}.part", process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
    let part = directory.join(unique);
    let written = fs::File::create(&part)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&part, path));
    written.inspect_err(|_| {
        // Nothing reads a part of an entry.
        let _ = fs::remove_file(&part);
    })
}

/// The bytes of an entry: magic, checksum, the lengths of key, log and cubin, then these three.
fn encode(key: &str, entry: &Entry) -> Vec<u8> {
    let fields = [key.as_bytes(), entry.log.as_bytes(), &entry.cubin];
    let mut bytes = MAGIC.to_vec();
    bytes.extend(hash(fields).to_le_bytes());
    for field in fields {
        bytes.extend((field.len() as u64).to_le_bytes());
    }
    for field in fields {
        bytes.extend(field);
    }
    bytes
}

/// The entry in `bytes`; `None` if it is damaged or has another key.
fn decode(bytes: &[u8], key: &str) -> Option<Entry> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut number = || {
        let (number, after) = rest.split_first_chunk()?;
        rest = after;
        Some(u64::from_le_bytes(*number))
    };
    let checksum = number()?;
    let lengths = [number()?, number()?, number()?];
    let mut field = |length: u64| {
        let (field, after) = rest.split_at_checked(length.try_into().ok()?)?;
        rest = after;
        Some(field)
    };
    let [key_field, log, cubin] = [field(lengths[0])?, field(lengths[1])?, field(lengths[2])?];
    let whole =
        rest.is_empty() && hash([key_field, log, cubin]) == checksum && key_field == key.as_bytes();
    whole.then(|| {
        Some(Entry { cubin: cubin.to_vec(), log: String::from_utf8(log.to_vec()).ok()? })
    })?
}

/// FNV-1a of all fields and their lengths. The standard library's hashers may change between its
/// versions.
fn hash<const N: usize>(fields: [&[u8]; N]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    fields.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, field| {
        (field.len() as u64).to_le_bytes().iter().fold(field.iter().fold(hash, step), step)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, thread};

    fn cache(directory: &Path) -> Cache {
        Cache { directory: Some(directory.to_owned()) }
    }

    fn entry(text: &str) -> Entry {
        Entry { cubin: text.as_bytes().to_vec(), log: format!("log of {text}") }
    }

    /// The entry that the cache returns for `key`, and whether it called `build`.
    fn get(cache: &Cache, key: &str, made: &str) -> (Entry, bool) {
        let mut built = false;
        let got = cache.get_or_build("kernel", key, || {
            built = true;
            Ok::<_, Infallible>(entry(made))
        });
        let Ok(entry) = got;
        (entry, built)
    }

    fn only_file(directory: &Path) -> PathBuf {
        let files: Vec<_> = fs::read_dir(directory)
            .expect("the directory exists")
            .map(|file| file.expect("readable").path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    #[test]
    fn an_entry_is_built_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(&directory.path().join("made").join("on demand"));
        assert_eq!(get(&cache, "a", "first"), (entry("first"), true));
        assert_eq!(get(&cache, "a", "second"), (entry("first"), false));
        assert_eq!(get(&cache, "b", "other"), (entry("other"), true));
        let failed = cache.get_or_build("kernel", "c", || Err("does not compile"));
        assert_eq!(failed, Err("does not compile"));
        assert_eq!(get(&cache, "c", "now it does"), (entry("now it does"), true));
    }

    /// A change of any byte is detected, and so is a missing or an additional one.
    #[test]
    fn damaged_entries_are_built_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(directory.path());
        get(&cache, "key", "good");
        let path = only_file(directory.path());
        let good = fs::read(&path).expect("written");
        for n in 0..good.len() {
            let mut flipped = good.clone();
            flipped[n] ^= 0x40;
            for damaged in [&flipped, &good[..n], &[&good[..], b"x"].concat()] {
                fs::write(&path, damaged).expect("written");
                assert_eq!(get(&cache, "key", "good"), (entry("good"), true), "byte {n}");
                assert_eq!(fs::read(&path).expect("written again"), good);
            }
        }
        assert_eq!(decode(&good, "another key with the same hash"), None);
    }

    /// The threads act like processes: they share only the directory.
    #[test]
    fn concurrent_writers_do_not_mix() {
        let directory = tempfile::tempdir().expect("a directory");
        let contents: Vec<String> = (0..8).map(|n| n.to_string().repeat(100_000)).collect();
        thread::scope(|scope| {
            for content in &contents {
                scope.spawn(|| {
                    for round in 0..20 {
                        let (got, _) =
                            get(&cache(directory.path()), &format!("key {round}"), content);
                        assert!(
                            contents.iter().any(|content| got == entry(content)),
                            "the entry is none of those written"
                        );
                    }
                });
            }
        });
        assert_eq!(
            fs::read_dir(directory.path()).expect("the directory exists").count(),
            20,
            "no temporary file is left"
        );
    }

    #[test]
    fn without_a_directory_every_entry_is_built() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a file");
        fs::write(&file, "not a directory").expect("written");
        for cache in [cache(&file.join("below")), Cache::none()] {
            assert_eq!(get(&cache, "key", "made"), (entry("made"), true));
            assert_eq!(get(&cache, "key", "again"), (entry("again"), true));
        }
    }
}
