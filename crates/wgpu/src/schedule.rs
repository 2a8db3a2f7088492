//! What a plan dispatches, decided from the problem and a few numbers of the device. No device is
//! needed to ask.

use crate::machine::Machine;
use crate::parts::{Part, Work, score_stride, split, tiles_per_head};
use crate::tiles::{choose_tiles, over_loop_budget, variant};
use flashtile_core::{
    KernelKind, PlanOptions, Problem, Reason, ResolvedCall, TensorView,
    planning::{SizeLimits, matrix_units_without_flash, oversized, tiles_without_flash},
};
use flashtile_shaders::{
    Constants, Operation, Params, SOFTMAX_TILES, Slot, Tiles, UNFUSED_TILES, Variant,
};

/// How a problem is computed: the same dispatches for every call, whatever its buffers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) kernel: KernelKind,
    pub(crate) tiles: Tiles,
    pub(crate) constants: Constants,
    /// In order; those of one part follow each other.
    pub(crate) steps: Vec<Step>,
    pub(crate) parts: Vec<Part>,
    pub(crate) workspace_bytes: u64,
    /// Why it is as it is.
    pub(crate) rationale: Vec<String>,
    grid: u32,
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) variant: Variant,
    /// Index in [`Schedule::parts`].
    pub(crate) part: usize,
}

pub(crate) fn schedule(
    problem: &Problem,
    kernel: KernelKind,
    options: &PlanOptions<Tiles>,
    machine: &Machine,
) -> Result<Schedule, Vec<Reason>> {
    let limits = SizeLimits { buffer_bytes: machine.buffer_size, axis: i32::MAX as usize };
    let mut reasons = oversized(problem, &limits);
    reasons.extend(tiles_without_flash(kernel, options));
    reasons.extend(matrix_units_without_flash(kernel, options));
    if !reasons.is_empty() {
        // Splitting what no buffer holds may take long.
        return Err(reasons);
    }
    let mut rationale = Vec::new();
    let (tiles, operations) = match kernel {
        KernelKind::Flash => {
            let tiles = choose_tiles(problem, machine, options, &mut rationale)?;
            (tiles, vec![(Operation::FlashForward, tiles)])
        }
        KernelKind::Unfused => {
            let operations = vec![
                (Operation::UnfusedScores, UNFUSED_TILES),
                (Operation::UnfusedSoftmax, SOFTMAX_TILES),
                (Operation::UnfusedValues, UNFUSED_TILES),
            ];
            (UNFUSED_TILES, operations)
        }
    };
    let variants: Vec<_> =
        operations.iter().map(|&(operation, tiles)| variant(problem, operation, tiles)).collect();
    reasons.extend(variants.iter().filter_map(|v| over_loop_budget(problem, machine, v)));
    let work = Work { problem, kernel, operations: &operations };
    let parts = if problem.is_empty() { Ok(Vec::new()) } else { split(&work, machine) };
    let parts = match parts {
        Ok(parts) if reasons.is_empty() => parts,
        Ok(_) => return Err(reasons),
        Err(more) => return Err(reasons.into_iter().chain(more).collect()),
    };
    if parts.len() > 1 {
        let watchdog = if machine.watchdog { ", and no dispatch may run long" } else { "" };
        let bytes = machine.binding_size;
        rationale.push(format!("{} parts: bindings hold {bytes} bytes{watchdog}", parts.len()));
    }
    let steps = (0..parts.len())
        .flat_map(|part| variants.iter().map(move |&variant| Step { variant, part }))
        .collect();
    let scores = |part: &Part| 4 * part.window(problem, Slot::Scores).len;
    let workspace_bytes = match kernel {
        KernelKind::Flash => 0,
        KernelKind::Unfused => parts.iter().map(scores).max().unwrap_or(0).max(4),
    };
    Ok(Schedule {
        kernel,
        tiles,
        constants: Constants {
            softcap: problem.softcap().is_some(),
            dropout: problem.dropout().is_some(),
            by_four: (problem.head_dim() | problem.head_dim_v()).is_multiple_of(4),
        },
        steps,
        parts,
        workspace_bytes,
        rationale,
        grid: machine.grid,
    })
}

