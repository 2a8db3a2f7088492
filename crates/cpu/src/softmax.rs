//! From the scores of a tile to its weights, for one group of queries.

use crate::math::{ABSENT, exps, finite, tanh};
use flashtile_core::{Dropout, ResolvedCall};
use pulp::Simd;
use std::ops::Range;

/// The most queries of a group: 2 vectors of AVX-512.
pub(crate) const MAX_GROUP: usize = 32;

/// Weights are summed in runs of this many keys, which start at multiples of it.
pub(crate) const RUN: usize = 16;

/// The weight of a masked or dropped key where V holds NaN or infinity. No weight is negative.
const SKIPPED: f32 = -1.0;

/// What makes scores of a group differ from scale * q.k, and which keys its queries see.
pub(crate) struct Rules<'a, S: Simd, const NV: usize> {
    /// The first key that each query sees, counted from the start of the tile.
    pub(crate) start: [S::f32s; NV],
    /// One past the last key that each query sees.
    pub(crate) end: [S::f32s; NV],
    /// The mask, a row per key of the tile: added to the score; -inf where the key is masked.
    pub(crate) bias: Option<&'a [[S::f32s; NV]]>,
    /// The softcap.
    pub(crate) softcap: Option<f32>,
}

/// Applies `rules` to the scores of `keys`, and returns the largest score of a visible key, or
/// `top` if that is larger. Scores of keys that a query does not see become [`ABSENT`].
#[inline(always)]
pub(crate) fn apply<S: Simd, const NV: usize>(
    simd: S,
    rules: &Rules<'_, S, NV>,
    keys: Range<usize>,
    s: &mut [[S::f32s; NV]],
    mut top: [S::f32s; NV],
) -> [S::f32s; NV] {
    let absent = simd.splat_f32s(ABSENT);
    for j in keys {
        let key = simd.splat_f32s(j as f32);
        for n in 0..NV {
            let mut x = finite(simd, s[j][n]);
            if let Some(cap) = rules.softcap {
                let cap = simd.splat_f32s(cap);
                x = simd.mul_f32s(cap, tanh(simd, simd.div_f32s(x, cap)));
            }
            let after = simd.greater_than_or_equal_f32s(key, rules.start[n]);
            let before = simd.less_than_f32s(key, rules.end[n]);
            let mut seen = simd.and_m32s(after, before);
            if let Some(bias) = rules.bias {
                let bias = bias[j][n];
                x = finite(simd, simd.add_f32s(x, bias));
                let masked = simd.equal_f32s(bias, absent);
                seen = simd.and_m32s(seen, simd.not_m32s(masked));
            }
            let x = simd.select_f32s(seen, x, absent);
            // A comparison with NaN is false, so NaN leaves the maximum as it is.
            top[n] = simd.select_f32s(simd.greater_than_f32s(x, top[n]), x, top[n]);
            s[j][n] = x;
        }
    }
    top
}

/// Turns the scores of `keys` into weights exp(s - top), and returns their sums. The weight of an
/// absent key is 0, or [`SKIPPED`] if `mark`.
///
/// `keys` starts at a multiple of [`RUN`].
#[inline(always)]
pub(crate) fn weights<S: Simd, const NV: usize>(
    simd: S,
    keys: Range<usize>,
    p: &mut [[S::f32s; NV]],
    top: [S::f32s; NV],
    mark: bool,
) -> [S::f32s; NV] {
    if mark {
        sum_weights::<S, NV, true>(simd, keys, p, top)
    } else {
        sum_weights::<S, NV, false>(simd, keys, p, top)
    }
}

/// [`weights`].
#[inline(always)]
fn sum_weights<S: Simd, const NV: usize, const MARK: bool>(
    simd: S,
    keys: Range<usize>,
    p: &mut [[S::f32s; NV]],
    top: [S::f32s; NV],
) -> [S::f32s; NV] {
    let mut total = [simd.splat_f32s(0.0); NV];
    for run in p[keys].chunks_mut(RUN) {
        let mut sum = [simd.splat_f32s(0.0); NV];
        let mut at_once = run.as_flattened_mut().chunks_exact_mut(AT_ONCE);
        for p in &mut at_once {
            let p: &mut [_; AT_ONCE] = p.try_into().expect("an exact chunk");
            weigh::<S, _, NV, MARK>(simd, p, top, &mut sum);
        }
        for p in at_once.into_remainder().chunks_exact_mut(NV) {
            let p: &mut [_; NV] = p.try_into().expect("an exact chunk");
            weigh::<S, _, NV, MARK>(simd, p, top, &mut sum);
        }
        for n in 0..NV {
            total[n] = simd.add_f32s(total[n], sum[n]);
        }
    }
    total
}

