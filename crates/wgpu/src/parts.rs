//! Splits a problem into parts that fit the device's bindings, 32-bit indices, grids and watchdog.

use crate::machine::Machine;
use flashtile_core::{
    Argument, KernelKind, KeyChunks, Problem, Reason,
    planning::{MAX_WATCHDOG_FLOPS, MAX_WORKSPACE_BYTES},
};
use flashtile_shaders::{Operation, Slot, Tiles};
use std::ops::Range;

/// The part of a problem that one dispatch computes: batch entries, query heads, queries and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) batch: Range<usize>,
    pub(crate) heads: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// All keys, or those of some chunks.
    pub(crate) keys: Range<usize>,
}

/// The elements of one tensor that a part touches: from `start`, `len` elements of `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) size: u64,
}

/// An axis along which a part can be cut.
#[derive(Clone, Copy, Debug)]
enum Axis {
    Batch,
    Heads,
    Rows,
    Keys,
}

/// Parts that a plan lists, at most. At the FLOPs that a watchdog allows per part, this many take
/// hours.
const MAX_PARTS: usize = 1 << 18;

/// Words between the scores of neighbouring queries.
pub(crate) fn score_stride(problem: &Problem) -> usize {
    problem.seq_kv()
}

impl Part {
    pub(crate) fn whole(problem: &Problem) -> Self {
        Self {
            batch: 0..problem.batch(),
            heads: 0..problem.heads(),
            rows: 0..problem.seq_q(),
            keys: 0..problem.seq_kv(),
        }
    }

    /// What the part touches of the tensor behind `slot`; `row_words` is the length of a row of the
    /// workspace.
    pub(crate) fn window(&self, problem: &Problem, slot: Slot, row_words: usize) -> Window {
        let (b, h, rows, keys) = (&self.batch, &self.heads, &self.rows, &self.keys);
        let group = problem.group_size();
        let kv = h.start / group..(h.end - 1) / group + 1;
        let view =
            |view: &flashtile_core::TensorView, heads: &Range<usize>, rows: &Range<usize>| {
                let columns = 0..view.shape[3];
                strided(&view.strides, [b, heads, rows, &columns], view.dtype.size())
            };
        match slot {
            Slot::Params => Window { start: 0, len: 0, size: 1 },
            Slot::Q => view(problem.q(), h, rows),
            Slot::K => view(problem.k(), &kv, keys),
            Slot::V => view(problem.v(), &kv, keys),
            Slot::Out => view(problem.out(), h, rows),
            Slot::Mask => match problem.mask() {
                Some(mask) => strided(&mask.strides, [b, h, rows, keys], mask.kind.size()),
                None => Window { start: 0, len: 0, size: 1 },
            },
            Slot::Aux => Window { start: b.start as u64, len: b.len() as u64, size: 4 },
            Slot::Lse => {
                let per_head = problem.seq_q();
                strided(&[problem.heads() * per_head, per_head, 1, 0], [b, h, rows, &(0..1)], 4)
            }
            Slot::Workspace => {
                // Its rows are counted whether or not a tensor's strides make them cheap elsewhere.
                let sizes = [b.len(), h.len(), rows.len(), row_words];
                let len = sizes.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
                Window { start: 0, len, size: 4 }
            }
        }
    }

    /// The same part with a single entry of `axis`.
    fn narrowed(&self, axis: Axis) -> Part {
        let narrow = |range: &Range<usize>| range.start..range.start + 1;
        match axis {
            Axis::Batch => Part { batch: narrow(&self.batch), ..self.clone() },
            Axis::Heads => Part { heads: narrow(&self.heads), ..self.clone() },
            Axis::Rows => Part { rows: narrow(&self.rows), ..self.clone() },
            Axis::Keys => Part { keys: narrow(&self.keys), ..self.clone() },
        }
    }

