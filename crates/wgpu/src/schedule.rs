//! What a plan dispatches, decided from the problem and a few numbers of the device. No device is
//! needed to ask.

use crate::machine::Machine;
use crate::parts::{Part, Window, Work, score_stride, split};
use crate::tiles::{Choice, choose_tiles, over_loop_budget, variant};
use crate::{ProblemKind, TileChoice, Tuning};
use flashtile_core::{
    DType, KernelKind, KeyChunks, KeySplit, NoMatrixUnits, PlanOptions, Problem, Reason,
    ResolvedCall, TensorView,
    planning::{SizeLimits, flash_options, folded_heads, oversized},
};
use flashtile_shaders::{
    Constants, MERGE_TILES, Operation, Params, SOFTMAX_TILES, Slot, Tiles, UNFUSED_TILES, Variant,
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
    /// The chunks of keys, where the keys of a row are split.
    pub(crate) chunks: Option<KeyChunks>,
    /// Why it is as it is.
    pub(crate) rationale: Vec<String>,
    /// Why the flash kernel does not use matrix units.
    pub(crate) no_matrix_units: Option<NoMatrixUnits>,
    /// Whether its tiles come from a table of measured shapes.
    pub(crate) measured: bool,
    operations: Vec<(Operation, Tiles)>,
    fold: usize,
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
    schedule_named(problem, kernel, options, machine, "requested")
}

/// As [`schedule`]. What `options` force is there because it was `named`.
fn schedule_named(
    problem: &Problem,
    kernel: KernelKind,
    options: &PlanOptions<Tiles>,
    machine: &Machine,
    named: &str,
) -> Result<Schedule, Vec<Reason>> {
    let limits = SizeLimits::new(machine.buffer_size, i32::MAX as usize);
    let mut reasons = oversized(problem, &limits);
    reasons.extend(flash_options(kernel, options));
    if !reasons.is_empty() {
        // Splitting what no buffer holds may take long.
        return Err(reasons);
    }
    match kernel {
        KernelKind::Flash => flash(problem, options, machine, named),
        KernelKind::Unfused => unfused(problem, machine),
    }
}

/// The schedule with the fastest of the measured shapes that runs here with `options`, or else
/// `planned`, which is what the planner chose without the table.
pub(crate) fn measured(
    tuning: &Tuning,
    problem: &Problem,
    options: &PlanOptions<Tiles>,
    machine: &Machine,
    planned: Schedule,
) -> Schedule {
    if planned.kernel != KernelKind::Flash || options.tiles.is_some() {
        return planned;
    }
    // The table knows only kernels that do not round inputs.
    if planned.tiles.uses_matrix_units() && problem.dtype() != DType::F16 {
        return planned;
    }
    let kind = ProblemKind::of(problem);
    let named = "measured";
    let runs = |choice: &TileChoice| {
        schedule_named(problem, planned.kernel, &choice.within(options), machine, named).ok()
    };
    let Some(mut found) = tuning.choices(&kind).iter().find_map(runs) else { return planned };
    let (tiles, without) = (found.tiles, planned.tiles);
    let instead = if tiles == without { String::new() } else { format!("; planned: {without}") };
    found.rationale[0] = format!("{tiles}: measured to be the fastest here ({kind}){instead}");
    if !tiles.uses_matrix_units() {
        let why = planned.no_matrix_units.unwrap_or(NoMatrixUnits::Slower);
        found.rationale.insert(1, format!("no matrix units: {why}"));
        found.no_matrix_units = Some(why);
    }
    Schedule { measured: true, ..found }
}

