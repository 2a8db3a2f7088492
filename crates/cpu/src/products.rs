//! The two matrix products of a tile, with a block of the result in registers.
//!
//! The lanes of a vector are queries. So the scores of one key, and one column of the output, are
//! vectors. K and V are read one number at a time, where they lie in the caller's memory, and
//! nothing of them is transposed. A block has `M` keys (or columns) by `NV` vectors of queries.
//!
//! Every element of a result is one sum in ascending order, whatever the block. So the bits of a
//! row depend neither on the block that computes them nor on the other rows.

use pulp::Simd;
use std::ops::Range;

/// The rows of a tile of K or V: row `n` is `data[n * stride..][..width]`, and `stride >= width`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// The size of the next block where `left` keys or columns are left: `most`, 4, 2 or 1. Two blocks
/// of 4 are faster than a large one and a short rest.
#[inline(always)]
fn block_size(most: usize, left: usize) -> usize {
    if left == most || left >= most + 3 {
        most
    } else if left >= 4 {
        4
    } else if left >= 2 {
        2
    } else {
        1
    }
}

/// What the scores of one group of queries need beside the products.
pub(crate) struct Scores<S: Simd, const NV: usize> {
    /// Multiplies each product.
    pub(crate) scale: S::f32s,
    /// The largest score so far, unless a score is NaN.
    pub(crate) top: [S::f32s; NV],
}

/// Writes scale * K Q^T for `keys` of the tile to `s`, which has a row per key of the tile, as `k`
/// has. `q` has a row per column of Q.
#[inline(always)]
pub(crate) fn scores<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    q: &[[S::f32s; NV]],
    k: &[&[f32]],
    keys: Range<usize>,
    s: &mut [[S::f32s; NV]],
    state: &mut Scores<S, NV>,
) {
    let mut j = keys.start;
    while j < keys.end {
        j += match block_size(M, keys.end - j) {
            1 => score_block::<S, 1, NV>(simd, q, k, j, s, state),
            2 => score_block::<S, 2, NV>(simd, q, k, j, s, state),
            4 => score_block::<S, 4, NV>(simd, q, k, j, s, state),
            _ => score_block::<S, M, NV>(simd, q, k, j, s, state),
        };
    }
}

/// Computes the scores of `M` keys from key `j` on. Returns `M`.
#[inline(always)]
fn score_block<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    q: &[[S::f32s; NV]],
    k: &[&[f32]],
    j: usize,
    s: &mut [[S::f32s; NV]],
    state: &mut Scores<S, NV>,
) -> usize {
    let mut rows: [&[f32]; M] = [&[]; M];
    let k = &k[j..j + M];
    for m in 0..M {
        rows[m] = &k[m][..q.len()];
    }
    let mut sums = [[simd.splat_f32s(0.0); NV]; M];
    // Fewer instructions per product, which counts where another program uses the same core.
    let (fours, ones) = q.as_chunks::<4>();
    for (d, q) in fours.iter().enumerate() {
        let mut k: [&[f32]; M] = [&[]; M];
        for m in 0..M {
            k[m] = &rows[m][4 * d..][..4];
        }
        for (d, q) in q.iter().enumerate() {
            add_products(simd, q, k, d, &mut sums);
        }
    }
    for (d, q) in ones.iter().enumerate() {
        add_products(simd, q, rows, 4 * fours.len() + d, &mut sums);
    }
    for (s, sums) in s[j..j + M].iter_mut().zip(sums) {
        for n in 0..NV {
            let x = simd.mul_f32s(sums[n], state.scale);
            state.top[n] = simd.max_f32s(state.top[n], x);
            s[n] = x;
        }
    }
    M
}

/// Adds the products of column `d` of `M` keys.
#[inline(always)]
fn add_products<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    q: &[S::f32s; NV],
    k: [&[f32]; M],
    d: usize,
    sums: &mut [[S::f32s; NV]; M],
) {
    for m in 0..M {
        let k = simd.splat_f32s(k[m][d]);
        for n in 0..NV {
            sums[m][n] = simd.mul_add_e_f32s(k, q[n], sums[m][n]);
        }
    }
}

/// O = alpha O + V^T P for `keys` of the tile. `p` has a row per key of the tile, `o` a row per
/// column of V.
///
/// The sum over a tile starts at 0, and so does that over a run of keys. Rounding errors grow with
/// the numbers of tiles, runs and keys of a run, and not with the number of keys.
#[inline(always)]
pub(crate) fn add_values<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    p: &[[S::f32s; NV]],
    v: Block<'_>,
    keys: Range<usize>,
    alpha: [S::f32s; NV],
    o: &mut [[S::f32s; NV]],
) {
    let p = &p[keys.clone()];
    let v = Block { data: &v.data[keys.start * v.stride..], stride: v.stride };
    let mut c = 0;
    while c < o.len() {
        c += match block_size(M, o.len() - c) {
            1 => value_block::<S, 1, NV>(simd, p, v, (c, keys.start), alpha, o),
            2 => value_block::<S, 2, NV>(simd, p, v, (c, keys.start), alpha, o),
            4 => value_block::<S, 4, NV>(simd, p, v, (c, keys.start), alpha, o),
            _ => value_block::<S, M, NV>(simd, p, v, (c, keys.start), alpha, o),
        };
    }
}

