//! Compiled pipelines, kept from one run of the program to the next, where a driver gives them out.

use crate::kept;
use flashtile::wgpu::{Context, wgpu};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

const MAGIC: &[u8] = b"flashtile pipelines 1\n";

/// Caches of pipelines only grow, and are reread as a whole.
const MOST_BYTES: u64 = 64 << 20;

/// A context whose pipelines are kept when the program ends.
struct Open {
    context: Context,
    path: PathBuf,
    key: String,
    /// What the file held.
    before: Vec<u8>,
}

static OPEN: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// `context`, with the pipelines of earlier runs. [`keep`] writes those that it compiles.
pub(crate) fn reuse(context: Context) -> Context {
    let info = context.adapter_info();
    let has = context.device().features().contains(wgpu::Features::PIPELINE_CACHE);
    let Some(class) = wgpu::util::pipeline_cache_key(info).filter(|_| has) else {
        return context;
    };
    let key = format!("{class}; {}", context.tuning_key());
    let Some(path) = kept::path("pipelines.bin", &key) else { return context };
    // A file that cannot be used costs the time that it would have saved, and is replaced.
    let before = load(&path, &key).unwrap_or_default();
    let descriptor = wgpu::PipelineCacheDescriptor {
        label: Some("flashtile"),
        data: (!before.is_empty()).then_some(&before),
        fallback: true,
    };
    // SAFETY: the data was returned by `PipelineCache::get_data` for this adapter and driver. The
    // file that it comes from holds their names and a checksum, nobody but the user can write it,
    // and `keep` is what writes such files. wgpu also compares the driver's own identification.
    let cache = unsafe { context.device().create_pipeline_cache(&descriptor) };
    let context = context.with_pipeline_cache(cache);
    let open = Open { context: context.clone(), path, key, before };
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).push(open);
    context
}

/// Writes the pipelines that were compiled since. What cannot be kept is compiled again next time.
pub(crate) fn keep() {
    let open = std::mem::take(&mut *OPEN.lock().unwrap_or_else(PoisonError::into_inner));
    for Open { context, path, key, before } in open {
        let data = context.pipeline_cache_data().unwrap_or_default();
        let fits = (data.len() as u64) < MOST_BYTES / 2;
        if context.pipeline_count() > 0 && !data.is_empty() && data != before && fits {
            let _ = kept::write(&path, &encode(&key, &data));
        }
    }
}

fn load(path: &Path, key: &str) -> Option<Vec<u8>> {
    let bytes = kept::read(path, MOST_BYTES).ok()??;
    // After reading, so that the file that was read is one that only the user can write.
    kept::is_private(path).then(|| decode(&bytes, key).map(<[u8]>::to_vec))?
}

/// Magic, a checksum of the rest, the length of the key, the key, and the data.
fn encode(key: &str, data: &[u8]) -> Vec<u8> {
    let length = (key.len() as u64).to_le_bytes();
    let rest = [&length, key.as_bytes(), data].concat();
    [MAGIC, &kept::hash(&rest).to_le_bytes(), &rest].concat()
}

/// The data; `None` if the file is damaged or has another key.
fn decode<'a>(bytes: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let (checksum, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    if u64::from_le_bytes(*checksum) != kept::hash(rest) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk()?;
    let (own, data) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
    (own == key.as_bytes()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_of_the_same_key_are_used() {
        let bytes = encode("a key", b"data");
        assert_eq!(decode(&bytes, "a key"), Some(&b"data"[..]));
        assert_eq!(decode(&bytes, "a kez"), None);
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end], "a key"), None, "cut off after {end}");
        }
        for n in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[n] ^= 1;
            assert_eq!(decode(&damaged, "a key"), None, "byte {n}");
        }
    }
}