/// Takes the first way to split the keys, and to fold heads, that fits the bindings.
fn flash(
    problem: &Problem,
    options: &PlanOptions<Tiles>,
    machine: &Machine,
    named: &str,
) -> Result<Schedule, Vec<Reason>> {
    let Choice { tiles, splits, why, no_matrix_units } = choose_tiles(problem, machine, options)?;
    let mut folds = vec![folded_heads(problem, tiles.rows() as usize), 1];
    folds.dedup();
    let mut refused = Vec::new();
    for &chunks in &splits {
        let operations = match chunks {
            None => vec![(Operation::FlashForward, tiles)],
            Some(_) => {
                vec![(Operation::FlashSplit, tiles), (Operation::FlashMerge, MERGE_TILES)]
            }
        };
        for &fold in &folds {
            let kernel = KernelKind::Flash;
            let work = Work { problem, kernel, operations: &operations, fold, chunks };
            match parts_of(&work, machine) {
                Ok(parts) => {
                    let mut schedule = assemble(&work, tiles, parts, machine);
                    let mut rationale = vec![why];
                    let without = no_matrix_units.as_ref();
                    rationale.extend(without.map(|reason| format!("no matrix units: {reason}")));
                    rationale
                        .extend(chunks.map(|chunks| why_split(problem, options, chunks, named)));
                    if fold > 1 {
                        rationale.push(format!("rows are those of {fold} heads of a group"));
                    }
                    rationale.append(&mut schedule.rationale);
                    return Ok(Schedule { rationale, no_matrix_units, ..schedule });
                }
                Err(reasons) => {
                    let size = |r: &Reason| {
                        matches!(r, Reason::BindingSize { .. } | Reason::IndexRange { .. })
                    };
                    let final_answer = !reasons.iter().all(size);
                    refused = reasons;
                    if final_answer {
                        return Err(refused);
                    }
                }
            }
        }
    }
    Err(refused)
}

fn why_split(
    problem: &Problem,
    options: &PlanOptions<Tiles>,
    chunks: KeyChunks,
    named: &str,
) -> String {
    let (seq_q, seq_kv) = (problem.seq_q(), problem.seq_kv());
    let why = if options.key_split != KeySplit::Auto {
        named.to_owned()
    } else if KeyChunks::of_few_queries(seq_q, seq_kv) == Some(chunks) {
        format!("few queries over many keys (seq_q {seq_q}, seq_kv {seq_kv})")
    } else {
        "a binding or the loop budget holds no larger ones".to_owned()
    };
    format!("{chunks}, merged in ascending order: {why}")
}

fn unfused(problem: &Problem, machine: &Machine) -> Result<Schedule, Vec<Reason>> {
    let operations = [
        (Operation::UnfusedScores, UNFUSED_TILES),
        (Operation::UnfusedSoftmax, SOFTMAX_TILES),
        (Operation::UnfusedValues, UNFUSED_TILES),
    ];
    let over_budget = operations.iter().filter_map(|&(operation, tiles)| {
        over_loop_budget(problem, machine, &variant(problem, operation, tiles), None)
    });
    let reasons: Vec<_> = over_budget.collect();
    let kernel = KernelKind::Unfused;
    let work = Work { problem, kernel, operations: &operations, fold: 1, chunks: None };
    match parts_of(&work, machine) {
        Ok(parts) if reasons.is_empty() => Ok(assemble(&work, UNFUSED_TILES, parts, machine)),
        Ok(_) => Err(reasons),
        Err(more) => Err(reasons.into_iter().chain(more).collect()),
    }
}

fn parts_of(work: &Work<'_>, machine: &Machine) -> Result<Vec<Vec<Part>>, Vec<Reason>> {
    if work.problem.is_empty() { Ok(Vec::new()) } else { split(work, machine) }
}