    /// Both halves along `axis`; `None` where it cannot be cut: it is a single entry, a single tile
    /// of rows or a single chunk of keys.
    fn cut(&self, axis: Axis, work: &Work<'_>) -> Option<[Part; 2]> {
        let halve = |range: &Range<usize>, step: usize| {
            let middle = range.start + (range.len() / 2).next_multiple_of(step);
            (middle > range.start && middle < range.end)
                .then_some((range.start..middle, middle..range.end))
        };
        let with =
            |f: &dyn Fn(Range<usize>) -> Part, (a, b): (Range<usize>, Range<usize>)| [f(a), f(b)];
        Some(match axis {
            Axis::Batch => with(&|batch| Part { batch, ..self.clone() }, halve(&self.batch, 1)?),
            Axis::Heads => {
                // Whole groups first: halves of a group would both read its keys. Heads that share
                // tiles stay together.
                let halves = halve(&self.heads, work.problem.group_size())
                    .or_else(|| halve(&self.heads, work.fold))?;
                with(&|heads| Part { heads, ..self.clone() }, halves)
            }
            Axis::Rows => {
                with(&|rows| Part { rows, ..self.clone() }, halve(&self.rows, work.tile_rows())?)
            }
            Axis::Keys => {
                let step = work.chunks?.keys();
                with(&|keys| Part { keys, ..self.clone() }, halve(&self.keys, step)?)
            }
        })
    }
}

fn strided(strides: &[usize; 4], ranges: [&Range<usize>; 4], size: usize) -> Window {
    if ranges.iter().any(|range| range.is_empty()) {
        return Window { start: 0, len: 0, size: size as u64 };
    }
    let sum = |at: &dyn Fn(&Range<usize>) -> usize| -> u64 {
        ranges.iter().zip(strides).map(|(range, &stride)| (at(range) * stride) as u64).sum()
    };
    let start = sum(&|range| range.start);
    Window { start, len: sum(&|range| range.end - 1) - start + 1, size: size as u64 }
}

fn argument(slot: Slot) -> Argument {
    match slot {
        Slot::Q => Argument::Q,
        Slot::K => Argument::K,
        Slot::V => Argument::V,
        Slot::Mask => Argument::AttnMask,
        Slot::Aux => Argument::KvLens,
        Slot::Out => Argument::Out,
        Slot::Lse => Argument::Lse,
        Slot::Params | Slot::Workspace => Argument::Workspace,
    }
}

/// What is being split: a problem with the operations of its kernel and their tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) kernel: KernelKind,
    /// The operations of one part, in order, each with its tiles.
    pub(crate) operations: &'a [(Operation, Tiles)],
    /// Heads that share the tiles of the flash kernel.
    pub(crate) fold: usize,
    /// The chunks of keys, where the keys of a row are split.
    pub(crate) chunks: Option<KeyChunks>,
}

impl Work<'_> {
    /// Queries per tile: rows are only cut between tiles.
    fn tile_rows(&self) -> usize {
        let rows = self.operations.iter().map(|(_, tiles)| tiles.rows() as usize);
        (rows.max().unwrap_or(1) / self.fold).max(1)
    }

    /// Words of the workspace per row; 0 without a workspace.
    pub(crate) fn row_words(&self) -> usize {
        match self.kernel {
            KernelKind::Flash => {
                self.chunks.map_or(0, |chunks| chunks.row_words(self.problem.head_dim_v()))
            }
            KernelKind::Unfused => score_stride(self.problem),
        }
    }

    /// The window of a part on the tensor behind `slot`.
    pub(crate) fn window(&self, part: &Part, slot: Slot) -> Window {
        part.window(self.problem, slot, self.row_words())
    }

    /// How many elements of a tensor a part would not touch if it were a single entry of `axis`.
    fn reach(&self, part: &Part, slot: Slot, axis: Axis) -> u64 {
        self.window(part, slot).len - self.window(&part.narrowed(axis), slot).len
    }

    /// FLOPs of one part in a call at capacity. The unfused kernels compute every score; flash only
    /// those that causal masks and windows leave.
    fn flops(&self, part: &Part) -> u64 {
        let problem = self.problem;
        let (seq_q, seq_kv) = (problem.seq_q(), problem.seq_kv());
        let pairs = match self.kernel {
            KernelKind::Flash => {
                // At most what the band leaves of all keys.
                let all = problem.band().pairs(part.rows.clone(), seq_q, seq_kv);
                all.min((part.rows.len() as u64).saturating_mul(part.keys.len() as u64))
            }
            KernelKind::Unfused => (part.rows.len() as u64).saturating_mul(seq_kv as u64),
        };
        let per_pair = 2 * (problem.head_dim() as u64 + problem.head_dim_v() as u64);
        let heads = (part.batch.len() as u64).saturating_mul(part.heads.len() as u64);
        pairs.saturating_mul(heads).saturating_mul(per_pair)
    }

    /// The grid of `operation` over a part, in a call with these rows and `seq_kv` keys.
    pub(crate) fn grid(
        &self,
        part: &Part,
        (operation, tiles): (Operation, Tiles),
        rows: usize,
        seq_kv: usize,
    ) -> Grid {
        let over = |n: usize, step: u32| (n as u64).div_ceil(step.into());
        let heads = part.heads.len();
        let (tiles, heads, chunks) = match operation {
            Operation::FlashForward => (over(rows * self.fold, tiles.rows()), heads / self.fold, 1),
            Operation::FlashSplit => {
                let keys = part.keys.start..part.keys.end.min(seq_kv);
                let chunks = self.chunks.map_or(0, |chunks| chunks.of_keys(keys).len());
                (over(rows * self.fold, tiles.rows()), heads / self.fold, chunks)
            }
            Operation::UnfusedScores => {
                let across = over(seq_kv, tiles.keys());
                (over(rows, tiles.rows()).saturating_mul(across), heads, 1)
            }
            Operation::FlashMerge | Operation::UnfusedSoftmax => (rows as u64, heads, 1),
            Operation::UnfusedValues => {
                let across = over(self.problem.head_dim_v(), tiles.keys());
                (over(rows, tiles.rows()).saturating_mul(across), heads, 1)
            }
        };
        let per_head = tiles.saturating_mul(chunks as u64);
        let heads = (part.batch.len() as u64).saturating_mul(heads as u64);
        Grid { tiles, chunks: chunks as u32, items: per_head.saturating_mul(heads) }
    }
}