/// Vectors of weights that are computed at once, a multiple of the vectors of any group.
const AT_ONCE: usize = 4;

/// Turns the scores of `N / NV` keys into weights, and adds them to `sum`.
#[inline(always)]
fn weigh<S: Simd, const N: usize, const NV: usize, const MARK: bool>(
    simd: S,
    p: &mut [S::f32s; N],
    top: [S::f32s; NV],
    sum: &mut [S::f32s; NV],
) {
    let mut x = *p;
    for n in 0..N {
        x[n] = simd.sub_f32s(x[n], top[n % NV]);
    }
    let weights = exps(simd, x);
    for n in 0..N {
        sum[n % NV] = simd.add_f32s(sum[n % NV], weights[n]);
    }
    if MARK {
        let (absent, skipped) = (simd.splat_f32s(ABSENT), simd.splat_f32s(SKIPPED));
        for n in 0..N {
            let is_absent = simd.equal_f32s(p[n], absent);
            p[n] = simd.select_f32s(is_absent, skipped, weights[n]);
        }
    } else {
        *p = weights;
    }
}

/// The dropout of one call.
pub(crate) struct Draws {
    threshold: u64,
    key: [u32; 2],
    offset: u32,
}

impl Draws {
    pub(crate) fn new(dropout: Dropout, call: &ResolvedCall) -> Self {
        let key = [call.seed as u32, (call.seed >> 32) as u32];
        Self { threshold: dropout.threshold, key, offset: call.offset }
    }

    /// Sets the weights of dropped keys to 0, or to [`SKIPPED`] if `mark`.
    ///
    /// `first` is the index of the tile's first key among all keys, a multiple of 4, and so is the
    /// start of `keys`. `query` and `head` are i and b * H + h of each query of the group.
    #[inline(always)]
    pub(crate) fn drop<S: Simd, const NV: usize>(
        &self,
        simd: S,
        first: usize,
        keys: Range<usize>,
        p: &mut [[S::f32s; NV]],
        [query, head]: [&[u32; MAX_GROUP]; 2],
        mark: bool,
    ) {
        let dropped = simd.splat_f32s(if mark { SKIPPED } else { 0.0 });
        let (query, head) = (vectors::<S, NV>(query), vectors::<S, NV>(head));
        for four in keys.clone().step_by(4) {
            let block = simd.splat_u32s(((first + four) / 4) as u32);
            let offset = simd.splat_u32s(self.offset);
            for n in 0..NV {
                let words = philox(simd, [block, query[n], head[n], offset], self.key);
                for (j, word) in (four..keys.end.min(four + 4)).zip(words) {
                    p[j][n] = match u32::try_from(self.threshold) {
                        Ok(threshold) => {
                            let threshold = simd.splat_u32s(threshold);
                            let kept = simd.greater_than_or_equal_u32s(word, threshold);
                            simd.select_f32s(kept, p[j][n], dropped)
                        }
                        // Probability 1: no word is as large as 2^32.
                        Err(_) => dropped,
                    };
                }
            }
        }
    }
}

/// The first `NV` vectors of numbers.
#[inline(always)]
fn vectors<S: Simd, const NV: usize>(numbers: &[u32; MAX_GROUP]) -> [S::u32s; NV] {
    let (vectors, _) = S::as_simd_u32s(numbers);
    std::array::from_fn(|n| vectors[n])
}

/// Philox4x32-10, as `flashtile_core::philox4x32_10`, of one counter per lane.
#[inline(always)]
fn philox<S: Simd>(simd: S, mut counter: [S::u32s; 4], mut key: [u32; 2]) -> [S::u32s; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (low_a, high_a) = simd.widening_mul_u32s(c0, simd.splat_u32s(0xD251_1F53));
        let (low_b, high_b) = simd.widening_mul_u32s(c2, simd.splat_u32s(0xCD9E_8D57));
        let mixed = |high, c, key| simd.xor_u32s(simd.xor_u32s(high, c), simd.splat_u32s(key));
        counter = [mixed(high_b, c1, key[0]), low_b, mixed(high_a, c3, key[1]), low_a];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}