/// The dispatches: for each part of the result every operation on its keys, and then the merge.
fn assemble(
    work: &Work<'_>,
    tiles: Tiles,
    split_parts: Vec<Vec<Part>>,
    machine: &Machine,
) -> Schedule {
    let problem = work.problem;
    let (mut steps, mut parts) = (Vec::new(), Vec::new());
    for over_keys in split_parts {
        let (first, count) = (parts.len(), over_keys.len());
        let whole = Part { keys: 0..problem.seq_kv(), ..over_keys[0].clone() };
        parts.extend(over_keys);
        for &(operation, tiles) in work.operations {
            let variant = variant(problem, operation, tiles);
            if operation != Operation::FlashMerge || count == 1 {
                steps.extend((first..first + count).map(|part| Step { variant, part }));
            } else {
                steps.push(Step { variant, part: parts.len() });
                parts.push(whole.clone());
            }
        }
    }
    let mut rationale = Vec::new();
    if parts.len() > 1 {
        let watchdog = if machine.watchdog { ", and no dispatch may run long" } else { "" };
        let bytes = machine.binding_size;
        rationale.push(format!("{} parts: bindings hold {bytes} bytes{watchdog}", parts.len()));
    }
    let workspace = |part: &Part| 4 * work.window(part, Slot::Workspace).len;
    let workspace_bytes = match (work.kernel, work.chunks) {
        (KernelKind::Flash, None) => 0,
        (KernelKind::Flash, Some(_)) | (KernelKind::Unfused, _) => {
            parts.iter().map(workspace).max().unwrap_or(0).max(4)
        }
    };
    Schedule {
        kernel: work.kernel,
        tiles,
        constants: Constants {
            softcap: problem.softcap().is_some(),
            dropout: problem.dropout().is_some(),
            by_four: (problem.head_dim() | problem.head_dim_v()).is_multiple_of(4),
            folded: work.fold > 1,
        },
        steps,
        parts,
        workspace_bytes,
        chunks: work.chunks,
        rationale,
        no_matrix_units: None,
        measured: false,
        operations: work.operations.to_vec(),
        fold: work.fold,
        grid: machine.grid,
    }
}

impl Schedule {
    /// What a part touches of the tensor behind `slot`.
    pub(crate) fn window(&self, problem: &Problem, part: usize, slot: Slot) -> Window {
        self.work(problem).window(&self.parts[part], slot)
    }

    fn work<'a>(&'a self, problem: &'a Problem) -> Work<'a> {
        let Schedule { kernel, fold, chunks, .. } = *self;
        Work { problem, kernel, operations: &self.operations, fold, chunks }
    }

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
        let grid = self.work(problem).grid(part, (operation, tiles), rows.len(), call.seq_kv);
        let count = |n: u64| u32::try_from(n).expect("parts are split to fit 32 bits");
        let (tile_count, item_count) = (count(grid.tiles), count(grid.items));
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
            key_begin: if operation == Operation::FlashMerge { 0 } else { part.keys.start as u32 },
            fold: if operation == Operation::FlashMerge { 1 } else { self.fold as u32 },
            chunk_count: grid.chunks,
            chunk_keys: self.chunks.map_or(Params::UNSPLIT, |chunks| chunks.keys() as u32),
            chunk_stride: self.chunks.map_or(0, |chunks| chunks.count() as u32),
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
    use crate::tiles::loop_shape;
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

