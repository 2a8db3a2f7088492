//! The two products where a head (or a group of heads) has so few queries that they fill no vector:
//! the steps of a decode loop. Time goes into reading K and V, each of them once.
//!
//! The lanes of a vector are columns here. A score is a sum over lanes, and O has a row per query.
//! Plans choose this by their capacity in queries, so that the bits of a row do not depend on the
//! tile that it falls into.

use crate::ahead::Ahead;
use crate::products::{Block, Scores};
use pulp::Simd;
use std::ops::Range;

/// As `products::scores`, with a row of `q` per query, in whole vectors: (Q, queries, head_dim).
/// `NV` is 1.
#[inline(always)]
pub(crate) fn scores<S: Simd, const NV: usize>(
    simd: S,
    (q, rows, width): (&[S::f32s], usize, usize),
    (k, ahead): (Block<'_>, Ahead<'_>),
    keys: Range<usize>,
    s: &mut [[S::f32s; NV]],
    state: &mut Scores<S, NV>,
) {
    let vectors = width.div_ceil(S::F32_LANES);
    let zero = simd.splat_f32s(0.0);
    let s = &mut s[keys.clone()];
    s.fill([zero; NV]);
    let row = |j: usize| &k.data[(keys.start + j) * k.stride..][..width];
    for (n, s) in s.chunks_mut(4).enumerate() {
        for j in 0..s.len() {
            ahead.ask(keys.start + 4 * n + j);
        }
        let s: &mut [f32] = bytemuck::cast_slice_mut(s.as_flattened_mut());
        let mut r = 0;
        while r < rows {
            let of_row = |r: usize| &q[r * vectors..][..vectors];
            let pair = (s.len() == 4 * S::F32_LANES && rows - r >= 2).then(|| {
                let keys = [0, 1, 2, 3].map(|j| row(4 * n + j));
                dots::<S, 4, 2>(simd, keys, [of_row(r), of_row(r + 1)])
            });
            match pair {
                Some(sums) => {
                    for (j, [one, other]) in sums.into_iter().enumerate() {
                        s[j * S::F32_LANES + r] = one;
                        s[j * S::F32_LANES + r + 1] = other;
                    }
                    r += 2;
                }
                None => {
                    for (j, s) in s.chunks_exact_mut(S::F32_LANES).enumerate() {
                        let [[sum]] = dots::<S, 1, 1>(simd, [row(4 * n + j)], [of_row(r)]);
                        s[r] = sum;
                    }
                    r += 1;
                }
            }
        }
    }
    for s in s {
        let x = simd.mul_f32s(s[0], state.scale);
        state.top[0] = simd.max_f32s(state.top[0], x);
        state.check[0] = simd.mul_add_e_f32s(x, zero, state.check[0]);
        s[0] = x;
    }
}

/// The products of `K` keys with `R` queries. The sum of one does not depend on the others.
#[inline(always)]
fn dots<S: Simd, const K: usize, const R: usize>(
    simd: S,
    keys: [&[f32]; K],
    queries: [&[S::f32s]; R],
) -> [[f32; R]; K] {
    let mut sums = [[simd.splat_f32s(0.0); R]; K];
    let whole = keys.map(|key| S::as_simd_f32s(key).0);
    let count = whole[0].len();
    let whole = whole.map(|key| &key[..count]);
    let vectors = queries.map(|query| &query[..count]);
    for d in 0..count {
        for k in 0..K {
            for r in 0..R {
                sums[k][r] = simd.mul_add_e_f32s(whole[k][d], vectors[r][d], sums[k][r]);
            }
        }
    }
    if queries[0].len() > count {
        for k in 0..K {
            let rest = simd.partial_load_f32s(S::as_simd_f32s(keys[k]).1);
            for r in 0..R {
                sums[k][r] = simd.mul_add_e_f32s(rest, queries[r][count], sums[k][r]);
            }
        }
    }
    // No closure: it would not be compiled for the vector instructions of its caller.
    let mut results = [[0.0; R]; K];
    for k in 0..K {
        for r in 0..R {
            results[k][r] = simd.reduce_sum_f32s(sums[k][r]);
        }
    }
    results
}