/// The workgroups of one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Tiles per head (or per heads that share tiles) and chunk.
    pub(crate) tiles: u64,
    /// Chunks of keys.
    pub(crate) chunks: u32,
    /// Workgroups in all.
    pub(crate) items: u64,
}

/// Splits the problem until every window of every part fits and no dispatch is too long. The parts
/// of one element of the result differ only in their keys.
pub(crate) fn split(work: &Work<'_>, machine: &Machine) -> Result<Vec<Vec<Part>>, Vec<Reason>> {
    const ROWS: &[Axis] = &[Axis::Batch, Axis::Heads, Axis::Rows];
    let mut open = vec![Part::whole(work.problem)];
    let mut done = Vec::new();
    let mut count = 0;
    while let Some(part) = open.pop() {
        let excess = excess(&part, work, machine);
        match excess.iter().find_map(|excess| cut(&part, work, excess.slot, ROWS)) {
            Some(_) if count + open.len() >= MAX_PARTS => return Err(too_many()),
            Some([first, second]) => open.extend([second, first]),
            None => {
                let parts = split_keys(part, work, machine, MAX_PARTS - count)?;
                count += parts.len();
                done.push(parts);
            }
        }
    }
    Ok(done)
}

/// Splits along the keys what cannot be split in another way.
fn split_keys(
    part: Part,
    work: &Work<'_>,
    machine: &Machine,
    most: usize,
) -> Result<Vec<Part>, Vec<Reason>> {
    let mut open = vec![part];
    let mut done = Vec::new();
    while let Some(part) = open.pop() {
        let excess = excess(&part, work, machine);
        match excess.iter().find_map(|excess| cut(&part, work, excess.slot, &[Axis::Keys])) {
            Some(_) if done.len() + open.len() >= most => return Err(too_many()),
            Some([first, second]) => open.extend([second, first]),
            None => match excess.into_iter().find_map(|excess| excess.reason) {
                Some(reason) => return Err(vec![reason]),
                None => done.push(part),
            },
        }
    }
    Ok(done)
}

fn too_many() -> Vec<Reason> {
    vec![Reason::TooManyDispatches { limit: MAX_PARTS as u64 }]
}

/// Why a part should be cut.
struct Excess {
    /// The tensor that does not fit; `None` where it is the amount of work.
    slot: Option<Slot>,
    /// Why the problem is refused where no cut helps; `None` where the part may stay as it is.
    reason: Option<Reason>,
}

