//! Flash attention where a head (or a group of heads) has so few queries that they fill no vector:
//! the steps of a decode loop. Time goes into reading K and V, each of them once.
//!
//! The lanes of a vector are columns here. A score is a sum over lanes, and O has a row per query.
//! Plans choose this by their capacity in queries, so that the bits of a row do not depend on the
//! tile that it falls into.
//!
//! K and V are read at [`STREAMS`] places of a tile in turns. Processors fetch ahead of reads in
//! order, but only within a page of memory, and pages that are begun together arrive together.

use crate::flash::{Flash, Inputs, RowTile, clear_sums, groups};
use crate::group::Group;
use crate::tensors::Rows;
use crate::workspace::Pieces;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Keys per tile. Tiles start at multiples of it, and so do chunks of keys.
pub(crate) const TILE: usize = 256;

/// Places of a tile that are read in turns: one key of each at a time.
pub(crate) const STREAMS: usize = 4;

/// Keys of each place whose values are summed, from 0, before O is. Rounding errors grow with the
/// length of a sum.
const SUMMED: usize = 16;

/// Attention of a tile of rows over its keys. Heads side by side are computed key by key, because
/// their rows of K and V may lie side by side, too.
#[inline(always)]
pub(crate) fn flash<S: Simd>(simd: S, work: Flash<'_, '_>) {
    let Flash { inputs, tile, keys, pieces, .. } = work;
    let problem = inputs.problem;
    let (d, dv) = (problem.head_dim(), problem.head_dim_v());
    let (count, beside) = (tile.rows.len(), tile.beside);

    load_q(inputs, tile, S::F32_LANES, pieces);
    let [q_size, o_size] =
        [d, dv].map(|width| beside * count * width.next_multiple_of(S::F32_LANES));
    let q = &pieces.q[..q_size];
    let o = &mut pieces.o[..o_size];
    let parts = &mut pieces.parts[..o_size];
    let (sums, alphas) = pieces.sums.split_at_mut(2 * beside * S::F32_LANES);
    let (sums, p) = (groups::<S, 1>(sums), &mut *pieces.p);
    let bias = groups::<S, 1>(pieces.bias);
    o.fill(0.0);
    clear_sums(simd, sums);

    let kv_head = tile.h / problem.group_size();
    let k = inputs.k.rows(tile.b, kv_head);
    let v = inputs.v.rows(tile.b, kv_head);
    // The capacity decides, because the order of a row's sums must not depend on the call.
    let stream = TILE.min(problem.seq_kv()).div_ceil(STREAMS);
    for first in (keys.start / TILE * TILE..keys.end).step_by(TILE) {
        let tile_keys = first..(first + TILE).min(keys.end);
        let Some((used, full)) = inputs.used(tile, &(0..count), &tile_keys) else { continue };
        let ruled = inputs.always_ruled() || !full;
        let tile_of = Keys { first, used: used.clone(), stream, count, beside };
        let mark = ruled && tile_of.is_dirty(&v, pieces.v);

        simd.vectorize(Products { keys: &tile_of, q, width: d, k, p, scratch: pieces.k });
        let p = groups::<S, 1>(p);
        for n in 0..beside {
            let p = &mut p[n * TILE..][..TILE];
            let sums = &mut sums[2 * n..][..2];
            let (rows, keys, used) = (0..count, tile_keys.clone(), used.clone());
            let scale = simd.splat_f32s(inputs.call.scale);
            let mut top = sums[0];
            for s in &mut p[used.clone()] {
                s[0] = simd.mul_f32s(s[0], scale);
                top[0] = simd.max_f32s(top[0], s[0]);
            }
            let group = Group { inputs, tile, n, rows, keys, used, ruled, mark };
            groups::<S, 1>(alphas)[n] = group.weigh(simd, top, p, bias, sums);
        }
        simd.vectorize(Values {
            keys: &tile_of,
            p: bytemuck::cast_slice(p),
            mark,
            v,
            width: dv,
            alphas,
            o,
            parts,
            scratch: pieces.v,
        });
    }
}

/// The keys of one tile that have scores, and the rows that use them. The two products of a tile
/// are functions of their own, because the compiler makes better use of registers in small ones.
struct Keys {
    /// The tile's first key.
    first: usize,
    /// Counted from it.
    used: Range<usize>,
    /// Keys from one place to the next.
    stream: usize,
    /// Queries of a head, or of heads that share K and V.
    count: usize,
    /// How many of these are computed side by side.
    beside: usize,
}

