/// The constants of a dropout probability. A weight is kept if its random word is at least
/// `threshold`; a kept weight is multiplied by `keep_scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// floor(p * 2^32), computed in f64; 2^32 for p = 1, which drops every weight.
    pub threshold: u64,
    /// f32(1 / (1 - p)); 0 for p = 1.
    pub keep_scale: f32,
}

impl Dropout {
    /// The constants of probability `p` in (0, 1]; `None` for 0.
    pub fn new(p: f64) -> Option<Self> {
        (p > 0.0).then(|| Self {
            threshold: (p * 4_294_967_296.0) as u64,
            keep_scale: if p < 1.0 { (1.0 / (1.0 - p)) as f32 } else { 0.0 },
        })
    }

    /// Whether the weight of query `i` and key `j` is kept; `bh` is b * H + h.
    pub fn keeps(&self, seed: u64, offset: u32, bh: u32, i: u32, j: u32) -> bool {
        let words = philox4x32_10([j / 4, i, bh, offset], [seed as u32, (seed >> 32) as u32]);
        u64::from(words[j as usize % 4]) >= self.threshold
    }
}

/// Philox4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123.
    #[test]
    fn philox_known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn thresholds() {
        assert_eq!(Dropout::new(0.0), None);
        assert_eq!(Dropout::new(0.5), Some(Dropout { threshold: 1 << 31, keep_scale: 2.0 }));
        let all = Dropout::new(1.0).expect("drops");
        assert!((0..100).all(|j| !all.keeps(1, 2, 3, 4, j)));
        let few = Dropout::new(0.1).expect("drops");
        let kept = (0..10_000).filter(|&j| few.keeps(7, 0, 0, 0, j)).count();
        assert!((8_900..9_100).contains(&kept), "{kept}");
    }
}
