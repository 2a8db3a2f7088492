//! Cuts a problem where a binding, an index or a display watchdog would not hold it whole.

use crate::schedule::Machine;
use flashtile_core::{Argument, Problem, Reason};
use flashtile_shaders::Slot;
use std::ops::Range;

/// The piece of a problem that one dispatch does: batch entries, query heads and queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) batch: Range<usize>,
    pub(crate) heads: Range<usize>,
    pub(crate) rows: Range<usize>,
}

/// The elements of one tensor that a part touches: from `begin`, `len` elements of `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) begin: u64,
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

/// Bytes of scores that unfused kernels keep at once, at most: beyond, they do the problem in pieces.
const MAX_WORKSPACE: u64 = 256 << 20;

/// FLOPs of one dispatch, at most, where a display may wait: 0.1 s at 2 TFLOP/s, and below Windows' limit of 2 s at 0.1.
const MAX_DISPATCH_FLOPS: u64 = 200_000_000_000;

/// Parts that a plan lists, at most: at the FLOPs of a dispatch above, 5 * 10^16, which is hours.
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
            Slot::Params => Window { begin: 0, len: 0, size: 1 },
            Slot::Q => view(problem.q(), h, rows),
            Slot::K => view(problem.k(), &kv, &keys),
            Slot::V => view(problem.v(), &kv, &keys),
            Slot::Out => view(problem.out(), h, rows),
            Slot::Mask => match problem.mask() {
                Some(mask) => strided(&mask.strides, [b, h, rows, &keys], mask.kind.size()),
                None => Window { begin: 0, len: 0, size: 1 },
            },
            Slot::Aux => Window { begin: b.start as u64, len: b.len() as u64, size: 4 },
            Slot::Lse => {
                let per_head = problem.seq_q();
                strided(&[problem.heads() * per_head, per_head, 1, 0], [b, h, rows, &(0..1)], 4)
            }
            Slot::Scores => {
                // Scores are counted whether or not a tensor's strides make them cheap elsewhere.
                let sizes = [b.len(), h.len(), rows.len(), score_stride(problem)];
                let len = sizes.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
                Window { begin: 0, len, size: 4 }
            }
        }
    }

    /// How many elements further a tensor reaches for every axis that could be cut.
    fn reach(&self, problem: &Problem, slot: Slot, axis: Axis) -> u64 {
        let narrow = |range: &Range<usize>| range.start..range.start + 1;
        let less = match axis {
            Axis::Batch => Part { batch: narrow(&self.batch), ..self.clone() },
            Axis::Heads => Part { heads: narrow(&self.heads), ..self.clone() },
            Axis::Rows => Part { rows: narrow(&self.rows), ..self.clone() },
        };
        self.window(problem, slot).len - less.window(problem, slot).len
    }

    /// Both halves along `axis`; `None` where it is a single entry (or a single tile of `tile_rows`).
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
        return Window { begin: 0, len: 0, size: size as u64 };
    }
    let sum = |at: &dyn Fn(&Range<usize>) -> usize| -> u64 {
        ranges.iter().zip(strides).map(|(range, &stride)| (at(range) * stride) as u64).sum()
    };
    let begin = sum(&|range| range.start);
    Window { begin, len: sum(&|range| range.end - 1) - begin + 1, size: size as u64 }
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

/// The slots whose windows count for one kernel.
pub(crate) const FLASH_SLOTS: [Slot; 7] =
    [Slot::Q, Slot::K, Slot::V, Slot::Mask, Slot::Aux, Slot::Out, Slot::Lse];
/// As [`FLASH_SLOTS`], with the workspace.
pub(crate) const UNFUSED_SLOTS: [Slot; 8] =
    [Slot::Q, Slot::K, Slot::V, Slot::Mask, Slot::Aux, Slot::Out, Slot::Lse, Slot::Scores];

