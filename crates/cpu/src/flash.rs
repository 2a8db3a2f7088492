//! FlashAttention-2, forward, for one tile of queries over a range of keys.
//!
//! It reads beside `flash_forward.wgsl`: m is the largest score of a query so far, l the sum of
//! exp(s - m), and O is rescaled when m grows. The lanes of a vector are queries. So everything
//! that the other kernels do along a row of the tile happens here lane by lane, and no lane depends
//! on another.

use crate::few;
use crate::group::Group;
use crate::math::LOWEST;
use crate::products::{Block, Scores, add_present_values, add_values, scores};
use crate::softmax::{Draws, RUN};
use crate::tensors::{MaskTensor, Tensor};
use crate::workspace::Pieces;
use flashtile_core::{Band, Problem, ResolvedCall};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::ops::Range;

/// Keys per tile, unless there are few queries. Tiles start at multiples of it.
pub(crate) const BC: usize = 128;

/// The inputs of one call.
pub(crate) struct Inputs<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) call: ResolvedCall,
    pub(crate) band: Band,
    pub(crate) q: Tensor<'a>,
    pub(crate) k: Tensor<'a>,
    pub(crate) v: Tensor<'a>,
    pub(crate) mask: Option<MaskTensor<'a>>,
    pub(crate) kv_lens: Option<&'a [i32]>,
    pub(crate) draws: Option<Draws>,
}

/// A tile of queries. The heads of a group can share it: row `r` is query `r / fold` of head
/// `h + r % fold`. Tiles of several groups can be computed side by side, each with its own K and V.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowTile {
    pub(crate) b: usize,
    /// The first head.
    pub(crate) h: usize,
    pub(crate) fold: usize,
    /// How many times `fold` heads.
    pub(crate) beside: usize,
    /// Of each of them.
    pub(crate) rows: Range<usize>,
}

impl RowTile {
    /// Head and query of row `r`, of the tile's rows, of the `n`-th of the heads side by side.
    pub(crate) fn place(&self, n: usize, r: usize) -> (usize, usize) {
        let r = self.rows.start + r;
        (self.h + n * self.fold + r % self.fold, r / self.fold)
    }

    /// What [`place`](Self::place) takes, for each row of the tile.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rows = self.rows.len();
        (0..self.beside).flat_map(move |n| (0..rows).map(move |r| (n, r)))
    }
}

impl Inputs<'_> {
    /// Valid keys of batch entry `b`.
    pub(crate) fn kv_len(&self, b: usize) -> usize {
        self.kv_lens.map_or(self.call.seq_kv, |lens| lens[b] as usize)
    }

    /// The keys that row `r` of the tile sees by position.
    #[inline(always)]
    pub(crate) fn visible(&self, tile: &RowTile, r: usize) -> Range<usize> {
        self.band.visible(tile.place(0, r).1, self.call.seq_q, self.kv_len(tile.b))
    }

    /// Which of `keys`, a tile of them, have scores for `rows`, counted from the tile's first, and
    /// whether every row sees all of these by position. `None` if no row sees any.
    #[inline(always)]
    pub(crate) fn used(
        &self,
        tile: &RowTile,
        rows: &Range<usize>,
        keys: &Range<usize>,
    ) -> Option<(Range<usize>, bool)> {
        // Neither end decreases from one query to the next.
        let (top, bottom) = (self.visible(tile, rows.start), self.visible(tile, rows.end - 1));
        let end = bottom.end.min(keys.end);
        if top.start >= end || end <= keys.start {
            return None;
        }
        // Keys before the first visible one are left out in whole runs of a sum of weights, so that
        // the sums of a row do not depend on the other rows.
        let start = top.start.max(keys.start) / RUN * RUN;
        let full = bottom.start <= start && top.end >= end;
        Some((start - keys.start..end - keys.start, full))
    }

    /// Whether scores are more than products, or weights are dropped, whatever the position.
    pub(crate) fn always_ruled(&self) -> bool {
        self.mask.is_some() || self.problem.softcap().is_some() || self.draws.is_some()
    }

    /// The keys that some query of the tile sees by position.
    pub(crate) fn keys(&self, tile: &RowTile) -> Range<usize> {
        let queries = tile.rows.start / tile.fold..tile.rows.end.div_ceil(tile.fold);
        flashtile_core::key_range(&self.band, &queries, self.call.seq_q, self.kv_len(tile.b))
    }
}