/// What does not fit in one dispatch.
fn excess(part: &Part, work: &Work<'_>, machine: &Machine) -> Vec<Excess> {
    let mut all = Vec::new();
    for &slot in Slot::ALL {
        let window = work.window(part, slot);
        // Bindings start at multiples of the alignment. The caller's own offset is only known at
        // the call; one that is not such a multiple is checked again there.
        let before = window.start.saturating_mul(window.size) % machine.offset_alignment;
        let bytes = window.len.saturating_mul(window.size).saturating_add(before);
        let needed = bytes.checked_next_multiple_of(4).unwrap_or(u64::MAX);
        let limit = match slot {
            Slot::Workspace => machine.binding_size.min(MAX_WORKSPACE_BYTES),
            Slot::Params
            | Slot::Q
            | Slot::K
            | Slot::V
            | Slot::Mask
            | Slot::Aux
            | Slot::Out
            | Slot::Lse => machine.binding_size,
        };
        let argument = argument(slot);
        let indexed = window.len.saturating_add(machine.offset_alignment);
        let reason = if needed > limit {
            Reason::BindingSize { argument, needed, limit }
        } else if indexed > u64::from(u32::MAX) {
            Reason::IndexRange { argument, needed: indexed }
        } else {
            continue;
        };
        all.push(Excess { slot: Some(slot), reason: Some(reason) });
    }
    // Kernels count workgroups in 32 bits, over both axes of the grid.
    let limit = (u64::from(machine.grid) * u64::from(machine.grid)).min(u32::MAX.into());
    let seq_kv = work.problem.seq_kv();
    let workgroups = work
        .operations
        .iter()
        .map(|&operation| work.grid(part, operation, part.rows.len(), seq_kv).items);
    let needed = workgroups.max().unwrap_or(0);
    if needed > limit {
        let given = machine.grid.into();
        let limit = "max_compute_workgroups_per_dimension";
        let reason = Reason::DeviceLimit { limit, given, needed: needed.isqrt() + 1 };
        all.push(Excess { slot: None, reason: Some(reason) });
    } else if machine.watchdog && work.flops(part) > MAX_WATCHDOG_FLOPS {
        all.push(Excess { slot: None, reason: None });
    }
    all
}

