//! Splits a problem into parts that fit the device's bindings, 32-bit indices, grids and watchdog.

use crate::machine::Machine;
use flashtile_core::{
    Argument, KernelKind, Problem, Reason,
    planning::{MAX_WATCHDOG_FLOPS, MAX_WORKSPACE_BYTES},
};
use flashtile_shaders::{Operation, Slot, Tiles};
use std::ops::Range;

/// The part of a problem that one dispatch computes: batch entries, query heads and queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) batch: Range<usize>,
    pub(crate) heads: Range<usize>,
    pub(crate) rows: Range<usize>,
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
        Self { batch: 0..problem.batch(), heads: 0..problem.heads(), rows: 0..problem.seq_q() }
    }

    pub(crate) fn window(&self, problem: &Problem, slot: Slot) -> Window {
        let (b, h, rows) = (&self.batch, &self.heads, &self.rows);
        let group = problem.group_size();
        let kv = h.start / group..(h.end - 1) / group + 1;
        let view =
            |view: &flashtile_core::TensorView, heads: &Range<usize>, rows: &Range<usize>| {
                let columns = 0..view.shape[3];
                strided(&view.strides, [b, heads, rows, &columns], view.dtype.size())
            };
        let keys = 0..problem.seq_kv();
        match slot {
            Slot::Params => Window { start: 0, len: 0, size: 1 },
            Slot::Q => view(problem.q(), h, rows),
            Slot::K => view(problem.k(), &kv, &keys),
            Slot::V => view(problem.v(), &kv, &keys),
            Slot::Out => view(problem.out(), h, rows),
            Slot::Mask => match problem.mask() {
                Some(mask) => strided(&mask.strides, [b, h, rows, &keys], mask.kind.size()),
                None => Window { start: 0, len: 0, size: 1 },
            },
            Slot::Aux => Window { start: b.start as u64, len: b.len() as u64, size: 4 },
            Slot::Lse => {
                let per_head = problem.seq_q();
                strided(&[problem.heads() * per_head, per_head, 1, 0], [b, h, rows, &(0..1)], 4)
            }
            Slot::Scores => {
                // Scores are counted whether or not a tensor's strides make them cheap elsewhere.
                let sizes = [b.len(), h.len(), rows.len(), score_stride(problem)];
                let len = sizes.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
                Window { start: 0, len, size: 4 }
            }
        }
    }

    /// How many elements of a tensor a part would not touch if it were a single entry of `axis`.
    fn reach(&self, problem: &Problem, slot: Slot, axis: Axis) -> u64 {
        let narrow = |range: &Range<usize>| range.start..range.start + 1;
        let less = match axis {
            Axis::Batch => Part { batch: narrow(&self.batch), ..self.clone() },
            Axis::Heads => Part { heads: narrow(&self.heads), ..self.clone() },
            Axis::Rows => Part { rows: narrow(&self.rows), ..self.clone() },
        };
        self.window(problem, slot).len - less.window(problem, slot).len
    }

    /// Both halves along `axis`; `None` where it is a single entry (or a single tile of
    /// `tile_rows`).
    fn cut(&self, axis: Axis, group: usize, tile_rows: usize) -> Option<[Part; 2]> {
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
                // Whole groups first: halves of a group would both read its keys.
                let halves = halve(&self.heads, group).or_else(|| halve(&self.heads, 1))?;
                with(&|heads| Part { heads, ..self.clone() }, halves)
            }
            Axis::Rows => {
                with(&|rows| Part { rows, ..self.clone() }, halve(&self.rows, tile_rows)?)
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
        Slot::Params | Slot::Scores => Argument::Workspace,
    }
}

/// What is being split: a problem with the operations of its kernel and their tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) kernel: KernelKind,
    /// The operations of one part, in order, each with its tiles.
    pub(crate) operations: &'a [(Operation, Tiles)],
}

