//! What will be dispatched, decided from the problem and a few numbers about the machine: no device is needed to ask.

use crate::PlanOptions;
use crate::parts::{FLASH_SLOTS, Part, UNFUSED_SLOTS, score_stride, split};
use flashtile_core::{KernelKind, Problem, Reason, ResolvedCall};
use flashtile_shaders::{
    Constants, FLASH_TILES, MAX_HEAD_DIM, Operation, Params, ROW_LANES, SOFTMAX_TILES, Slot, Tiles,
    UNFUSED_TILES, Variant, row_tiles,
};

/// The numbers of a device that planning looks at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    pub(crate) binding_size: u64,
    pub(crate) buffer_size: u64,
    pub(crate) offset_alignment: u64,
    pub(crate) workgroup_bytes: u32,
    pub(crate) invocations: u32,
    pub(crate) grid: u32,
    pub(crate) software: bool,
    /// Lanes of every subgroup where kernels may use them and they are known; else 1.
    pub(crate) lanes: u32,
    pub(crate) watchdog: bool,
}

impl Machine {
    pub(crate) fn new(
        limits: &wgpu::Limits,
        features: wgpu::Features,
        info: &wgpu::AdapterInfo,
    ) -> Self {
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let known = info.subgroup_min_size == info.subgroup_max_size
            && features.contains(wgpu::Features::SUBGROUP);
        Self {
            binding_size: limits.max_storage_buffer_binding_size,
            buffer_size: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x)
                .min(limits.max_compute_workgroup_size_y.saturating_mul(64)),
            grid: limits.max_compute_workgroups_per_dimension,
            software,
            lanes: if known { info.subgroup_min_size } else { 1 },
            watchdog: !software,
        }
    }

    /// WebGPU's default limits, and no features.
    pub(crate) fn baseline() -> Self {
        let limits = wgpu::Limits::default();
        Self {
            binding_size: limits.max_storage_buffer_binding_size,
            buffer_size: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
            grid: limits.max_compute_workgroups_per_dimension,
            software: false,
            lanes: 1,
            watchdog: true,
        }
    }
}

/// How a problem is done: the same work for every call, whatever its buffers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) kernel: KernelKind,
    pub(crate) tiles: Tiles,
    pub(crate) constants: Constants,
    /// In order; dispatches of one part follow each other.
    pub(crate) steps: Vec<Step>,
    pub(crate) parts: Vec<Part>,
    pub(crate) workspace_bytes: u64,
    pub(crate) reasons: Vec<String>,
    grid: u32,
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) variant: Variant,
    pub(crate) part: usize,
}

pub(crate) fn schedule(
    problem: &Problem,
    kernel: KernelKind,
    options: &PlanOptions,
    machine: &Machine,
) -> Result<Schedule, Vec<Reason>> {
    let mut reasons = too_large(problem, machine);
    if !reasons.is_empty() {
        // What no buffer holds need not be cut, which may take long.
        return Err(reasons);
    }
    let (slots, operations): (&[Slot], &[Operation]) = match kernel {
        KernelKind::Flash => (&FLASH_SLOTS, &[Operation::FlashForward]),
        _ => (
            &UNFUSED_SLOTS,
            &[Operation::UnfusedScores, Operation::UnfusedSoftmax, Operation::UnfusedValues],
        ),
    };
    let mut why = Vec::new();
    let tiles = match kernel {
        KernelKind::Flash => choose_tiles(problem, machine, options.tiles, &mut why),
        _ => Ok(UNFUSED_TILES),
    };
    let tiles = tiles.map_err(|reason| reasons.push(reason)).unwrap_or(UNFUSED_TILES);
    let parts = match split_unless_empty(problem, machine, slots, tiles.rows() as usize) {
        Ok(parts) => parts,
        Err(more) => {
            reasons.extend(more);
            Vec::new()
        }
    };
    if !reasons.is_empty() {
        return Err(reasons);
    }
    if parts.len() > 1 {
        why.push(format!(
            "{} parts: bindings hold {} bytes and no dispatch runs long",
            parts.len(),
            machine.binding_size
        ));
    }
    let variant = |operation| {
        let tiles = match operation {
            Operation::UnfusedSoftmax => SOFTMAX_TILES,
            _ => tiles,
        };
        let mask = problem.mask().map(|mask| mask.kind);
        Variant::new(operation, problem.dtype(), mask, problem.kv_lens(), problem.lse(), tiles)
    };
    let steps = (0..parts.len())
        .flat_map(|part| {
            operations.iter().map(move |&operation| Step { variant: variant(operation), part })
        })
        .collect();
    let workspace = match kernel {
        KernelKind::Flash => 0,
        _ => parts
            .iter()
            .map(|part| 4 * part.window(problem, Slot::Scores).len)
            .max()
            .unwrap_or(0)
            .max(4),
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
        workspace_bytes: workspace,
        reasons: why,
        grid: machine.grid,
    })
}

