use std::{fmt, ops::Range};

/// Fixed chunks of keys, for kernels that split the keys of a row among workgroups.
///
/// Each chunk has a softmax of its own, and a second dispatch merges the chunks of a row in
/// ascending order. Chunks start at multiples of their size, and the merge reads only the chunks
/// that hold a key of the row's range. So the bits of a row depend on the chunk size and on the
/// keys that the row sees, and neither on the batch nor on the keys that a cache could hold beyond
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyChunks {
    keys: usize,
    seq_kv: usize,
}

impl KeyChunks {
    /// The fewest keys of a chunk, a multiple of every key tile.
    pub const MIN_KEYS: usize = 256;

    /// The most chunks, unless a binding or a loop budget requires smaller ones.
    pub const MAX_COUNT: usize = 64;

    /// The most queries for which a plan splits keys that it could leave whole.
    pub const MAX_QUERIES: usize = 64;

    /// The fewest chunks that are worth a second dispatch.
    const MIN_COUNT: usize = 4;

    /// The fewest keys of a chunk per query. For each query and head, a chunk stores a row of f32
    /// in the workspace. This keeps that traffic small beside the reads of K and V.
    const KEYS_PER_QUERY: usize = 64;

    /// Chunks of `keys` keys, in a capacity of `seq_kv`; `None` unless `keys` is a power of two of
    /// at least [`MIN_KEYS`](Self::MIN_KEYS).
    pub const fn new(keys: usize, seq_kv: usize) -> Option<Self> {
        if keys >= Self::MIN_KEYS && keys.is_power_of_two() {
            Some(Self { keys, seq_kv })
        } else {
            None
        }
    }

    /// The smallest chunks within the limits above, for capacities of `seq_q` queries and `seq_kv`
    /// keys.
    ///
    /// The batch, the heads and the processors of a device are no part of this rule, because the
    /// bits of a row must not depend on them.
    pub fn of_capacity(seq_q: usize, seq_kv: usize) -> Self {
        let for_queries = Self::KEYS_PER_QUERY * seq_q.min(Self::MAX_QUERIES);
        let keys = seq_kv.div_ceil(Self::MAX_COUNT).max(for_queries).max(Self::MIN_KEYS);
        Self { keys: keys.next_power_of_two(), seq_kv }
    }

    /// The chunks that a plan uses where nothing requires them: few queries over many keys would
    /// leave most of a GPU idle. `None` where splitting gains nothing.
    pub fn of_few_queries(seq_q: usize, seq_kv: usize) -> Option<Self> {
        let chunks = Self::of_capacity(seq_q, seq_kv);
        (seq_q <= Self::MAX_QUERIES && chunks.count() >= Self::MIN_COUNT).then_some(chunks)
    }

    /// Chunks of half the size; `None` below [`MIN_KEYS`](Self::MIN_KEYS).
    pub const fn halved(self) -> Option<Self> {
        Self::new(self.keys / 2, self.seq_kv)
    }

    /// Keys per chunk.
    pub const fn keys(self) -> usize {
        self.keys
    }

    /// The number of chunks in the capacity.
    pub const fn count(self) -> usize {
        self.seq_kv.div_ceil(self.keys)
    }

    /// Words of workspace per row: for each chunk an unnormalised row of O, m and l, all f32.
    pub const fn row_words(self, head_dim_v: usize) -> usize {
        self.count().saturating_mul(head_dim_v.saturating_add(2))
    }

    /// The chunks that hold any of `keys`. The merge kernels walk this range.
    pub const fn of_keys(self, keys: Range<usize>) -> Range<usize> {
        let first = keys.start / self.keys;
        if keys.start < keys.end { first..keys.end.div_ceil(self.keys) } else { first..first }
    }
}

impl fmt::Display for KeyChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chunks of {} keys", self.count(), self.keys)
    }
}

/// Whether a flash kernel splits the keys of a row into chunks; see [`KeyChunks`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeySplit {
    /// The planner's choice: for few queries over many keys, and where a binding or a loop budget
    /// requires it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Chunks of this many keys: a power of two of at least [`KeyChunks::MIN_KEYS`].
    Keys(usize),
}

impl KeySplit {
    /// The ways to split that a plan may use, preferred ones first. `None` is no split.
    ///
    /// Those after the first are for devices whose bindings or loop budgets the first exceeds.
    ///
    /// # Errors
    /// The keys of a chunk that are not a power of two, or too few.
    pub fn candidates(self, seq_q: usize, seq_kv: usize) -> Result<Vec<Option<KeyChunks>>, usize> {
        match self {
            KeySplit::Off => Ok(vec![None]),
            KeySplit::Keys(keys) => KeyChunks::new(keys, seq_kv).map(|c| vec![Some(c)]).ok_or(keys),
            KeySplit::Auto => {
                let mut all = Vec::new();
                if KeyChunks::of_few_queries(seq_q, seq_kv).is_none() {
                    all.push(None);
                }
                let mut next = Some(KeyChunks::of_capacity(seq_q, seq_kv));
                while let Some(chunks) = next {
                    // A single chunk is no split.
                    if chunks.count() > 1 {
                        all.push(Some(chunks));
                    }
                    next = chunks.halved();
                }
                Ok(all)
            }
        }
    }
}