impl Work<'_> {
    /// Queries per tile: rows are only cut between tiles.
    fn tile_rows(&self) -> usize {
        self.operations.iter().map(|(_, tiles)| tiles.rows() as usize).max().unwrap_or(1)
    }

    /// The tensors whose windows have to fit.
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let kernel = self.kernel;
        Slot::ALL.iter().copied().filter(move |slot| match (slot, kernel) {
            (Slot::Params, _) | (Slot::Scores, KernelKind::Flash) => false,
            (Slot::Scores, KernelKind::Unfused) => true,
            (Slot::Q | Slot::K | Slot::V | Slot::Mask | Slot::Aux | Slot::Out | Slot::Lse, _) => {
                true
            }
        })
    }

    /// FLOPs of one part in a call at capacity. The unfused kernels compute every score; flash only
    /// those that causal masks and windows leave.
    fn flops(&self, part: &Part) -> u64 {
        let problem = self.problem;
        let (seq_q, seq_kv) = (problem.seq_q(), problem.seq_kv());
        let pairs = match self.kernel {
            KernelKind::Flash => problem.band().pairs(part.rows.clone(), seq_q, seq_kv),
            KernelKind::Unfused => (part.rows.len() as u64).saturating_mul(seq_kv as u64),
        };
        let per_pair = 2 * (problem.head_dim() as u64 + problem.head_dim_v() as u64);
        let heads = (part.batch.len() as u64).saturating_mul(part.heads.len() as u64);
        pairs.saturating_mul(heads).saturating_mul(per_pair)
    }
}

/// How many tiles `operation` has per head, for `rows` queries and `seq_kv` keys.
pub(crate) fn tiles_per_head(
    problem: &Problem,
    operation: Operation,
    tiles: Tiles,
    rows: usize,
    seq_kv: usize,
) -> u64 {
    let over = |n: usize, step: u32| (n as u64).div_ceil(step.into());
    match operation {
        Operation::FlashForward => over(rows, tiles.rows()),
        Operation::UnfusedScores => {
            over(rows, tiles.rows()).saturating_mul(over(seq_kv, tiles.keys()))
        }
        Operation::UnfusedSoftmax => rows as u64,
        Operation::UnfusedValues => {
            over(rows, tiles.rows()).saturating_mul(over(problem.head_dim_v(), tiles.keys()))
        }
    }
}

/// Splits the problem until every window of every part fits and no dispatch is too long.
pub(crate) fn split(work: &Work<'_>, machine: &Machine) -> Result<Vec<Part>, Vec<Reason>> {
    let mut open = vec![Part::whole(work.problem)];
    let mut done = Vec::new();
    while let Some(part) = open.pop() {
        match too_much(&part, work, machine) {
            None => done.push(part),
            Some(excess) => match cut(&part, work, excess.slot) {
                Some(_) if done.len() + open.len() >= MAX_PARTS => {
                    return Err(vec![Reason::TooManyDispatches { limit: MAX_PARTS as u64 }]);
                }
                Some([first, second]) => open.extend([second, first]),
                None => match excess.reason {
                    Some(reason) => return Err(vec![reason]),
                    None => done.push(part),
                },
            },
        }
    }
    Ok(done)
}

/// Why a part should be cut.
struct Excess {
    /// The tensor that does not fit; `None` where it is the amount of work.
    slot: Option<Slot>,
    /// Why the problem is refused where no cut helps; `None` where the part may stay as it is.
    reason: Option<Reason>,
}

