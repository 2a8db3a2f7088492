//! How often lanes of a warp wait for each other at the banks of shared memory.
//!
//! Shared memory has 32 banks of 4-byte words. A warp's access is done for as many lanes at once as together move 128 bytes: 32 of 4 bytes, 16 of 8,
//! 8 of 16. Of those, lanes that ask one bank for different words are served one after the other. (NVIDIA documents the banks; that wide accesses go
//! by halves and quarters of a warp is what measurements of others found.)

use std::sync::atomic::{AtomicU64, Ordering};

const BANKS: usize = 32;

/// What one instruction asked of shared memory, all warps together.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    turns: AtomicU64,
    conflicts: AtomicU64,
}

impl Traffic {
    /// Counts one access of `bytes` bytes by each of these addresses, in the order of their lanes.
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
            self.turns.fetch_add(1, Ordering::Relaxed);
            self.conflicts.fetch_add(turns.saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// Groups of lanes that were served, and turns that any of them took beyond the first.
    pub(super) fn told(&self) -> (u64, u64) {
        (self.turns.load(Ordering::Relaxed), self.conflicts.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: u32, address: impl Fn(u64) -> u64) -> (u64, u64) {
        let traffic = Traffic::default();
        traffic.count(&(0..32).map(address).collect::<Vec<_>>(), bytes);
        traffic.told()
    }

    #[test]
    fn lanes_wait_for_other_words_of_their_bank() {
        assert_eq!(of(4, |lane| 4 * lane), (1, 0));
        assert_eq!(of(4, |_| 64), (1, 0), "one word for all");
        assert_eq!(of(4, |lane| 8 * lane), (1, 1));
        assert_eq!(of(4, |lane| 128 * lane), (1, 31));
        assert_eq!(of(2, |lane| 2 * lane), (1, 0), "two halves of a word");
        assert_eq!(of(16, |lane| 16 * lane), (4, 0));
        assert_eq!(of(16, |lane| 272 * lane), (4, 0), "rows of 128 halves, padded");
        assert_eq!(of(16, |lane| 256 * lane), (4, 28), "and not padded");
    }
}