impl Schedule {
    /// Parameters and workgroups of one step; `None` where this call leaves nothing to do.
    /// `offset(slot)` is the distance in elements from the start of a binding to the first element
    /// of the tensor's part.
    pub(crate) fn dispatch(
        &self,
        problem: &Problem,
        step: &Step,
        call: &ResolvedCall,
        offset: impl Fn(Slot) -> u32,
    ) -> Option<(Params, [u32; 2])> {
        let part = &self.parts[step.part];
        let rows = part.rows.start..part.rows.end.min(call.seq_q);
        if rows.is_empty() {
            return None;
        }
        let Variant { operation, tiles, .. } = step.variant;
        let per_head = tiles_per_head(problem, operation, tiles, rows.len(), call.seq_kv);
        let items = per_head * part.heads.len() as u64 * part.batch.len() as u64;
        let count = |n: u64| u32::try_from(n).expect("parts are split to fit 32 bits");
        let (tile_count, item_count) = (count(per_head), count(items));
        if item_count == 0 {
            return None;
        }
        // As square as necessary: at most `grid` workgroups along an axis.
        let height = item_count.div_ceil(self.grid);
        let width = item_count.div_ceil(height);
        let params = Params {
            tile_count,
            item_count,
            grid_width: width,
            seq_q: call.seq_q as u32,
            seq_kv: call.seq_kv as u32,
            scale: call.scale,
            dropout_offset: call.offset,
            seed: [call.seed as u32, (call.seed >> 32) as u32],
            q_offset: offset(Slot::Q),
            k_offset: offset(Slot::K),
            v_offset: offset(Slot::V),
            out_offset: offset(Slot::Out),
            mask_offset: offset(Slot::Mask),
            lse_offset: offset(Slot::Lse),
            kv_lens_offset: offset(Slot::Aux),
            batch_begin: part.batch.start as u32,
            head_begin: part.heads.start as u32,
            head_count: part.heads.len() as u32,
            row_begin: rows.start as u32,
            row_end: rows.end as u32,
            rolled: tiles.keys(),
            ..constant_params(problem)
        };
        Some((params, [width, height]))
    }
}