/// Values are summed in runs of this many keys, which start at multiples of it. Where terms are
/// equal, the rounding errors of a sum repeat and add up, so sums have to be short.
const VALUE_RUN: usize = 32;

/// The weights of each run, where the first is that of key `start`.
#[inline(always)]
fn runs<T>(p: &[T], start: usize) -> impl Iterator<Item = &[T]> {
    let (first, others) = p.split_at((VALUE_RUN - start % VALUE_RUN).min(p.len()));
    std::iter::once(first).chain(others.chunks(VALUE_RUN))
}

/// Adds to `M` columns from column `c` on. Returns `M`.
#[inline(always)]
fn value_block<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    p: &[[S::f32s; NV]],
    v: Block<'_>,
    (c, start): (usize, usize),
    alpha: [S::f32s; NV],
    o: &mut [[S::f32s; NV]],
) -> usize {
    let stride = v.stride;
    assert!(stride >= M);
    // The stride of a single row can be any number.
    let two_rows = stride.saturating_mul(2);
    let mut totals = [[simd.splat_f32s(0.0); NV]; M];
    let mut data = &v.data[c..];
    for p in runs(p, start) {
        let mut sums = [[simd.splat_f32s(0.0); NV]; M];
        // The last row may be shorter than the stride.
        let whole = p.len().min(data.len() / stride);
        let (pairs, ones) = p[..whole].as_chunks::<2>();
        let (paired, rest) = data.split_at(2 * pairs.len() * stride);
        for (p, v) in pairs.iter().zip(paired.chunks_exact(two_rows)) {
            let (one, other) = v.split_at(stride);
            add_key(simd, &p[0], &one[..M], &mut sums);
            add_key(simd, &p[1], &other[..M], &mut sums);
        }
        data = rest;
        for p in ones.iter().chain(&p[whole..]) {
            add_key(simd, p, &data[..M], &mut sums);
            data = data.get(stride..).unwrap_or_default();
        }
        for m in 0..M {
            for n in 0..NV {
                totals[m][n] = simd.add_f32s(totals[m][n], sums[m][n]);
            }
        }
    }
    for (o, sums) in o[c..c + M].iter_mut().zip(totals) {
        for n in 0..NV {
            o[n] = simd.mul_add_e_f32s(o[n], alpha[n], sums[n]);
        }
    }
    M
}

/// Adds one key's part of `M` columns. It is no closure, because that would not be compiled for the
/// vector instructions of its caller.
#[inline(always)]
fn add_key<S: Simd, const M: usize, const NV: usize>(
    simd: S,
    p: &[S::f32s; NV],
    v: &[f32],
    sums: &mut [[S::f32s; NV]; M],
) {
    for m in 0..M {
        let v = simd.splat_f32s(v[m]);
        for n in 0..NV {
            sums[m][n] = simd.mul_add_e_f32s(v, p[n], sums[m][n]);
        }
    }
}

/// As [`add_values`], where V holds NaN or infinity: 0 times NaN is NaN, so a weight of 0 would not
/// hide it. Negative weights are those of absent keys, and are skipped.
#[inline(always)]
pub(crate) fn add_present_values<S: Simd, const NV: usize>(
    simd: S,
    p: &[[S::f32s; NV]],
    v: Block<'_>,
    keys: Range<usize>,
    alpha: [S::f32s; NV],
    o: &mut [[S::f32s; NV]],
) {
    let zero = simd.splat_f32s(0.0);
    for (c, o) in o.iter_mut().enumerate() {
        let mut totals = [zero; NV];
        let mut j = keys.start;
        for run in runs(&p[keys.clone()], keys.start) {
            let mut sums = [zero; NV];
            for p in run {
                let v = simd.splat_f32s(v.data[j * v.stride + c]);
                for n in 0..NV {
                    let sum = simd.mul_add_e_f32s(v, p[n], sums[n]);
                    let absent = simd.less_than_f32s(p[n], zero);
                    sums[n] = simd.select_f32s(absent, sums[n], sum);
                }
                j += 1;
            }
            for n in 0..NV {
                totals[n] = simd.add_f32s(totals[n], sums[n]);
            }
        }
        for n in 0..NV {
            o[n] = simd.mul_add_e_f32s(o[n], alpha[n], totals[n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::block_size;

    #[test]
    fn blocks_cover_any_number() {
        for most in [6, 8, 12] {
            for count in 0..200 {
                let mut left = count;
                while left > 0 {
                    let size = block_size(most, left);
                    assert!(size <= left && [most, 4, 2, 1].contains(&size));
                    left -= size;
                }
            }
        }
        let sizes = |mut left: usize| {
            std::iter::from_fn(|| {
                (left > 0).then(|| {
                    let size = block_size(6, left);
                    left -= size;
                    size
                })
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(sizes(8), [4, 4]);
        assert_eq!(sizes(64)[9..], [6, 4]);
        assert_eq!(sizes(128)[19..], [6, 4, 4]);
    }
}