    /// `seq_q` queries over `keys` keys.
    fn decode(seq_q: usize, keys: usize, dim: usize) -> Problem {
        let view = |seq| TensorView::bhsd(DType::F32, [1, 2, seq, dim]).expect("small");
        Problem::builder(view(seq_q), view(keys), view(keys)).build().expect("valid")
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

    /// Kernels that keep rows in registers are chosen by what the GPU can do, and only for problems
    /// of their form.
    #[test]
    fn kernels_follow_what_the_gpu_can_do() {
        let large = || Machine { workgroup_bytes: 32 << 10, ..Machine::baseline() };
        let amd = Machine { scalar_loads: true, many_registers: true, subgroup: 32, ..large() };
        let nvidia = Machine { scalar_loads: false, ..amd.clone() };
        let apple = Machine { many_registers: false, ..nvidia.clone() };
        let narrow = Machine { subgroup: 4, ..apple.clone() };
        let kind = |machine: &Machine, shape: [usize; 4]| match flash(shape, machine).tiles {
            Tiles::Uniform(_) => "uniform".to_owned(),
            Tiles::Lanes(t) => format!("{} lanes, {} rows", t.lanes, t.rows),
            Tiles::Block(_) => "block".to_owned(),
            Tiles::Broadcast(t) => format!("broadcast over {} lanes, {} rows", t.lanes, t.rows),
            Tiles::Rows(_) => "rows".to_owned(),
            Tiles::Matrix(_) => "matrix".to_owned(),
        };
        let wide = [1, 2, 100, 128];
        for (machine, expected) in [
            (&amd, "uniform"),
            (&nvidia, "8 lanes, 4 rows"),
            (&apple, "16 lanes, 2 rows"),
            (&narrow, "block"),
            (&large(), "block"),
        ] {
            assert_eq!(kind(machine, wide), expected, "{machine:?}");
            assert_eq!(kind(machine, [1, 2, 1, 128]), "block", "few queries");
            assert_eq!(kind(machine, [1, 2, 100, 72]), "block", "an odd width");
        }
        let software = Machine { software: true, lanes: 8, subgroup: 8, ..large() };
        assert_eq!(kind(&software, [1, 2, 300, 72]), "broadcast over 8 lanes, 4 rows");
        assert_eq!(
            kind(&software, [1, 2, 16, 72]),
            "broadcast over 8 lanes, 1 rows",
            "few queries"
        );
        assert_eq!(kind(&software, [1, 2, 8, 72]), "rows", "too few scores");
        assert_eq!(kind(&software, [1, 2, 300, 71]), "rows", "not whole words");
        assert_eq!(
            kind(&software, [1, 2, 100, 72]),
            "rows",
            "too short to pay for its compilation"
        );
        assert_eq!(kind(&software.portable(), [1, 2, 300, 72]), "rows", "a misaligned tensor");
        assert_eq!(kind(&Machine { lanes: 1, ..software }, [1, 2, 300, 72]), "rows");
        // Rows that start between words of 16 bytes.
        let view = TensorView::strided(DType::F16, [1, 2, 100, 64], [0, 100 * 66, 66, 1]);
        let problem = Problem::builder(view, view, view).build().expect("valid");
        let plan = schedule(&problem, KernelKind::Flash, &AUTO, &amd).expect("runs");
        assert!(matches!(plan.tiles, Tiles::Block(_)), "{:?}", plan.tiles);
        let options = AUTO.tiles(flashtile_shaders::UNIFORM_TILES[3]);
        let refused = schedule(&problem, KernelKind::Flash, &options, &amd).expect_err("refused");
        assert!(matches!(refused[..], [Reason::Tiles { .. }]), "{refused:?}");
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

    /// llvmpipe of Mesa 22.3: whatever is scheduled stays within the budget. Flash runs at every
    /// length, in chunks where the keys are many.
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
        for dim in [32, 64, 128, 512] {
            for keys in [512, 2048, 4099, 8192, 16384, 65536, 1 << 18] {
                for seq_q in [1, 100] {
                    let problem = decode(seq_q, keys, dim);
                    let plan = schedule(&problem, KernelKind::Flash, &AUTO, &old);
                    for step in plan.iter().flat_map(|plan| &plan.steps) {
                        let chunks = plan.as_ref().ok().and_then(|plan| plan.chunks);
                        let shape = loop_shape(&problem, &step.variant, chunks);
                        let count = step.variant.loop_iterations(&shape);
                        assert!(count <= 65_535, "{}: {count}", step.variant);
                    }
                    assert!(plan.is_ok(), "{seq_q} {keys} {dim}: {plan:?}");
                }
                match schedule(&decode(1, keys, dim), KernelKind::Unfused, &AUTO, &old) {
                    Ok(_) => {}
                    Err(reasons) => {
                        let budget = |r: &Reason| matches!(r, Reason::LoopBudget { .. });
                        assert!(reasons.iter().all(budget), "{keys} {dim}: {reasons:?}");
                    }
                }
            }
        }
        // Without a split, the loops are as long as the keys.
        let whole = AUTO.key_split(KeySplit::Off);
        let long = schedule(&decode(1, 1 << 18, 128), KernelKind::Flash, &whole, &old);
        assert!(matches!(long.expect_err("too long")[..], [Reason::LoopBudget { .. }]));
        // A window bounds the loops whatever the length.
        let view = |seq| TensorView::bhsd(DType::F32, [1, 1, seq, 64]).expect("small");
        let (q, kv) = (view(1), view(1 << 18));
        let window = Problem::builder(q, kv, kv).causal(true).window_left(1000).build();
        let window = window.expect("valid");
        assert!(schedule(&window, KernelKind::Flash, &whole, &old).is_ok());
    }

    /// Chunks depend on neither the batch nor the heads, and merge in one dispatch.
    #[test]
    fn few_queries_split_their_keys_whatever_the_batch() {
        let plan = |batch, kv_heads, options: &PlanOptions<Tiles>| {
            let view = |heads, seq| TensorView::bhsd(DType::F16, [batch, heads, seq, 128]);
            let (q, kv) = (view(32, 1).expect("small"), view(kv_heads, 32768).expect("small"));
            let problem = Problem::builder(q, kv, kv).build().expect("valid");
            let machine = Machine { binding_size: 1 << 30, ..Machine::baseline() };
            let plan = schedule(&problem, KernelKind::Flash, options, &machine).expect("runs");
            (problem, plan)
        };
        let (problem, one) = plan(1, 8, &AUTO);
        let operations: Vec<_> = one.steps.iter().map(|step| step.variant.operation).collect();
        assert_eq!(operations, [Operation::FlashSplit, Operation::FlashMerge]);
        let call = Call::new().resolve(&problem).expect("valid");
        let (params, [x, y]) = one.dispatch(&problem, &one.steps[0], &call, |_| 0).expect("work");
        assert!(x * y >= 128 && params.item_count == 8 * 64, "{x} {y}");
        assert_eq!((params.fold, params.chunk_keys), (4, 512));
        assert_eq!(one.workspace_bytes, 32 * 64 * 130 * 4);
        for (batch, kv_heads) in [(4, 8), (1, 32), (3, 1)] {
            let (_, other) = plan(batch, kv_heads, &AUTO);
            assert_eq!((other.tiles, other.chunks), (one.tiles, one.chunks));
        }
        let (_, off) = plan(1, 8, &AUTO.key_split(KeySplit::Off));
        assert_eq!((off.chunks, off.workspace_bytes), (None, 0));
        let (_, forced) = plan(1, 8, &AUTO.key_split(KeySplit::Keys(4096)));
        assert_eq!(forced.chunks.map(KeyChunks::count), Some(8));
        // A call with fewer keys takes fewer chunks of the same size.
        let short = Call::new().seq_kv(1000).resolve(&problem).expect("valid");
        let (params, _) = one.dispatch(&problem, &one.steps[0], &short, |_| 0).expect("work");
        assert_eq!((params.chunk_count, params.chunk_stride), (2, 64));
    }

    /// Keys that no binding holds are split, also for many queries.
    #[test]
    fn keys_longer_than_a_binding_are_split() {
        let small = Machine { binding_size: 1 << 20, ..Machine::baseline() };
        for seq_q in [1, 100] {
            let problem = decode(seq_q, 5000, 64);
            let plan = schedule(&problem, KernelKind::Flash, &AUTO, &small).expect("runs");
            assert!(plan.chunks.is_some() && plan.parts.len() > 2);
            let last = plan.steps.last().expect("several");
            assert_eq!(last.variant.operation, Operation::FlashMerge);
            let whole = AUTO.key_split(KeySplit::Off);
            let refused = schedule(&problem, KernelKind::Flash, &whole, &small);
            assert!(matches!(refused.expect_err("too long")[..], [Reason::BindingSize { .. }]));
        }
    }

    #[test]
    fn chunks_that_cannot_be_used_are_refused() {
        let problem = decode(1, 5000, 64);
        let refusal = |kernel, keys| {
            let options = AUTO.key_split(KeySplit::Keys(keys));
            schedule(&problem, kernel, &options, &Machine::baseline()).expect_err("refused")
        };
        for (kernel, keys) in [(KernelKind::Flash, 300), (KernelKind::Unfused, 512)] {
            let refused = refusal(kernel, keys);
            assert!(matches!(refused[..], [Reason::KeySplit { .. }]), "{refused:?}");
        }
    }
}