impl fmt::Display for KeySplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySplit::Auto => f.write_str("auto"),
            KeySplit::Off => f.write_str("off"),
            KeySplit::Keys(keys) => write!(f, "{keys}"),
        }
    }
}

impl std::str::FromStr for KeySplit {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let keys = |n: usize| KeyChunks::new(n, 0).map(|_| KeySplit::Keys(n));
        match s {
            "auto" => Ok(KeySplit::Auto),
            "off" => Ok(KeySplit::Off),
            _ => s.parse().ok().and_then(keys).ok_or_else(|| {
                format!(
                    "unknown split `{s}`: expected auto, off or the keys of a chunk, a power of \
                     two of at least {}",
                    KeyChunks::MIN_KEYS
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_their_limits_at_every_capacity() {
        for seq_q in [1, 2, 7, 16, 64, 65, 5000] {
            for seq_kv in (0..70_000).step_by(97).chain([1 << 20, crate::MAX_SEQ]) {
                let chunks = KeyChunks::of_capacity(seq_q, seq_kv);
                assert!(chunks.keys().is_power_of_two() && chunks.keys() >= KeyChunks::MIN_KEYS);
                assert!(chunks.count() <= KeyChunks::MAX_COUNT, "{seq_kv}: {chunks}");
                assert!(chunks.keys() * chunks.count() >= seq_kv);
            }
        }
    }

    /// One query over 32768 keys and 8 key heads: many more than 128 workgroups share the keys.
    #[test]
    fn decode_keeps_many_workgroups_busy() {
        let chunks = KeyChunks::of_few_queries(1, 32768).expect("few queries");
        assert_eq!((chunks.keys(), chunks.count()), (512, 64));
        assert_eq!(chunks.to_string(), "64 chunks of 512 keys");
    }

    #[test]
    fn only_few_queries_over_many_keys_are_split_unasked() {
        assert_eq!(KeyChunks::of_few_queries(1, 768), None);
        assert!(KeyChunks::of_few_queries(1, 769).is_some());
        assert_eq!(KeyChunks::of_few_queries(64, 12288), None);
        assert!(KeyChunks::of_few_queries(64, 12289).is_some());
        assert_eq!(KeyChunks::of_few_queries(65, 1 << 20), None);
    }

    #[test]
    fn candidates_become_smaller() {
        let sizes = |split: KeySplit, seq_q, seq_kv| -> Vec<Option<usize>> {
            let all = split.candidates(seq_q, seq_kv).expect("valid");
            all.into_iter().map(|chunks| chunks.map(KeyChunks::keys)).collect()
        };
        assert_eq!(sizes(KeySplit::Auto, 1, 32768), [Some(512), Some(256)]);
        assert_eq!(sizes(KeySplit::Auto, 100, 600), [None, Some(512), Some(256)]);
        assert_eq!(sizes(KeySplit::Auto, 1, 100), [None]);
        assert_eq!(sizes(KeySplit::Off, 1, 32768), [None]);
        assert_eq!(sizes(KeySplit::Keys(1024), 1, 100), [Some(1024)]);
        for wrong in [0, 128, 300] {
            assert_eq!(KeySplit::Keys(wrong).candidates(1, 1000), Err(wrong));
        }
    }

    #[test]
    fn a_range_of_keys_has_the_chunks_that_it_touches() {
        let chunks = KeyChunks::new(256, 2000).expect("valid");
        assert_eq!(chunks.of_keys(0..0), 0..0);
        assert_eq!(chunks.of_keys(0..256), 0..1);
        assert_eq!(chunks.of_keys(255..257), 0..2);
        assert_eq!(chunks.of_keys(700..700), 2..2);
        assert_eq!(chunks.of_keys(512..2000), 2..8);
        assert_eq!(chunks.row_words(10), 8 * 12);
    }

    #[test]
    fn a_split_parses_as_it_is_displayed() {
        for split in [KeySplit::Auto, KeySplit::Off, KeySplit::Keys(512)] {
            assert_eq!(split.to_string().parse(), Ok(split));
        }
        assert!("300".parse::<KeySplit>().is_err() && "on".parse::<KeySplit>().is_err());
    }
}
