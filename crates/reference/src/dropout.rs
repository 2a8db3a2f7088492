use flashtile_core::{Problem, ResolvedCall};

/// Dropout of one call: a weight is kept if its random word reaches the threshold.
pub(crate) struct Dropout {
    threshold: f64,
    keep: f64,
    seed: u64,
    offset: u32,
}

impl Dropout {
    /// `None` if the problem drops nothing.
    pub(crate) fn new(problem: &Problem, call: &ResolvedCall) -> Option<Self> {
        let p = problem.dropout_p();
        if p == 0.0 {
            return None;
        }
        let keep = (1.0 / (1.0 - p)) as f32;
        Some(Self {
            threshold: (p * 2f64.powi(32)).floor(),
            keep: keep.into(),
            seed: call.seed,
            offset: call.offset,
        })
    }

    /// The factor of the weight of query `i` and key `j`: 0 if it is dropped. `bh` is b * H + h.
    pub(crate) fn factor(&self, bh: usize, i: usize, j: usize) -> f64 {
        let counter = [(j / 4) as u32, i as u32, bh as u32, self.offset];
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let word = philox(counter, key)[j % 4];
        if f64::from(word) >= self.threshold { self.keep } else { 0.0 }
    }
}

/// Philox4x32-10 as in its paper: ten rounds of two multiplications, whose halves are crossed and
/// mixed with a key. The key advances by the golden ratio and sqrt(3) - 1 (Salmon et al., "Parallel
/// random numbers: as easy as 1, 2, 3", 2011, section 3.3).
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut r0, mut l0, mut r1, mut l1] = counter;
    for round in 0..10u32 {
        let key0 = key[0].wrapping_add(round.wrapping_mul(0x9E37_79B9));
        let key1 = key[1].wrapping_add(round.wrapping_mul(0xBB67_AE85));
        let (high0, low0) = multiply(r0, 0xD251_1F53);
        let (high1, low1) = multiply(r1, 0xCD9E_8D57);
        (r0, l0, r1, l1) = (high1 ^ l0 ^ key0, low1, high0 ^ l1 ^ key1, low0);
    }
    [r0, l0, r1, l1]
}

/// The high and the low word of a product.
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published with Random123 (kat_vectors).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Core has an implementation of its own, for the other backends. Both drop the same weights.
    #[test]
    fn agrees_with_core() {
        for (n, p) in [1e-9, 0.1, 0.3, 0.5, 0.999, 1.0].into_iter().enumerate() {
            let (seed, offset) = (0x0123_4567_89ab_cdef << n, 77 * n as u32);
            let dropout =
                Dropout { threshold: (p * 2f64.powi(32)).floor(), keep: 1.0, seed, offset };
            let core = flashtile_core::Dropout::new(p).expect("drops");
            for (bh, i, j) in (0..4000).map(|n| (n % 7, n / 7 % 31, n * 13 % 1009)) {
                let kept = dropout.factor(bh, i, j) != 0.0;
                assert_eq!(
                    kept,
                    core.keeps(seed, offset, bh as u32, i as u32, j as u32),
                    "{p} {bh} {i} {j}"
                );
            }
        }
    }

    #[test]
    fn thresholds_are_exact_at_the_edges() {
        let dropout = |p: f64| Dropout {
            threshold: (p * 2f64.powi(32)).floor(),
            keep: 1.0,
            seed: 1,
            offset: 0,
        };
        assert!((0..100).all(|j| dropout(1.0).factor(0, 0, j) == 0.0));
        assert!((0..100).all(|j| dropout(1e-12).factor(0, 0, j) == 1.0));
        let kept = (0..10_000).filter(|&j| dropout(0.25).factor(3, 5, j) == 1.0).count();
        assert!((7_300..7_700).contains(&kept), "{kept}");
    }
}