/// What does not fit in one dispatch.
fn too_much(part: &Part, work: &Work<'_>, machine: &Machine) -> Option<Excess> {
    for slot in work.slots() {
        let window = part.window(work.problem, slot);
        // Bindings start at multiples of the alignment. The caller's own offset is only known at
        // the call; one that is not such a multiple is checked again there.
        let before = window.start.saturating_mul(window.size) % machine.offset_alignment;
        let bytes = window.len.saturating_mul(window.size).saturating_add(before);
        let needed = bytes.checked_next_multiple_of(4).unwrap_or(u64::MAX);
        let limit = match slot {
            Slot::Scores => machine.binding_size.min(MAX_WORKSPACE_BYTES),
            _ => machine.binding_size,
        };
        let argument = argument(slot);
        if needed > limit {
            let reason = Reason::BindingSize { argument, needed, limit };
            return Some(Excess { slot: Some(slot), reason: Some(reason) });
        }
        let indexed = window.len.saturating_add(machine.offset_alignment);
        if indexed > u64::from(u32::MAX) {
            let reason = Reason::IndexRange { argument, needed: indexed };
            return Some(Excess { slot: Some(slot), reason: Some(reason) });
        }
    }
    // Kernels count workgroups in 32 bits, over both axes of the grid.
    let limit = (u64::from(machine.grid) * u64::from(machine.grid)).min(u32::MAX.into());
    let heads = (part.batch.len() as u64).saturating_mul(part.heads.len() as u64);
    let workgroups = work.operations.iter().map(|&(operation, tiles)| {
        let (rows, keys) = (part.rows.len(), work.problem.seq_kv());
        tiles_per_head(work.problem, operation, tiles, rows, keys).saturating_mul(heads)
    });
    let needed = workgroups.max().unwrap_or(0);
    if needed > limit {
        let given = machine.grid.into();
        let limit = "max_compute_workgroups_per_dimension";
        let reason = Reason::DeviceLimit { limit, given, needed: needed.isqrt() + 1 };
        return Some(Excess { slot: None, reason: Some(reason) });
    }
    let long = machine.watchdog && work.flops(part) > MAX_WATCHDOG_FLOPS;
    long.then_some(Excess { slot: None, reason: None })
}

fn cut(part: &Part, work: &Work<'_>, slot: Option<Slot>) -> Option<[Part; 2]> {
    let problem = work.problem;
    let mut axes = [Axis::Batch, Axis::Heads, Axis::Rows];
    if let Some(slot) = slot {
        axes.sort_by_key(|&axis| std::cmp::Reverse(part.reach(problem, slot, axis)));
    }
    axes.into_iter()
        .filter(|&axis| slot.is_none_or(|slot| part.reach(problem, slot, axis) > 0))
        .find_map(|axis| part.cut(axis, problem.group_size(), work.tile_rows()))
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
        Work { problem, kernel: KernelKind::Flash, operations }
    }

    fn machine(binding_size: u64) -> Machine {
        Machine { binding_size, watchdog: false, ..Machine::baseline() }
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
        assert_eq!(split(&flash(&p), &machine(1 << 20)), Ok(vec![Part::whole(&p)]));
    }

    #[test]
    fn parts_cover_the_problem_and_fit() {
        for &layout in Layout::ALL {
            let p = problem(layout, [2, 4, 64, 16], 2);
            // K of one head takes 4 KiB densely, four times that between the heads of bshd.
            let limit = 17 << 10;
            let parts = split(&flash(&p), &machine(limit)).expect("strides allow it");
            assert!(parts.len() > 1, "{layout}");
            assert_partition(&p, &parts);
            for part in &parts {
                for slot in flash(&p).slots() {
                    assert!(part.window(&p, slot).len * 4 <= limit, "{layout} {slot:?}");
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

    #[test]
    fn a_tensor_of_exactly_one_binding_fits() {
        let p = problem(Layout::Bhsd, [1, 1, 4096, 64], 1);
        assert_eq!(split(&flash(&p), &machine(1 << 20)), Ok(vec![Part::whole(&p)]));
    }

    #[test]
    fn a_watchdog_cuts_long_work() {
        let p = problem(Layout::Bhsd, [1, 8, 16384, 128], 8);
        let watched = Machine { watchdog: true, ..machine(1 << 30) };
        let parts = split(&flash(&p), &watched).expect("fits");
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
            split(&flash(&p.expect("valid")), &watched).expect("fits").len()
        };
        let (full, causal, window) =
            (count(false, None), count(true, None), count(true, Some(255)));
        assert!(causal <= full * 3 / 4 && window == 1, "{full} {causal} {window}");
    }

    #[test]
    fn grids_stay_within_32_bits() {
        let p = problem(Layout::Bhsd, [1, 1, 1 << 20, 4], 1);
        let operations = [(Operation::UnfusedScores, TILES)];
        let work = Work { problem: &p, kernel: KernelKind::Unfused, operations: &operations };
        let machine = Machine { grid: u32::MAX, ..machine(1 << 50) };
        for part in split(&work, &machine).expect("fits") {
            let tiles =
                tiles_per_head(&p, Operation::UnfusedScores, TILES, part.rows.len(), 1 << 20);
            assert!(tiles <= u32::MAX.into());
        }
    }
}