/// What the weights of a tile multiply, and the factors that rescale O.
pub(crate) struct Values<'a> {
    /// The weights: a vector per key, a query per lane.
    pub(crate) p: &'a [f32],
    /// V of these keys.
    pub(crate) v: Block<'a>,
    /// Columns of V.
    pub(crate) width: usize,
    /// A factor per query.
    pub(crate) alpha: &'a [f32],
    /// Whether negative weights are those of absent keys, and skipped.
    pub(crate) mark: bool,
    /// Rows of V after these.
    pub(crate) ahead: Ahead<'a>,
}

/// As `products::add_values`, with a row of `o` per query, in whole vectors. `sums` is memory for
/// as many vectors.
///
/// V is read in the order of memory, a few keys at a time, because processors fetch ahead of such
/// reads.
#[inline(always)]
pub(crate) fn add_values<S: Simd>(
    simd: S,
    values: &Values<'_>,
    rows: usize,
    o: &mut [S::f32s],
    sums: &mut [S::f32s],
) {
    let vectors = values.width.div_ceil(S::F32_LANES);
    let keys = values.p.len() / S::F32_LANES;
    let sums = &mut sums[..rows * vectors];
    sums.fill(simd.splat_f32s(0.0));
    let mut j = 0;
    while j < keys {
        let four = keys - j >= 4 && !values.mark;
        for j in j..j + if four { 4 } else { 1 } {
            values.ahead.ask(j);
        }
        let mut r = 0;
        while r < rows {
            let two = rows - r >= 2 && !values.mark;
            match (four, two) {
                (true, true) => value_block::<S, 4, 2>(simd, values, j, r, sums),
                (true, false) => value_block::<S, 4, 1>(simd, values, j, r, sums),
                (false, true) => value_block::<S, 1, 2>(simd, values, j, r, sums),
                (false, false) => value_block::<S, 1, 1>(simd, values, j, r, sums),
            }
            r += if two { 2 } else { 1 };
        }
        j += if four { 4 } else { 1 };
    }
    for (r, (o, sums)) in o.chunks_exact_mut(vectors).zip(sums.chunks_exact(vectors)).enumerate() {
        let alpha = simd.splat_f32s(values.alpha[r]);
        for (o, sum) in o.iter_mut().zip(sums) {
            *o = simd.mul_add_e_f32s(*o, alpha, *sum);
        }
    }
}

/// Adds `K` keys from key `j` on to the sums of `R` queries from query `first` on.
#[inline(always)]
fn value_block<S: Simd, const K: usize, const R: usize>(
    simd: S,
    values: &Values<'_>,
    j: usize,
    first: usize,
    sums: &mut [S::f32s],
) {
    let Values { p, v, width, mark, .. } = *values;
    let vectors = width.div_ceil(S::F32_LANES);
    let mut weights = [[simd.splat_f32s(0.0); K]; R];
    let mut rows = [(&[][..], &[][..]); K];
    for k in 0..K {
        let p = &p[(j + k) * S::F32_LANES + first..][..R];
        // A block of one key and one query where V holds NaN.
        if mark && p[0] < 0.0 {
            return;
        }
        for r in 0..R {
            weights[r][k] = simd.splat_f32s(p[r]);
        }
        rows[k] = S::as_simd_f32s(&v.data[(j + k) * v.stride..][..width]);
    }
    let whole = width / S::F32_LANES;
    let columns = rows.map(|(columns, _)| &columns[..whole]);
    let sums = &mut sums[first * vectors..][..R * vectors];
    let (one, other) = sums.split_at_mut(vectors);
    let one = &mut one[..vectors];
    if R == 2 {
        let other = &mut other[..vectors];
        for c in 0..whole {
            let (mut a, mut b) = (one[c], other[c]);
            for k in 0..K {
                a = simd.mul_add_e_f32s(weights[0][k], columns[k][c], a);
                b = simd.mul_add_e_f32s(weights[R - 1][k], columns[k][c], b);
            }
            (one[c], other[c]) = (a, b);
        }
    } else {
        for c in 0..whole {
            let mut a = one[c];
            for k in 0..K {
                a = simd.mul_add_e_f32s(weights[0][k], columns[k][c], a);
            }
            one[c] = a;
        }
    }
    if whole < vectors {
        for k in 0..K {
            let rest = simd.partial_load_f32s(rows[k].1);
            one[whole] = simd.mul_add_e_f32s(weights[0][k], rest, one[whole]);
            if R == 2 {
                other[whole] = simd.mul_add_e_f32s(weights[R - 1][k], rest, other[whole]);
            }
        }
    }
}