fn split_unless_empty(
    problem: &Problem,
    machine: &Machine,
    slots: &[Slot],
    tile_rows: usize,
) -> Result<Vec<Part>, Vec<Reason>> {
    if problem.is_empty() { Ok(Vec::new()) } else { split(problem, machine, slots, tile_rows) }
}

/// The widest row that any kernel counts.
const MAX_COUNT: usize = i32::MAX as usize;

/// Tensors that no buffer of the device can hold, and rows that kernels cannot count.
fn too_large(problem: &Problem, machine: &Machine) -> Vec<Reason> {
    use flashtile_core::Argument;
    if problem.is_empty() {
        return Vec::new();
    }
    // A stride of 0 makes rows of any width in little memory. (Sequences are limited by the problem itself.)
    let widths = [("head_dim", problem.head_dim()), ("head_dim_v", problem.head_dim_v())];
    let too_wide = widths.into_iter().filter(|(_, given)| *given > MAX_COUNT);
    let too_wide = too_wide.map(|(axis, given)| Reason::HeadDim { axis, given, max: MAX_COUNT });
    let tensors = [
        (Argument::Q, problem.q()),
        (Argument::K, problem.k()),
        (Argument::V, problem.v()),
        (Argument::Out, problem.out()),
    ];
    let too_big = tensors.into_iter().filter_map(|(argument, view)| {
        let needed = view.byte_span().map_or(u64::MAX, |bytes| bytes as u64);
        let limit = machine.buffer_size;
        (needed > limit).then_some(Reason::BufferSize { argument, needed, limit })
    });
    too_wide.chain(too_big).collect()
}