/// Both halves of a part along one of `axes`, the one that helps most; `None` where none helps.
fn cut(part: &Part, work: &Work<'_>, slot: Option<Slot>, axes: &[Axis]) -> Option<[Part; 2]> {
    let mut axes = axes.to_vec();
    if let Some(slot) = slot {
        axes.sort_by_key(|&axis| std::cmp::Reverse(work.reach(part, slot, axis)));
    }
    axes.into_iter()
        .filter(|&axis| slot.is_none_or(|slot| work.reach(part, slot, axis) > 0))
        .find_map(|axis| part.cut(axis, work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{DType, Layout, TensorView};

    fn problem(layout: Layout, [b, h, s, d]: [usize; 4], kv_heads: usize) -> Problem {
        let view = |heads| TensorView::from_bhsd_sizes(DType::F32, layout, [b, heads, s, d]);
        let (q, kv) = (view(h).expect("small"), view(kv_heads).expect("small"));
        Problem::builder(q, kv, kv).lse(true).build().expect("valid")
    }

    const TILES: Tiles = flashtile_shaders::FLASH_TILES[2];

    fn flash(problem: &Problem) -> Work<'_> {
        let operations = &[(Operation::FlashForward, TILES)];
        Work { problem, kernel: KernelKind::Flash, operations, fold: 1, chunks: None }
    }

    fn machine(binding_size: u64) -> Machine {
        Machine { binding_size, watchdog: false, ..Machine::baseline() }
    }

    /// The parts of a split without chunks.
    fn parts(work: &Work<'_>, machine: &Machine) -> Vec<Part> {
        let whole = |mut over_keys: Vec<Part>| {
            assert_eq!(over_keys.len(), 1, "keys are not split");
            over_keys.remove(0)
        };
        split(work, machine).expect("fits").into_iter().map(whole).collect()
    }

    /// Every (batch, head, row) is in exactly one part.
    fn assert_partition(problem: &Problem, parts: &[Part]) {
        let mut seen = vec![0; problem.batch() * problem.heads() * problem.seq_q()];
        for part in parts {
            for b in part.batch.clone() {
                for h in part.heads.clone() {
                    for i in part.rows.clone() {
                        seen[(b * problem.heads() + h) * problem.seq_q() + i] += 1;
                    }
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
    }

    #[test]
    fn one_part_where_everything_fits() {
        let p = problem(Layout::Bhsd, [2, 4, 64, 16], 2);
        assert_eq!(parts(&flash(&p), &machine(1 << 20)), [Part::whole(&p)]);
    }

    #[test]
    fn parts_cover_the_problem_and_fit() {
        for &layout in Layout::ALL {
            let p = problem(layout, [2, 4, 64, 16], 2);
            // K of one head takes 4 KiB densely, four times that between the heads of bshd.
            let limit = 17 << 10;
            let parts = parts(&flash(&p), &machine(limit));
            assert!(parts.len() > 1, "{layout}");
            assert_partition(&p, &parts);
            for part in &parts {
                for &slot in Slot::ALL {
                    assert!(flash(&p).window(part, slot).len * 4 <= limit, "{layout} {slot:?}");
                }
            }
        }
    }

    #[test]
    fn keys_that_cannot_be_cut_are_refused() {
        let p = problem(Layout::Bhsd, [1, 1, 4096, 64], 1);
        let refused = split(&flash(&p), &machine((1 << 20) - 4)).expect_err("K needs a megabyte");
        assert!(
            matches!(refused[0], Reason::BindingSize { argument: Argument::K, .. }),
            "{refused:?}"
        );
    }

    /// Chunks of one part of the result cover all keys, begin at multiples of the chunk size and
    /// fit.
    #[test]
    fn chunks_are_cut_where_all_keys_do_not_fit() {
        for (layout, limit) in [(Layout::Bhsd, 200 << 10), (Layout::Bshd, 1 << 20)] {
            let p = problem(layout, [1, 4, 4000, 64], 2);
            let operations = [(Operation::FlashSplit, TILES), (Operation::FlashMerge, TILES)];
            let chunks = KeyChunks::new(512, 4000);
            let kernel = KernelKind::Flash;
            let work = Work { problem: &p, kernel, operations: &operations, fold: 1, chunks };
            let groups = split(&work, &machine(limit)).expect("a chunk fits");
            let first: Vec<_> = groups.iter().map(|parts| parts[0].clone()).collect();
            assert_partition(&p, &first);
            for parts in groups {
                assert!(parts.len() > 1, "{layout}");
                let mut next = 0;
                for part in parts {
                    assert!(part.keys.start == next && next % 512 == 0, "{part:?}");
                    assert!(work.window(&part, Slot::K).len * 4 <= limit);
                    next = part.keys.end;
                }
                assert_eq!(next, 4000);
            }
        }
    }

    #[test]
    fn heads_that_share_tiles_stay_together() {
        let p = problem(Layout::Bhsd, [1, 12, 4, 64], 2);
        let operations = &[(Operation::FlashForward, TILES)];
        let kernel = KernelKind::Flash;
        let work = Work { problem: &p, kernel, operations, fold: 6, chunks: None };
        let halves = parts(&work, &machine(6 * 4 * 64 * 4));
        let heads: Vec<_> = halves.into_iter().map(|part| part.heads).collect();
        assert_eq!(heads, [0..6, 6..12]);
    }

    #[test]
    fn a_tensor_of_exactly_one_binding_fits() {
        let p = problem(Layout::Bhsd, [1, 1, 4096, 64], 1);
        assert_eq!(parts(&flash(&p), &machine(1 << 20)), [Part::whole(&p)]);
    }

    #[test]
    fn a_watchdog_cuts_long_work() {
        let p = problem(Layout::Bhsd, [1, 8, 16384, 128], 8);
        let watched = Machine { watchdog: true, ..machine(1 << 30) };
        let parts = parts(&flash(&p), &watched);
        assert!(parts.len() > 4);
        assert_partition(&p, &parts);
    }

    /// Work that causal masks and windows leave out does not run long.
    #[test]
    fn the_watchdog_counts_what_the_band_leaves() {
        let watched = Machine { watchdog: true, ..machine(1 << 30) };
        let view = TensorView::bhsd(DType::F32, [1, 8, 16384, 128]).expect("small");
        let count = |causal, window: Option<usize>| {
            let p = Problem::builder(view, view, view).causal(causal).window_left(window).build();
            parts(&flash(&p.expect("valid")), &watched).len()
        };
        let (full, causal, window) =
            (count(false, None), count(true, None), count(true, Some(255)));
        assert!(causal <= full * 3 / 4 && window == 1, "{full} {causal} {window}");
    }

    #[test]
    fn grids_stay_within_32_bits() {
        let p = problem(Layout::Bhsd, [1, 1, 1 << 20, 4], 1);
        let operations = [(Operation::UnfusedScores, TILES)];
        let kernel = KernelKind::Unfused;
        let work = Work { problem: &p, kernel, operations: &operations, fold: 1, chunks: None };
        let machine = Machine { grid: u32::MAX, ..machine(1 << 50) };
        for part in parts(&work, &machine) {
            let grid = work.grid(&part, operations[0], part.rows.len(), 1 << 20);
            assert!(grid.items <= u32::MAX.into());
        }
    }
}