/// The instructions of this machine, as the tiles of a plan depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// f32 per vector.
    pub(crate) lanes: usize,
    /// Queries of a full group.
    pub(crate) group: usize,
}

impl Machine {
    /// Asks the processor.
    pub(crate) fn detect() -> Self {
        struct Ask;
        impl WithSimd for Ask {
            type Output = Machine;
            fn with_simd<S: Simd>(self, _: S) -> Machine {
                Machine { lanes: S::F32_LANES, group: full_group::<S>() * S::F32_LANES }
            }
        }
        pulp::Arch::new().dispatch(Ask)
    }

    /// The instructions by name.
    pub(crate) fn name(&self) -> &'static str {
        match self.lanes {
            16 => "AVX-512",
            8 => "AVX2",
            4 if cfg!(target_arch = "aarch64") => "NEON",
            4 => "SIMD of 128 bits",
            _ => "scalar instructions",
        }
    }

    /// Queries per group of a tile of `rows` rows: one vector if that holds them, else a full
    /// group.
    pub(crate) fn group_of(&self, rows: usize) -> usize {
        if rows <= self.lanes { self.lanes } else { self.group }
    }
}

/// Vectors of a full group. Two of them by 6 keys fill the 16 registers of AVX2. NEON has 32
/// registers of half the width, and AVX-512 takes 12 keys instead.
const fn full_group<S: Simd>() -> usize {
    if S::F32_LANES == 4 && S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Attention of a tile of rows over `keys`. It leaves O (not divided by l), m and l in the
/// workspace; [`ResultRow`] finds them.
pub(crate) struct Flash<'a, 'p> {
    pub(crate) inputs: &'a Inputs<'a>,
    /// Whether the plan is for few queries.
    pub(crate) few: bool,
    pub(crate) tile: &'a RowTile,
    pub(crate) keys: Range<usize>,
    pub(crate) pieces: &'a mut Pieces<'p>,
}

/// Row `r` of a tile (of its `n`-th heads) among the results in a workspace.
#[derive(Clone, Copy)]
pub(crate) struct ResultRow<'a> {
    pub(crate) m: f32,
    pub(crate) l: f32,
    /// Column `c` of O is `o[c * stride]`.
    pub(crate) o: &'a [f32],
    pub(crate) stride: usize,
}

impl ResultRow<'_> {
    /// Copies the row of O.
    pub(crate) fn copy_o(&self, to: &mut [f32]) {
        if self.stride == 1 {
            return to.copy_from_slice(self.o);
        }
        for (to, &x) in to.iter_mut().zip(self.o.iter().step_by(self.stride)) {
            *to = x;
        }
    }
}

impl<'a> ResultRow<'a> {
    /// `width` is head_dim_v, `group` the queries per group. If `few`, O has a row per query, and
    /// heads side by side have `rows` rows each.
    pub(crate) fn new(
        (o, sums): (&'a [f32], &[f32]),
        (width, group): (usize, usize),
        few: Option<usize>,
        (n, r): (usize, usize),
    ) -> Self {
        let (g, lane) = (n + r / group, r % group);
        let (m, l) = (sums[2 * g * group + lane], sums[(2 * g + 1) * group + lane]);
        if let Some(rows) = few {
            let padded = width.next_multiple_of(group);
            return Self { m, l, o: &o[(n * rows + r) * padded..][..width], stride: 1 };
        }
        Self { m, l, o: &o[g * width * group + lane..(g + 1) * width * group], stride: group }
    }
}

impl WithSimd for Flash<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.few {
            few::flash(simd, self);
        } else if self.tile.rows.len() <= S::F32_LANES {
            flash::<S, 8, 1>(simd, self);
        } else if full_group::<S>() == 4 {
            flash::<S, 6, 4>(simd, self);
        } else if S::REGISTER_COUNT >= 32 {
            flash::<S, 12, 2>(simd, self);
        } else {
            flash::<S, 6, 2>(simd, self);
        }
    }
}

/// Vectors of queries: a group, for each column or key.
#[inline(always)]
pub(crate) fn groups<S: Simd, const NV: usize>(numbers: &mut [f32]) -> &mut [[S::f32s; NV]] {
    pulp::as_arrays_mut::<NV, _>(S::as_mut_simd_f32s(numbers).0).0
}