impl Keys {
    /// The used ones among the `i`-th keys of all places, in ascending order, and how many.
    #[inline(always)]
    fn turn(&self, i: usize) -> ([usize; STREAMS], usize) {
        let (mut keys, mut count) = ([0; STREAMS], 0);
        for place in 0..STREAMS {
            let key = place * self.stream + i;
            if self.used.contains(&key) {
                keys[count] = key;
                count += 1;
            }
        }
        (keys, count)
    }

    /// Whether V of these keys holds NaN or infinity.
    #[inline(always)]
    fn is_dirty(&self, v: &Rows<'_>, scratch: &mut [f32]) -> bool {
        let mut dirty = false;
        for i in 0..self.stream {
            let (keys, count) = self.turn(i);
            for &key in &keys[..count] {
                for n in 0..self.beside {
                    let [row] = v.of_next_head(n).some(self.first, [key], scratch);
                    for x in row {
                        dirty |= !x.is_finite();
                    }
                }
            }
        }
        dirty
    }
}

/// Q K^T of a tile.
struct Products<'a> {
    keys: &'a Keys,
    /// A row per query, in whole vectors.
    q: &'a [f32],
    /// Columns of Q.
    width: usize,
    k: Rows<'a>,
    /// For each of the heads side by side a vector per key, with a query per lane.
    p: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { keys, q, width, k, p, scratch } = self;
        let Keys { first, ref used, stream, count, beside } = *keys;
        let row = width.div_ceil(S::F32_LANES);
        let q = S::as_simd_f32s(q).0;
        for n in 0..beside {
            let lanes = S::F32_LANES;
            p[(n * TILE + used.start) * lanes..(n * TILE + used.end) * lanes].fill(0.0);
        }
        for i in 0..stream {
            let turn = keys.turn(i);
            for n in 0..beside {
                let q = (&q[n * count * row..][..count * row], row);
                let p = &mut p[n * TILE * S::F32_LANES..][..TILE * S::F32_LANES];
                let k = k.of_next_head(n);
                let [a, b, c, d] = turn.0;
                match turn.1 {
                    4 => score_keys(simd, k.some(first, [a, b, c, d], scratch), q, [a, b, c, d], p),
                    3 => score_keys(simd, k.some(first, [a, b, c], scratch), q, [a, b, c], p),
                    2 => score_keys(simd, k.some(first, [a, b], scratch), q, [a, b], p),
                    1 => score_keys(simd, k.some(first, [a], scratch), q, [a], p),
                    _ => {}
                }
            }
        }
    }
}

/// O = alpha O + P V of a tile.
struct Values<'a> {
    keys: &'a Keys,
    /// As in [`Products`].
    p: &'a [f32],
    /// Whether absent keys are marked.
    mark: bool,
    v: Rows<'a>,
    /// Columns of V.
    width: usize,
    /// For each of the heads side by side a vector with a query per lane.
    alphas: &'a [f32],
    /// A row per query, in whole vectors.
    o: &'a mut [f32],
    /// Memory for as many numbers.
    parts: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl WithSimd for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { keys, p, mark, v, width, alphas, o, parts, scratch } = self;
        let Keys { first, stream, count, beside, .. } = *keys;
        let row = width.div_ceil(S::F32_LANES);
        let (o, parts) = (S::as_mut_simd_f32s(o).0, S::as_mut_simd_f32s(parts).0);
        for begin in (0..stream).step_by(SUMMED) {
            parts.fill(simd.splat_f32s(0.0));
            for i in begin..stream.min(begin + SUMMED) {
                let turn = keys.turn(i);
                for n in 0..beside {
                    let p = &p[n * TILE * S::F32_LANES..][..TILE * S::F32_LANES];
                    let to = (&mut parts[n * count * row..][..count * row], row);
                    let v = v.of_next_head(n);
                    let [a, b, c, d] = turn.0;
                    match turn.1 {
                        4 => add_keys(
                            simd,
                            v.some(first, [a, b, c, d], scratch),
                            p,
                            [a, b, c, d],
                            mark,
                            to,
                        ),
                        3 => add_keys(
                            simd,
                            v.some(first, [a, b, c], scratch),
                            p,
                            [a, b, c],
                            mark,
                            to,
                        ),
                        2 => add_keys(simd, v.some(first, [a, b], scratch), p, [a, b], mark, to),
                        1 => add_keys(simd, v.some(first, [a], scratch), p, [a], mark, to),
                        _ => {}
                    }
                }
            }
            let of_row = o.chunks_exact_mut(row).zip(parts.chunks_exact(row)).enumerate();
            for (r, (o, parts)) in of_row {
                let alpha = alphas[r / count * S::F32_LANES + r % count];
                let alpha = simd.splat_f32s(if begin == 0 { alpha } else { 1.0 });
                for (o, part) in o.iter_mut().zip(parts) {
                    *o = simd.mul_add_e_f32s(*o, alpha, *part);
                }
            }
        }
    }
}

