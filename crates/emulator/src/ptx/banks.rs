//! Bank conflicts in shared memory.
//!
//! Shared memory has 32 banks of 4-byte words. It serves as many lanes of a warp at once as
//! together access 128 bytes: 32 lanes of 4 bytes, 16 of 8, 8 of 16. Among those, lanes that need
//! different words of one bank are served one after the other. NVIDIA documents the banks;
//! published measurements show that wide accesses are split into halves and quarters of a warp.

use std::sync::atomic::{AtomicU64, Ordering};

const BANKS: usize = 32;

/// The accesses of one instruction to shared memory, from all warps.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    accesses: AtomicU64,
    conflicts: AtomicU64,
}

impl Traffic {
    /// Counts an access of `bytes` bytes at each of these addresses, which are in the order of
    /// lanes.
    pub(super) fn count(&self, addresses: &[u64], bytes: u32) {
        let together = (128 / bytes.max(4)) as usize;
        for group in addresses.chunks(together) {
            let mut words = [const { Vec::new() }; BANKS];
            for address in group {
                for word in address / 4..(address + u64::from(bytes)).div_ceil(4) {
                    let bank: &mut Vec<u64> = &mut words[word as usize % BANKS];
                    if !bank.contains(&word) {
                        bank.push(word);
                    }
                }
            }
            let turns = words.iter().map(Vec::len).max().unwrap_or(0) as u64;
            self.accesses.fetch_add(1, Ordering::Relaxed);
            self.conflicts.fetch_add(turns.saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// The groups of lanes that were served, and the extra turns that they needed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.accesses.load(Ordering::Relaxed), self.conflicts.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: u32, address: impl Fn(u64) -> u64) -> (u64, u64) {
        let traffic = Traffic::default();
        traffic.count(&(0..32).map(address).collect::<Vec<_>>(), bytes);
        traffic.counts()
    }

    #[test]
    fn lanes_conflict_over_different_words_of_a_bank() {
        assert_eq!(of(4, |lane| 4 * lane), (1, 0));
        assert_eq!(of(4, |_| 64), (1, 0), "all lanes read one word");
        assert_eq!(of(4, |lane| 8 * lane), (1, 1));
        assert_eq!(of(4, |lane| 128 * lane), (1, 31));
        assert_eq!(of(2, |lane| 2 * lane), (1, 0), "two lanes share a word");
        assert_eq!(of(16, |lane| 16 * lane), (4, 0));
        assert_eq!(of(16, |lane| 272 * lane), (4, 0), "rows of 128 16-bit numbers, padded");
        assert_eq!(of(16, |lane| 256 * lane), (4, 28), "the same without padding");
    }
}