/// The parameters that are the same in every dispatch and call.
fn constant_params(problem: &Problem) -> Params {
    let strides = |view: &TensorView| view.strides.map(|stride| stride as u32);
    let band = problem.band();
    let dropout = problem.dropout();
    Params {
        q_strides: strides(problem.q()),
        k_strides: strides(problem.k()),
        v_strides: strides(problem.v()),
        out_strides: strides(problem.out()),
        mask_strides: problem.mask().map_or([0; 4], |mask| mask.strides.map(|n| n as u32)),
        lse_rows: problem.seq_q() as u32,
        heads: problem.heads() as u32,
        group: problem.group_size() as u32,
        band_lo: band.lo,
        band_hi: band.hi,
        bottom_right: band.bottom_right.into(),
        // 2^32 (everything is dropped) does not fit; a keep_scale of 0 stands for it.
        dropout_threshold: dropout.map_or(0, |d| d.threshold.min(u32::MAX.into()) as u32),
        keep_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale),
        softcap: problem.softcap().unwrap_or(1.0),
        score_stride: score_stride(problem) as u32,
        head_dim: problem.head_dim() as u32,
        head_dim_v: problem.head_dim_v() as u32,
        ..Params::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{Call, DType};
    use flashtile_shaders::{BlockTiles, FLASH_TILES};

    const AUTO: PlanOptions<Tiles> = PlanOptions::new();

    fn problem(dtype: DType, shape: [usize; 4]) -> Problem {
        let view = TensorView::bhsd(dtype, shape).expect("addressable");
        Problem::builder(view, view, view).build().expect("valid")
    }

    fn flash(shape: [usize; 4], machine: &Machine) -> Schedule {
        let problem = problem(DType::F16, shape);
        schedule(&problem, KernelKind::Flash, &AUTO, machine).expect("runs")
    }

    /// A decode step over `keys` keys.
    fn decode(keys: usize, dim: usize) -> Problem {
        let view = |seq| TensorView::bhsd(DType::F32, [1, 2, seq, dim]).expect("small");
        Problem::builder(view(1), view(keys), view(keys)).build().expect("valid")
    }

    #[test]
    fn baseline_limits_serve_every_head_dim() {
        for head_dim in 1..=512 {
            for seq_q in [1, 100] {
                let plan = flash([1, 1, seq_q, head_dim], &Machine::baseline());
                assert!(plan.tiles.flash_workgroup_bytes() <= 16 * 1024);
                assert!(
                    Variant::all().any(|v| v == plan.steps[0].variant),
                    "every chosen variant is listed"
                );
            }
        }
    }

    #[test]
    fn larger_limits_get_larger_tiles() {
        let large = Machine { workgroup_bytes: 48 << 10, invocations: 1024, ..Machine::baseline() };
        let rows = |machine| flash([1, 1, 1024, 128], machine).tiles.rows();
        assert!(rows(&large) > rows(&Machine::baseline()));
    }

    #[test]
    fn the_limit_that_stands_in_the_way_is_named() {
        let problem = problem(DType::F32, [1, 1, 64, 64]);
        let refusal = |options: PlanOptions<Tiles>, machine: &Machine| {
            schedule(&problem, KernelKind::Flash, &options, machine).expect_err("too small")
        };
        let limit = |reasons: Vec<Reason>| match reasons[..] {
            [Reason::DeviceLimit { limit, .. }] => limit,
            ref other => panic!("{other:?}"),
        };
        let (bytes, threads) =
            ("max_compute_workgroup_storage_size", "max_compute_invocations_per_workgroup");
        let small = Machine { workgroup_bytes: 1 << 10, ..Machine::baseline() };
        assert_eq!(limit(refusal(AUTO, &small)), bytes);
        let narrow = Machine { invocations: 32, ..Machine::baseline() };
        assert_eq!(limit(refusal(AUTO, &narrow)), threads);
        let wide = Machine { workgroup_bytes: 1 << 20, invocations: 64, ..Machine::baseline() };
        let large = FLASH_TILES.into_iter().find(|tiles| tiles.threads() == 128).expect("listed");
        assert_eq!(limit(refusal(AUTO.tiles(large), &wide)), threads);
        let short = Machine { invocations: 256, ..Machine::baseline() };
        let deep = FLASH_TILES.into_iter().find(|t| t.flash_workgroup_bytes() > 16 << 10);
        assert_eq!(limit(refusal(AUTO.tiles(deep), &short)), bytes);
    }

    #[test]
    fn tiles_that_cannot_be_used_are_refused() {
        let problem = problem(DType::F32, [1, 1, 64, 512]);
        let refusal = |kernel, tiles| {
            let options = AUTO.tiles(tiles);
            schedule(&problem, kernel, &options, &Machine::baseline()).expect_err("refused")
        };
        let narrow = refusal(KernelKind::Flash, FLASH_TILES[2]);
        assert!(matches!(narrow[..], [Reason::Tiles { .. }]), "{narrow:?}");
        let unfused = refusal(KernelKind::Unfused, FLASH_TILES[2]);
        assert!(matches!(unfused[..], [Reason::Tiles { .. }]), "{unfused:?}");
        let unknown = refusal(
            KernelKind::Flash,
            Tiles::Block(BlockTiles { tx: 3, ty: 8, kc: 16, qw4: 16, ot: 1 }),
        );
        assert!(matches!(unknown[..], [Reason::Tiles { .. }]), "{unknown:?}");
    }

    #[test]
    fn heads_wider_than_registers_are_refused() {
        let problem = problem(DType::F32, [1, 1, 4, 513]);
        let refused = schedule(&problem, KernelKind::Flash, &AUTO, &Machine::baseline());
        let reason = Reason::Axis { axis: "head_dim_v", given: 513, max: 512 };
        assert_eq!(refused.expect_err("too wide"), [reason]);
        assert!(schedule(&problem, KernelKind::Unfused, &AUTO, &Machine::baseline()).is_ok());
    }

    #[test]
    fn rows_beyond_counting_are_refused() {
        let wide = |rows| TensorView::strided(DType::F32, [1, 1, rows, 1 << 33], [0; 4]);
        let view = |rows| TensorView::bhsd(DType::F32, [1, 1, rows, 4]).expect("small");
        let problem = Problem::builder(wide(2), wide(3), view(3)).out(view(2)).build();
        let problem = problem.expect("valid");
        for &kernel in KernelKind::ALL {
            let refused = schedule(&problem, kernel, &AUTO, &Machine::baseline());
            let refused = refused.expect_err("too wide");
            assert!(matches!(refused[..], [Reason::Axis { axis: "head_dim", .. }]), "{refused:?}");
        }
    }

    #[test]
    fn work_in_countless_parts_is_refused_at_once() {
        let machine = Machine { buffer_size: u64::MAX, ..Machine::baseline() };
        for shape in [
            [1 << 30, 1 << 20, 1, 64],
            [1 << 25, 1 << 25, 1 << 8, 1],
            [1 << 20, 1 << 20, 1 << 10, 16],
        ] {
            let problem = problem(DType::F16, shape);
            for &kernel in KernelKind::ALL {
                let refused = schedule(&problem, kernel, &AUTO, &machine).expect_err("too many");
                assert!(
                    matches!(refused[..], [Reason::TooManyDispatches { .. }]),
                    "{shape:?} {kernel} {refused:?}"
                );
            }
        }
    }

    #[test]
    fn grids_over_the_limit_fold() {
        let machine = Machine { grid: 7, ..Machine::baseline() };
        let problem = problem(DType::F32, [3, 5, 64, 8]);
        let plan = schedule(&problem, KernelKind::Flash, &AUTO, &machine).expect("runs");
        let call = Call::new().resolve(&problem).expect("valid");
        let dispatch = plan.dispatch(&problem, &plan.steps[0], &call, |_| 0);
        let (params, [x, y]) = dispatch.expect("has work");
        assert!(x <= 7 && x * y >= params.item_count && params.grid_width == x);
    }

    /// llvmpipe of Mesa 22.3: whatever is scheduled stays within the budget, longer keys get
    /// another variant, and what no variant can do is refused with that reason.
    #[test]
    fn loop_budgets_are_kept() {
        let old = Machine {
            binding_size: 1 << 31,
            buffer_size: 1 << 32,
            loop_budget: Some(65_535),
            software: true,
            lanes: 8,
            ..Machine::baseline()
        };
        let new = Machine { loop_budget: None, ..old.clone() };
        for dim in [32, 64, 128, 512] {
            for keys in [512, 2048, 4099, 8192, 16384, 65536, 1 << 18] {
                let problem = decode(keys, dim);
                assert!(schedule(&problem, KernelKind::Flash, &AUTO, &new).is_ok());
                for &kernel in KernelKind::ALL {
                    match schedule(&problem, kernel, &AUTO, &old) {
                        Ok(plan) => {
                            for step in &plan.steps {
                                let shape = crate::tiles::loop_shape(&problem, &step.variant);
                                assert!(step.variant.loop_iterations(&shape) <= 65_535);
                            }
                        }
                        Err(reasons) => {
                            let budget = |r: &Reason| matches!(r, Reason::LoopBudget { .. });
                            assert!(
                                reasons.iter().all(budget),
                                "{keys} {dim} {kernel}: {reasons:?}"
                            );
                        }
                    }
                }
            }
            let short = schedule(&decode(1024, dim), KernelKind::Flash, &AUTO, &old);
            assert!(short.is_ok(), "head_dim {dim}: {short:?}");
            let unfused = schedule(&decode(16384, dim), KernelKind::Unfused, &AUTO, &old);
            assert!(unfused.is_ok(), "head_dim {dim}: {unfused:?}");
        }
        let long = schedule(&decode(1 << 20, 128), KernelKind::Flash, &AUTO, &old);
        assert!(matches!(long.expect_err("too long")[..], [Reason::LoopBudget { .. }]));
        // A window bounds the loops whatever the length.
        let view = |seq| TensorView::bhsd(DType::F32, [1, 1, seq, 64]).expect("small");
        let (q, kv) = (view(1), view(1 << 18));
        let window = Problem::builder(q, kv, kv).causal(true).window_left(1000).build();
        let window = window.expect("valid");
        assert!(schedule(&window, KernelKind::Flash, &AUTO, &old).is_ok());
    }
}