/// The first tile shape, in order of preference, that fits the heads and the device.
fn choose_tiles(
    problem: &Problem,
    machine: &Machine,
    forced: Option<Tiles>,
    why: &mut Vec<String>,
) -> Result<Tiles, Reason> {
    let width = problem.head_dim_v() as u32;
    if problem.head_dim_v() > MAX_HEAD_DIM {
        let (given, max) = (problem.head_dim_v(), MAX_HEAD_DIM);
        return Err(Reason::HeadDim { axis: "head_dim_v", given, max });
    }
    let reaches = |tiles: &Tiles| tiles.max_head_dim_v() >= width;
    // Software adapters want few indexed loads and short programs: lanes that spread keys by broadcast.
    let lanes = if ROW_LANES.contains(&machine.lanes) { machine.lanes } else { 1 };
    let rows =
        row_tiles(lanes).into_iter().find(reaches).filter(|_| machine.software && forced.is_none());
    if let Some(tiles) = rows {
        why.push(format!(
            "{tiles}, a query a thread: a software adapter, {lanes} lanes share what they load"
        ));
        return Ok(tiles);
    }
    let wide_enough = || {
        FLASH_TILES
            .into_iter()
            .filter(reaches)
            .filter(|tiles| forced.is_none_or(|forced| forced == *tiles))
    };
    let fits = |tiles: &Tiles| {
        tiles.flash_workgroup_bytes() <= machine.workgroup_bytes
            && tiles.threads() <= machine.invocations
    };
    let few_queries = problem.seq_q() <= 8;
    let preference = |tiles: &Tiles| {
        // Registers for columns that V does not have are wasted, so the narrowest reach comes first, then the shape for the queries.
        let rows = if few_queries { tiles.rows() } else { u32::MAX - tiles.rows() };
        let threads = if machine.software { tiles.threads() } else { u32::MAX - tiles.threads() };
        (rows, threads, tiles.ot, tiles.max_head_dim_v())
    };
    let smallest =
        wide_enough().map(|tiles| tiles.flash_workgroup_bytes()).min().unwrap_or(u32::MAX);
    let tiles = wide_enough().filter(fits).min_by_key(preference).ok_or(Reason::DeviceLimit {
        limit: "max_compute_workgroup_storage_size",
        given: machine.workgroup_bytes.into(),
        needed: smallest.into(),
    })?;
    why.push(format!(
        "{tiles}: seq_q {}, head_dim_v {width}; {} of {} bytes of workgroup memory",
        problem.seq_q(),
        tiles.flash_workgroup_bytes(),
        machine.workgroup_bytes
    ));
    Ok(tiles)
}

impl Schedule {
    /// Parameters and workgroups of one step; `None` where this call has nothing for it. `offset(slot)` is how many elements the tensor's
    /// first one of this part lies behind the begin of its binding.
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
        let tiles = step.variant.tiles;
        let tile_rows =
            if step.variant.operation == Operation::UnfusedSoftmax { 1 } else { tiles.rows() };
        let across = match step.variant.operation {
            Operation::UnfusedScores => (call.seq_kv as u32).div_ceil(tiles.keys()),
            Operation::UnfusedValues => (problem.head_dim_v() as u32).div_ceil(tiles.keys()),
            _ => 1,
        };
        let tile_count = (rows.len() as u32).div_ceil(tile_rows) * across;
        let item_count = tile_count * part.heads.len() as u32 * part.batch.len() as u32;
        if item_count == 0 {
            return None;
        }
        // As square as need be: at most `grid` workgroups along an axis.
        let height = item_count.div_ceil(self.grid);
        let width = item_count.div_ceil(height);