/// Cuts the problem until every window of every part fits, and no dispatch runs too long.
pub(crate) fn split(
    problem: &Problem,
    machine: &Machine,
    slots: &[Slot],
    tile_rows: usize,
) -> Result<Vec<Part>, Vec<Reason>> {
    let mut open = vec![Part::whole(problem)];
    let mut done = Vec::new();
    while let Some(part) = open.pop() {
        match too_much(&part, problem, machine, slots, tile_rows) {
            None => done.push(part),
            Some(excess) => match cut(&part, problem, excess.slot, tile_rows) {
                Some(_) if done.len() + open.len() >= MAX_PARTS => {
                    let argument = excess.slot.map_or(Argument::Workspace, argument);
                    return Err(vec![Reason::Pieces { argument, limit: MAX_PARTS }]);
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
    /// The tensor that does not fit; `None` where it is the work.
    slot: Option<Slot>,
    /// Why the problem is refused where no cut helps; `None` where it may stay as it is.
    reason: Option<Reason>,
}

/// What does not fit in one dispatch.
fn too_much(
    part: &Part,
    problem: &Problem,
    machine: &Machine,
    slots: &[Slot],
    tile_rows: usize,
) -> Option<Excess> {
    for &slot in slots {
        let window = part.window(problem, slot);
        // The caller's offset is only known at the call: what it is off the binding alignment comes on top.
        let needed =
            window.len.saturating_mul(window.size).saturating_add(3 + machine.offset_alignment) / 4
                * 4;
        let limit = match slot {
            Slot::Scores => machine.binding_size.min(MAX_WORKSPACE),
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
    let rows = part.batch.len() as u64 * part.heads.len() as u64 * part.rows.len() as u64;
    // The most workgroups of any operation: a row each for softmax, a tile each for scores.
    let tiles =
        rows.div_ceil(tile_rows as u64).saturating_mul((problem.seq_kv() as u64).div_ceil(32));
    let (needed, limit) = (rows.max(tiles), u64::from(machine.grid) * u64::from(machine.grid));
    if needed > limit {
        let given = machine.grid.into();
        let reason = Reason::DeviceLimit {
            limit: "max_compute_workgroups_per_dimension",
            given,
            needed: needed.isqrt() + 1,
        };
        return Some(Excess { slot: None, reason: Some(reason) });
    }
    let per_score = 2 * (problem.head_dim() as u64 + problem.head_dim_v() as u64);
    let flops = rows.saturating_mul(problem.seq_kv() as u64).saturating_mul(per_score);
    (machine.watchdog && flops > MAX_DISPATCH_FLOPS).then_some(Excess { slot: None, reason: None })
}

fn cut(part: &Part, problem: &Problem, slot: Option<Slot>, tile_rows: usize) -> Option<[Part; 2]> {
    let mut axes = [Axis::Batch, Axis::Heads, Axis::Rows];
    if let Some(slot) = slot {
        axes.sort_by_key(|&axis| std::cmp::Reverse(part.reach(problem, slot, axis)));
    }
    axes.into_iter()
        .filter(|&axis| slot.is_none_or(|slot| part.reach(problem, slot, axis) > 0))
        .find_map(|axis| part.cut(axis, problem.group_size(), tile_rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{DType, Layout, TensorView};

    fn problem(layout: Layout, shape: [usize; 4], kv_heads: usize) -> Problem {
        let q = TensorView::from_bhsd_sizes(DType::F32, layout, shape).expect("small");
        let kv = TensorView::from_bhsd_sizes(
            DType::F32,
            layout,
            [shape[0], kv_heads, shape[2], shape[3]],
        )
        .expect("small");
        Problem::builder(q, kv, kv).lse(true).build().expect("valid")
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
        assert_eq!(split(&p, &machine(1 << 20), &FLASH_SLOTS, 32), Ok(vec![Part::whole(&p)]));
    }

    #[test]
    fn parts_cover_the_problem_and_fit() {
        for &layout in Layout::ALL {
            let p = problem(layout, [2, 4, 64, 16], 2);
            // K of one head takes 4 KiB densely, four times that between the heads of bshd.
            let limit = 17 << 10;
            let parts = split(&p, &machine(limit), &FLASH_SLOTS, 32).expect("strides allow it");
            assert!(parts.len() > 1, "{layout}");
            assert_partition(&p, &parts);
            for part in &parts {
                for slot in FLASH_SLOTS {
                    assert!(part.window(&p, slot).len * 4 <= limit, "{layout} {slot:?}");
                }
            }
        }
    }

    #[test]
    fn keys_that_cannot_be_cut_are_refused() {
        let p = problem(Layout::Bhsd, [1, 1, 4096, 64], 1);
        let refused =
            split(&p, &machine(1 << 19), &FLASH_SLOTS, 32).expect_err("K needs a megabyte");
        assert!(
            matches!(refused[0], Reason::BindingSize { argument: Argument::K, .. }),
            "{refused:?}"
        );
    }

    #[test]
    fn a_watchdog_cuts_long_work() {
        let p = problem(Layout::Bhsd, [1, 8, 16384, 128], 8);
        let parts = split(&p, &Machine { watchdog: true, ..machine(1 << 30) }, &FLASH_SLOTS, 32)
            .expect("fits");
        assert!(parts.len() > 4);
        assert_partition(&p, &parts);
    }
}
