//! What a group of queries does between the two products of a tile of keys.

use crate::flash::{Inputs, RowTile};
use crate::math::{LOWEST, exp};
use crate::softmax::{MAX_GROUP, Rules, apply, weights};
use crate::tensors::MaskTensor;
use pulp::Simd;
use std::ops::Range;

/// A group of queries of a tile, and the keys of one tile.
pub(crate) struct Group<'a> {
    pub(crate) inputs: &'a Inputs<'a>,
    pub(crate) tile: &'a RowTile,
    /// Which of the heads side by side.
    pub(crate) n: usize,
    /// The rows of the tile that are its lanes.
    pub(crate) rows: Range<usize>,
    /// The keys of the tile.
    pub(crate) keys: Range<usize>,
    /// Those that have scores, counted from the first.
    pub(crate) used: Range<usize>,
    /// Whether scores are more than products, or keys are absent for some query.
    pub(crate) ruled: bool,
    /// Whether weights of absent keys are marked, because V holds NaN or infinity.
    pub(crate) mark: bool,
}

impl Group<'_> {
    /// Turns scores into weights, and updates m and l in `sums`. `top` is the largest score, unless
    /// one is NaN. Returns the factors that rescale O.
    #[inline(always)]
    pub(crate) fn weigh<S: Simd, const NV: usize>(
        &self,
        simd: S,
        mut top: [S::f32s; NV],
        p: &mut [[S::f32s; NV]],
        bias: &mut [[S::f32s; NV]],
        sums: &mut [[S::f32s; NV]],
    ) -> [S::f32s; NV] {
        let Self { inputs, tile, n, rows, used, mark, .. } = self;
        let (before, l) = (sums[0], sums[1]);
        if self.ruled || saturates(simd, top) {
            let mut rules = Rules {
                start: [simd.splat_f32s(0.0); NV],
                end: [simd.splat_f32s(0.0); NV],
                bias: None,
                softcap: inputs.problem.softcap(),
            };
            let of_tile = |key: usize| key.clamp(self.keys.start, self.keys.end) - self.keys.start;
            for (lane, r) in rows.clone().enumerate() {
                let seen = inputs.visible(tile, r);
                lanes::<S, NV>(&mut rules.start)[lane] = of_tile(seen.start) as f32;
                lanes::<S, NV>(&mut rules.end)[lane] = of_tile(seen.end) as f32;
            }
            if let Some(mask) = &inputs.mask {
                self.load_bias::<S, NV>(mask, bias);
                rules.bias = Some(bias);
            }
            top = apply(simd, &rules, used.clone(), p, before);
        }
        let mut alpha = before;
        for c in 0..NV {
            alpha[c] = exp(simd, simd.sub_f32s(before[c], top[c]));
        }
        let added = weights(simd, used.clone(), p, top, *mark);
        for c in 0..NV {
            sums[0][c] = top[c];
            sums[1][c] = simd.mul_add_e_f32s(l[c], alpha[c], added[c]);
        }
        if let Some(draws) = &inputs.draws {
            let (mut query, mut head) = ([0; MAX_GROUP], [0; MAX_GROUP]);
            for (lane, r) in rows.clone().enumerate() {
                let (h, i) = tile.place(*n, r);
                query[lane] = i as u32;
                head[lane] = (tile.b * inputs.problem.heads() + h) as u32;
            }
            draws.drop(simd, self.keys.start, used.clone(), p, [&query, &head], *mark);
        }
        alpha
    }

    /// Reads the mask, transposed.
    #[inline(always)]
    fn load_bias<S: Simd, const NV: usize>(
        &self,
        mask: &MaskTensor<'_>,
        bias: &mut [[S::f32s; NV]],
    ) {
        let Self { tile, used, .. } = self;
        let start_of = |r: usize| {
            let (h, i) = tile.place(self.n, r);
            mask.row(tile.b, h, i)
        };
        let keys = self.keys.start + used.start..self.keys.start + used.end;
        let mut known: Option<(usize, usize)> = None;
        for (lane, r) in self.rows.clone().enumerate() {
            let start = start_of(r);
            match known {
                // Rows often share a row of the mask, as where it hides padding.
                Some((same, from)) if same == start => {
                    for to in &mut bias[used.clone()] {
                        let to = lanes::<S, NV>(to);
                        to[lane] = to[from];
                    }
                }
                Some(_) | None => {
                    let all = bias[used.clone()].iter_mut().zip(mask.bias(start, keys.clone()));
                    for (to, x) in all {
                        lanes::<S, NV>(to)[lane] = x;
                    }
                }
            }
            known = Some((start, lane));
        }
    }
}

/// The numbers of a group, one per lane.
#[inline(always)]
fn lanes<S: Simd, const NV: usize>(group: &mut [S::f32s; NV]) -> &mut [f32] {
    bytemuck::cast_slice_mut(&mut group[..])
}

/// Whether a score is beyond the finite numbers in a way that changes weights, where `top` are the
/// largest scores: +inf, or nothing above the lowest finite number. A NaN among the scores of a
/// query makes its whole result NaN, and -inf beside a larger score has a weight of 0, as the
/// lowest finite number has.
#[inline(always)]
fn saturates<S: Simd, const NV: usize>(simd: S, top: [S::f32s; NV]) -> bool {
    let (low, high) = (simd.splat_f32s(LOWEST), simd.splat_f32s(f32::INFINITY));
    let mut odd = simd.equal_f32s(top[0], high);
    for top in top {
        odd = simd.or_m32s(odd, simd.equal_f32s(top, high));
        odd = simd.or_m32s(odd, simd.less_than_or_equal_f32s(top, low));
    }
    simd.first_true_m32s(odd) < S::F32_LANES
}