        let strides = |view: &flashtile_core::TensorView| view.strides.map(|stride| stride as u32);
        let band = problem.band();
        let dropout = problem.dropout();
        let params = Params {
            q_strides: strides(problem.q()),
            k_strides: strides(problem.k()),
            v_strides: strides(problem.v()),
            out_strides: strides(problem.out()),
            mask_strides: problem
                .mask()
                .map_or([0; 4], |mask| mask.strides.map(|stride| stride as u32)),
            q_offset: offset(Slot::Q),
            k_offset: offset(Slot::K),
            v_offset: offset(Slot::V),
            out_offset: offset(Slot::Out),
            mask_offset: offset(Slot::Mask),
            lse_offset: offset(Slot::Lse),
            kv_lens_offset: offset(Slot::Aux),
            lse_rows: problem.seq_q() as u32,
            seq_q: call.seq_q as u32,
            seq_kv: call.seq_kv as u32,
            heads: problem.heads() as u32,
            group: problem.group_size() as u32,
            batch_begin: part.batch.start as u32,
            head_begin: part.heads.start as u32,
            row_begin: rows.start as u32,
            row_end: rows.end as u32,
            head_count: part.heads.len() as u32,
            tile_count,
            item_count,
            grid_width: width,
            band_lo: band.lo,
            band_hi: band.hi,
            bottom_right: band.bottom_right.into(),
            // 2^32 (all dropped) does not fit; a keep_scale of 0 says it.
            dropout_threshold: dropout
                .map_or(0, |dropout| dropout.threshold.min(u32::MAX.into()) as u32),
            scale: call.scale,
            softcap: problem.softcap().unwrap_or(1.0),
            keep_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale),
            dropout_offset: call.offset,
            seed: [call.seed as u32, (call.seed >> 32) as u32],
            score_stride: score_stride(problem) as u32,
            rolled: tiles.keys(),
            head_dim: problem.head_dim() as u32,
            head_dim_v: problem.head_dim_v() as u32,
            pad: [0; 2],
        };
        Some((params, [width, height]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{DType, Layout, TensorView};

    fn flash(shape: [usize; 4], machine: &Machine) -> Schedule {
        let view = TensorView::from_bhsd_sizes(DType::F16, Layout::Bhsd, shape).expect("small");
        let problem = Problem::builder(view, view, view).build().expect("valid");
        schedule(&problem, KernelKind::Flash, &PlanOptions::default(), machine).expect("runs")
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
        let shape = [1, 1, 1024, 128];
        assert!(
            flash(shape, &large).tiles.rows() > flash(shape, &Machine::baseline()).tiles.rows()
        );
    }

    #[test]
    fn heads_wider_than_registers_are_refused() {
        let view =
            TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 4, 513]).expect("small");
        let problem = Problem::builder(view, view, view).build().expect("valid");
        let refused =
            schedule(&problem, KernelKind::Flash, &PlanOptions::default(), &Machine::baseline())
                .expect_err("too wide");
        assert_eq!(refused, [Reason::HeadDim { axis: "head_dim_v", given: 513, max: 512 }]);
        assert!(
            schedule(&problem, KernelKind::Unfused, &PlanOptions::default(), &Machine::baseline())
                .is_ok()
        );
    }

    #[test]
    fn rows_beyond_counting_are_refused() {
        let wide = |rows| TensorView::strided(DType::F32, [1, 1, rows, 1 << 33], [0; 4]);
        let v = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 3, 4]).expect("small");
        let out =
            TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 2, 4]).expect("small");
        let problem = Problem::builder(wide(2), wide(3), v).out(out).build().expect("valid");
        for &kernel in KernelKind::ALL {
            let refused = schedule(&problem, kernel, &PlanOptions::default(), &Machine::baseline());
            assert!(matches!(
                refused.expect_err("too wide")[..],
                [Reason::HeadDim { axis: "head_dim", .. }]
            ));
        }
    }

    #[test]
    fn work_in_countless_pieces_is_refused_at_once() {
        let machine = Machine { buffer_size: u64::MAX, ..Machine::baseline() };
        for shape in
            [[1 << 50, 1, 1, 64], [1, 1 << 40, 1 << 16, 1], [1 << 20, 1 << 20, 1 << 10, 16]]
        {
            let view =
                TensorView::from_bhsd_sizes(DType::F16, Layout::Bhsd, shape).expect("addressable");
            let problem = Problem::builder(view, view, view).build().expect("valid");
            for &kernel in KernelKind::ALL {
                let refused = schedule(&problem, kernel, &PlanOptions::default(), &machine);
                assert!(
                    matches!(refused.expect_err("too many")[..], [Reason::Pieces { .. }]),
                    "{shape:?} {kernel}"
                );
            }
        }
    }

    #[test]
    fn grids_over_the_limit_fold() {
        let machine = Machine { grid: 7, ..Machine::baseline() };
        let view =
            TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [3, 5, 64, 8]).expect("small");
        let problem = Problem::builder(view, view, view).build().expect("valid");
        let plan =
            schedule(&problem, KernelKind::Flash, &PlanOptions::default(), &machine).expect("runs");
        let call = flashtile_core::Call::default().resolve(&problem).expect("valid");
        let (params, [x, y]) =
            plan.dispatch(&problem, &plan.steps[0], &call, |_| 0).expect("has work");
        assert!(x <= 7 && x * y >= params.item_count && params.grid_width == x);
    }
}