/// Sets m and l to those of a row without keys.
#[inline(always)]
pub(crate) fn clear_sums<S: Simd, const NV: usize>(simd: S, sums: &mut [[S::f32s; NV]]) {
    for of_group in sums.chunks_exact_mut(2) {
        of_group[0] = [simd.splat_f32s(LOWEST); NV];
        of_group[1] = [simd.splat_f32s(0.0); NV];
    }
}

#[inline(always)]
fn flash<S: Simd, const M: usize, const NV: usize>(simd: S, work: Flash<'_, '_>) {
    let Flash { inputs, tile, keys, pieces, .. } = work;
    let Inputs { problem, call, .. } = inputs;
    let (d, dv) = (problem.head_dim(), problem.head_dim_v());
    let group = NV * S::F32_LANES;
    let count = tile.rows.len();
    let group_count = count.div_ceil(group);
    let always_ruled = inputs.always_ruled();

    load_q(inputs, tile, group, pieces);
    let q = groups::<S, NV>(pieces.q);
    let o = &mut groups::<S, NV>(pieces.o)[..group_count * dv];
    let sums = &mut groups::<S, NV>(pieces.sums)[..2 * group_count];
    let p = groups::<S, NV>(pieces.p);
    let bias = groups::<S, NV>(pieces.bias);
    let (k_scratch, v_scratch) = (&mut *pieces.k, &mut *pieces.v);
    o.fill([simd.splat_f32s(0.0); NV]);
    clear_sums(simd, sums);

    let kv_head = tile.h / problem.group_size();
    let k_rows = inputs.k.rows(tile.b, kv_head);
    let v_rows = inputs.v.rows(tile.b, kv_head);
    for first in (keys.start / BC * BC..keys.end).step_by(BC) {
        let tile_keys = first..(first + BC).min(keys.end);
        let k = k_rows.block(tile_keys.clone(), k_scratch);
        let v = v_rows.block(tile_keys.clone(), v_scratch);
        let mut k_row = [&[][..]; BC];
        for (j, row) in k_row[..tile_keys.len()].iter_mut().enumerate() {
            *row = &k.data[j * k.stride..][..d];
        }
        // Where the compiler knows that rows are equally far apart, it computes each address from
        // the one before: 29 instructions instead of 24 for 12 products.
        let k_row = black_box(k_row);
        let mut v_dirty = None;
        for g in 0..group_count {
            let rows = g * group..((g + 1) * group).min(count);
            let Some((used, full)) = inputs.used(tile, &rows, &tile_keys) else { continue };
            let mut state = Scores { scale: simd.splat_f32s(call.scale), top: sums[2 * g] };
            let q = &q[g * d..][..d];
            scores::<S, M, NV>(simd, q, &k_row, used.clone(), p, &mut state);
            let ruled = always_ruled || !full;
            let mark = ruled && *v_dirty.get_or_insert_with(|| is_dirty(v, tile_keys.len(), dv));
            let group =
                Group { inputs, tile, n: 0, rows, keys: tile_keys.clone(), used, ruled, mark };
            let sums = &mut sums[2 * g..][..2];
            let alpha = group.weigh(simd, state.top, p, bias, sums);
            let used = group.used;
            let o = &mut o[g * dv..][..dv];
            if mark {
                add_present_values(simd, p, v, used, alpha, o);
            } else {
                add_values::<S, M, NV>(simd, p, v, used, alpha, o);
            }
        }
    }
}

/// Reads Q of the tile, transposed: for each group of queries a row per column. Lanes beyond the
/// tile are 0.
#[inline(always)]
fn load_q(inputs: &Inputs<'_>, tile: &RowTile, group: usize, pieces: &mut Pieces<'_>) {
    let d = inputs.problem.head_dim();
    let row = &mut pieces.row[..d];
    let count = tile.rows.len();
    pieces.q[(count / group) * group * d..count.div_ceil(group) * group * d].fill(0.0);
    for r in 0..count {
        let (h, i) = tile.place(0, r);
        inputs.q.rows(tile.b, h).read(i, row);
        let to = &mut pieces.q[r / group * group * d + r % group..];
        for (to, &x) in to.iter_mut().step_by(group).zip(row.iter()) {
            *to = x;
        }
    }
}

/// Whether V holds NaN or infinity.
#[inline(always)]
fn is_dirty(v: Block<'_>, rows: usize, width: usize) -> bool {
    let any = |row: &[f32]| row.iter().fold(false, |any, x| any | !x.is_finite());
    v.data.chunks(v.stride).take(rows).any(|row| any(&row[..width]))
}
