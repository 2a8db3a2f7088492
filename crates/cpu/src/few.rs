//! The two products where a head (or a group of heads) has so few queries that they fill no vector:
//! the steps of a decode loop. Time goes into reading K and V, each of them once.
//!
//! The lanes of a vector are columns here. A score is a sum over lanes, and O has a row per query.
//! Plans choose this by their capacity in queries, so that the bits of a row do not depend on the
//! tile that it falls into.

use crate::products::{Block, Scores};
use pulp::Simd;
use std::ops::Range;

/// `C` vectors from vector `at` of a row on. A single vector may end beyond the row: 0 there.
#[inline(always)]
fn load<S: Simd, const C: usize>(simd: S, row: &[f32], at: usize) -> [S::f32s; C] {
    let mut columns = [simd.splat_f32s(0.0); C];
    if C == 1 {
        let from = at * S::F32_LANES;
        let to = row.len().min(from + S::F32_LANES);
        columns[0] = simd.partial_load_f32s(&row[from..to]);
    } else {
        columns.copy_from_slice(&S::as_simd_f32s(row).0[at..at + C]);
    }
    columns
}

/// As `products::scores`, with a row of `q` per query, in whole vectors: (Q, queries, head_dim).
/// `NV` is 1. Returns whether V, of which (tile, head_dim_v) are given, holds NaN or infinity.
///
/// V is tested here because that reads its rows in order, and beside those of K: processors fetch
/// memory ahead of such reads. The product with V goes through its columns.
#[inline(always)]
pub(crate) fn scores<S: Simd, const NV: usize>(
    simd: S,
    (q, rows, width): (&[S::f32s], usize, usize),
    k: Block<'_>,
    (v, width_v): (Block<'_>, usize),
    keys: Range<usize>,
    s: &mut [[S::f32s; NV]],
    state: &mut Scores<S, NV>,
) -> bool {
    let vectors = width.div_ceil(S::F32_LANES);
    let zero = simd.splat_f32s(0.0);
    let mut v_check = [zero; 4];
    let s = &mut s[keys.clone()];
    s.fill([simd.splat_f32s(0.0); NV]);
    let row = |j: usize| &k.data[(keys.start + j) * k.stride..][..width];
    for (n, s) in s.chunks_mut(4).enumerate() {
        for j in 0..s.len() {
            let of_key = &v.data[(keys.start + 4 * n + j) * v.stride..][..width_v];
            v_check = check_row(simd, of_key, v_check);
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
    let mut sum = zero;
    for x in v_check {
        sum = simd.add_f32s(sum, x);
    }
    simd.reduce_sum_f32s(sum) != 0.0
}

/// Adds 0 for each finite number of a row, and NaN for each other.
#[inline(always)]
fn check_row<S: Simd>(simd: S, row: &[f32], mut sums: [S::f32s; 4]) -> [S::f32s; 4] {
    let zero = simd.splat_f32s(0.0);
    let (whole, rest) = S::as_simd_f32s(row);
    let (by_four, others) = pulp::as_arrays::<4, _>(whole);
    for x in by_four {
        for n in 0..4 {
            sums[n] = simd.mul_add_e_f32s(x[n], zero, sums[n]);
        }
    }
    for &x in others {
        sums[0] = simd.mul_add_e_f32s(x, zero, sums[0]);
    }
    if !rest.is_empty() {
        sums[1] = simd.mul_add_e_f32s(simd.partial_load_f32s(rest), zero, sums[1]);
    }
    sums
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
}

/// As `products::add_values`, with a row of `o` per query, in whole vectors.
#[inline(always)]
pub(crate) fn add_values<S: Simd>(simd: S, values: &Values<'_>, rows: usize, o: &mut [S::f32s]) {
    let vectors = values.width.div_ceil(S::F32_LANES);
    let mut r = 0;
    while r < rows {
        let two = rows - r >= 2 && !values.mark;
        let mut at = 0;
        while at < vectors {
            // The last vector may end beyond the row, and is loaded by itself.
            let four = (at + 4) * S::F32_LANES <= values.width;
            match (two, four) {
                (true, true) => value_block::<S, 2, 4>(simd, values, r, at, o),
                (true, false) => value_block::<S, 2, 1>(simd, values, r, at, o),
                (false, true) => value_block::<S, 1, 4>(simd, values, r, at, o),
                (false, false) => value_block::<S, 1, 1>(simd, values, r, at, o),
            }
            at += if four { 4 } else { 1 };
        }
        r += if two { 2 } else { 1 };
    }
}

/// Adds to `C` vectors of `R` queries, from vector `at` of query `first` on.
#[inline(always)]
fn value_block<S: Simd, const R: usize, const C: usize>(
    simd: S,
    values: &Values<'_>,
    first: usize,
    at: usize,
    o: &mut [S::f32s],
) {
    let Values { p, v, width, alpha, mark } = *values;
    let vectors = width.div_ceil(S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    for (p, row) in p.chunks_exact(S::F32_LANES).zip(v.data.chunks(v.stride)) {
        let row = &row[..width];
        let columns: [S::f32s; C] = load(simd, row, at);
        for r in 0..R {
            let weight = p[first + r];
            if mark && weight < 0.0 {
                continue;
            }
            let weight = simd.splat_f32s(weight);
            for c in 0..C {
                sums[r][c] = simd.mul_add_e_f32s(weight, columns[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let alpha = simd.splat_f32s(alpha[first + r]);
        let o = &mut o[(first + r) * vectors + at..][..C];
        for c in 0..C {
            o[c] = simd.mul_add_e_f32s(o[c], alpha, sums[r][c]);
        }
    }
}