/// Reads Q of the tile, a row per query, padded with zeroes to whole vectors of `lanes`.
#[inline(always)]
fn load_q(inputs: &Inputs<'_>, tile: &RowTile, lanes: usize, pieces: &mut Pieces<'_>) {
    let d = inputs.problem.head_dim();
    let rows = pieces.q.chunks_exact_mut(d.next_multiple_of(lanes));
    for ((n, r), to) in tile.places().zip(rows) {
        let (h, i) = tile.place(n, r);
        inputs.q.rows(tile.b, h).read(i, &mut to[..d]);
        to[d..].fill(0.0);
    }
}

/// Writes the products of `K` rows of K with the queries `q` to `s`: a vector per key, of which
/// `keys` are the places, with a query per lane. A query has `vectors` vectors.
#[inline(always)]
fn score_keys<S: Simd, const K: usize>(
    simd: S,
    rows: [&[f32]; K],
    (q, vectors): (&[S::f32s], usize),
    keys: [usize; K],
    s: &mut [f32],
) {
    for (n, two) in q.chunks(2 * vectors).enumerate() {
        let (one, other) = two.split_at(vectors);
        if other.is_empty() {
            let products = dots::<S, K, 1>(simd, rows, [one]);
            for k in 0..K {
                s[keys[k] * S::F32_LANES + 2 * n] = products[k][0];
            }
        } else {
            let products = dots::<S, K, 2>(simd, rows, [one, other]);
            for k in 0..K {
                s[keys[k] * S::F32_LANES + 2 * n..][..2].copy_from_slice(&products[k]);
            }
        }
    }
}

/// The products of `K` keys with `R` queries. The sum of one does not depend on the others.
//
// No closures, also none for `map`: they would not be compiled for the vector instructions.
#[inline(always)]
fn dots<S: Simd, const K: usize, const R: usize>(
    simd: S,
    keys: [&[f32]; K],
    queries: [&[S::f32s]; R],
) -> [[f32; R]; K] {
    let mut sums = [[simd.splat_f32s(0.0); R]; K];
    let (whole, rest) = vectors_of::<S, K>(keys);
    let count = whole[0].len();
    let mut vectors = queries;
    for r in 0..R {
        vectors[r] = &queries[r][..count];
    }
    for d in 0..count {
        for k in 0..K {
            for r in 0..R {
                sums[k][r] = simd.mul_add_e_f32s(whole[k][d], vectors[r][d], sums[k][r]);
            }
        }
    }
    if queries[0].len() > count {
        for k in 0..K {
            let rest = simd.partial_load_f32s(rest[k]);
            for r in 0..R {
                sums[k][r] = simd.mul_add_e_f32s(rest, queries[r][count], sums[k][r]);
            }
        }
    }
    let mut results = [[0.0; R]; K];
    for k in 0..K {
        for r in 0..R {
            results[k][r] = simd.reduce_sum_f32s(sums[k][r]);
        }
    }
    results
}

/// Adds the sum of the values of `K` keys to `sums`: a row per query, of `vectors` vectors. `p` has
/// a vector per key, of which `keys` are the places, with a query per lane.
#[inline(always)]
fn add_keys<S: Simd, const K: usize>(
    simd: S,
    rows: [&[f32]; K],
    p: &[f32],
    keys: [usize; K],
    mark: bool,
    (sums, vectors): (&mut [S::f32s], usize),
) {
    if mark {
        for (r, sums) in sums.chunks_exact_mut(vectors).enumerate() {
            let mut weights = [0.0; K];
            for k in 0..K {
                weights[k] = p[keys[k] * S::F32_LANES + r];
            }
            add_present_values(simd, rows, weights, sums);
        }
        return;
    }
    for (n, sums) in sums.chunks_mut(2 * vectors).enumerate() {
        let mut weights = [[0.0; 2]; K];
        let two = sums.len() == 2 * vectors;
        for k in 0..K {
            let p = &p[keys[k] * S::F32_LANES + 2 * n..];
            weights[k] = [p[0], if two { p[1] } else { 0.0 }];
        }
        let (one, other) = sums.split_at_mut(vectors);
        if two {
            add_values(simd, rows, weights, one, Some(other));
        } else {
            add_values(simd, rows, weights, one, None);
        }
    }
}

/// Adds the rows of `K` keys, times their weights for each of one or two queries, to the sums of
/// these queries. The keys are summed first, because the errors of many small additions to one
/// large sum could add up.
#[inline(always)]
fn add_values<S: Simd, const K: usize>(
    simd: S,
    rows: [&[f32]; K],
    p: [[f32; 2]; K],
    one: &mut [S::f32s],
    other: Option<&mut [S::f32s]>,
) {
    let zero = simd.splat_f32s(0.0);
    let (mut p1, mut p2) = ([zero; K], [zero; K]);
    for k in 0..K {
        (p1[k], p2[k]) = (simd.splat_f32s(p[k][0]), simd.splat_f32s(p[k][1]));
    }
    let (whole, rest) = vectors_of::<S, K>(rows);
    let count = whole[0].len();
    let (one, one_rest) = one.split_at_mut(count);
    if let Some(other) = other {
        let (other, other_rest) = other.split_at_mut(count);
        for c in 0..count {
            let value = whole[0][c];
            let (mut sum1, mut sum2) = (simd.mul_f32s(p1[0], value), simd.mul_f32s(p2[0], value));
            for k in 1..K {
                let value = whole[k][c];
                sum1 = simd.mul_add_e_f32s(p1[k], value, sum1);
                sum2 = simd.mul_add_e_f32s(p2[k], value, sum2);
            }
            one[c] = simd.add_f32s(one[c], sum1);
            other[c] = simd.add_f32s(other[c], sum2);
        }
        add_rest(simd, rest, p2, other_rest);
    } else {
        for c in 0..count {
            let mut sum = simd.mul_f32s(p1[0], whole[0][c]);
            for k in 1..K {
                sum = simd.mul_add_e_f32s(p1[k], whole[k][c], sum);
            }
            one[c] = simd.add_f32s(one[c], sum);
        }
    }
    add_rest(simd, rest, p1, one_rest);
}

/// Adds the columns that fill no vector.
#[inline(always)]
fn add_rest<S: Simd, const K: usize>(
    simd: S,
    rest: [&[f32]; K],
    p: [S::f32s; K],
    to: &mut [S::f32s],
) {
    if let Some(to) = to.first_mut() {
        let mut sum = simd.mul_f32s(p[0], simd.partial_load_f32s(rest[0]));
        for k in 1..K {
            sum = simd.mul_add_e_f32s(p[k], simd.partial_load_f32s(rest[k]), sum);
        }
        *to = simd.add_f32s(*to, sum);
    }
}

/// As [`add_values`] for one query, where V holds NaN or infinity: absent keys, whose weights are
/// marked, are left out, because 0 times NaN is NaN.
#[inline(always)]
fn add_present_values<S: Simd, const K: usize>(
    simd: S,
    rows: [&[f32]; K],
    p: [f32; K],
    to: &mut [S::f32s],
) {
    let (whole, rest) = vectors_of::<S, K>(rows);
    for (c, to) in to.iter_mut().enumerate() {
        let mut sum = simd.splat_f32s(0.0);
        for k in 0..K {
            // No weight is negative, but a mark is.
            let absent = p[k] < 0.0;
            if !absent {
                let value = match whole[k].get(c) {
                    Some(&value) => value,
                    None => simd.partial_load_f32s(rest[k]),
                };
                sum = simd.mul_add_e_f32s(simd.splat_f32s(p[k]), value, sum);
            }
        }
        *to = simd.add_f32s(*to, sum);
    }
}

/// The whole vectors of rows of equal length, and what is left of each.
#[inline(always)]
fn vectors_of<S: Simd, const K: usize>(rows: [&[f32]; K]) -> ([&[S::f32s]; K], [&[f32]; K]) {
    let (mut whole, mut rest) = ([&[][..]; K], [&[][..]; K]);
    let width = rows[0].len();
    for k in 0..K {
        (whole[k], rest[k]) = S::as_simd_f32s(&rows[k][..width]);
    }
    (whole, rest)
}
