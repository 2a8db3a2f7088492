//! Decides what to launch, from the problem and a few numbers of the GPU. This needs no GPU.

use crate::{
    Machine, Part,
    parts::{Budget, split},
    tiles::{MIN_ARCH, choose_tiles, is_general},
};
use flashtile_core::{
    Argument, Band, DType, KernelKind, KeyChunks, KeySplit, MaskKind, PlanOptions, Problem, Reason,
    ResolvedCall, TensorView,
    planning::{
        MAX_WATCHDOG_FLOPS, MAX_WORKSPACE_BYTES, SizeLimits, flash_options, folded_heads,
        key_splits, oversized,
    },
};
use flashtile_shaders::{
    Operation,
    cuda::{
        CUDA_MERGE_TILES, CUDA_SOFTMAX_TILES, CUDA_UNFUSED_TILES, CudaParams, CudaTiles,
        CudaVariant,
    },
};

/// How a problem is computed: the part of a plan that needs no GPU.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Schedule {
    /// The kernel.
    pub kernel: KernelKind,
    /// The tile shape of its main kernel.
    pub tiles: CudaTiles,
    /// In order. Dispatches of one part follow each other.
    pub dispatches: Vec<Dispatch>,
    /// Bytes of device memory that the dispatches share, in addition to the caller's tensors.
    pub workspace_bytes: u64,
    /// The chunks of keys, where the keys of a row are split.
    pub chunks: Option<KeyChunks>,
    /// Heads of a group that share tiles.
    pub fold: u32,
    /// The reasons for its choices, one sentence each.
    pub rationale: Vec<String>,
}

/// One dispatch of a plan: one kernel launch per call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dispatch {
    /// The kernel.
    pub variant: CudaVariant,
    /// Its part of the problem.
    pub part: Part,
}

/// Device addresses of the first elements of a call's tensors; 0 for an absent tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pointers {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// The mask: one byte per element for bool, else its storage type.
    pub mask: u64,
    /// Valid keys of each batch entry, i32.
    pub kv_lens: u64,
    /// The output.
    pub out: u64,
    /// The log-sum-exp, f32, densely packed (B, H, Sq).
    pub lse: u64,
    /// The workspace of [`workspace_bytes`](Schedule::workspace_bytes) bytes, aligned to 16 bytes.
    pub scores: u64,
}

impl Pointers {
    /// A call without mask, kv_lens, log-sum-exp and workspace.
    pub const fn new(q: u64, k: u64, v: u64, out: u64) -> Self {
        Self { q, k, v, mask: 0, kv_lens: 0, out, lse: 0, scores: 0 }
    }

    /// The mask.
    #[must_use]
    pub const fn mask(mut self, address: u64) -> Self {
        self.mask = address;
        self
    }

    /// Valid keys of each batch entry.
    #[must_use]
    pub const fn kv_lens(mut self, address: u64) -> Self {
        self.kv_lens = address;
        self
    }

    /// The log-sum-exp.
    #[must_use]
    pub const fn lse(mut self, address: u64) -> Self {
        self.lse = address;
        self
    }

    /// The workspace.
    #[must_use]
    pub const fn scores(mut self, address: u64) -> Self {
        self.scores = address;
        self
    }
}

/// One kernel launch: a one-dimensional grid of blocks of `variant.tiles.tx` by `variant.tiles.ty`
/// threads, with [`shared_bytes`](CudaVariant::shared_bytes) bytes of dynamic shared memory and
/// with `params` as the only parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Launch {
    /// The kernel.
    pub variant: CudaVariant,
    /// The parameter.
    pub params: CudaParams,
    /// Blocks in the grid.
    pub grid: u32,
}

/// Decides how `kernel` computes `problem` on a GPU.
///
/// # Errors
/// Every reason why it cannot.
pub fn schedule(
    problem: &Problem,
    kernel: KernelKind,
    options: &PlanOptions<CudaTiles>,
    machine: &Machine,
) -> Result<Schedule, Vec<Reason>> {
    let limits = SizeLimits::new(machine.memory, i32::MAX as usize);
    let mut reasons = oversized(problem, &limits);
    reasons.extend(flash_options(kernel, options));
    if machine.arch < MIN_ARCH {
        reasons.push(Reason::ComputeCapability { given: machine.arch, needed: MIN_ARCH });
    }
    let mut why = Vec::new();
    let chunks = match kernel {
        KernelKind::Flash => key_splits(problem, options).map(|splits| {
            // Of its own accord a plan gives up the split, not the tiles that were requested.
            let unasked = options.key_split == KeySplit::Auto;
            splits[0].filter(|_| !unasked || options.tiles.is_none_or(|tiles| tiles.has_split()))
        }),
        KernelKind::Unfused => Ok(None),
    };
    let chunks = chunks.map_err(|reason| reasons.push(reason)).unwrap_or(None);
    let tiles = match kernel {
        KernelKind::Flash => choose_tiles(problem, machine, options, chunks.is_some(), &mut why),
        KernelKind::Unfused => Ok(CUDA_UNFUSED_TILES),
    };
    let tiles = tiles.map_err(|reason| reasons.push(reason)).unwrap_or(CUDA_UNFUSED_TILES);
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let fold = match chunks {
        Some(_) => folded_heads(problem, tiles.rows as usize) as u32,
        None => 1,
    };
    if let Some(chunks) = chunks {
        why.push(why_split(problem, options, chunks, fold));
    }
    let mut schedule = Schedule {
        kernel,
        tiles,
        dispatches: Vec::new(),
        workspace_bytes: 0,
        chunks,
        fold,
        rationale: why,
    };
    let parts = schedule.divide(problem, machine).map_err(|reason| vec![reason])?;
    if parts.len() > 1 {
        schedule.rationale.push(format!(
            "{} parts: {}",
            parts.len(),
            why_divided(schedule.row_words(problem) > 0, machine)
        ));
    }
    let workspace = |part: &Part| {
        let rows = (part.heads.end - part.heads.start) * u64::from(part.rows.end - part.rows.start);
        rows * 4 * schedule.row_words(problem)
    };
    let workspace_bytes = parts.iter().map(workspace).max().unwrap_or(0);
    if workspace_bytes > machine.memory {
        let (argument, needed, limit) = (Argument::Workspace, workspace_bytes, machine.memory);
        return Err(vec![Reason::BufferSize { argument, needed, limit }]);
    }
    let variants = variants(problem, kernel, tiles, chunks);
    let dispatch = |part: &Part, &variant: &CudaVariant| Dispatch { variant, part: part.clone() };
    let dispatches = parts
        .iter()
        .flat_map(|part| variants.iter().map(move |variant| dispatch(part, variant)))
        .collect();
    Ok(Schedule { dispatches, workspace_bytes, ..schedule })
}

fn why_split(
    problem: &Problem,
    options: &PlanOptions<CudaTiles>,
    chunks: KeyChunks,
    fold: u32,
) -> String {
    let why = if options.key_split == KeySplit::Auto {
        let (seq_q, seq_kv) = (problem.seq_q(), problem.seq_kv());
        format!("few queries over many keys (seq_q {seq_q}, seq_kv {seq_kv})")
    } else {
        "requested".to_owned()
    };
    let heads = if fold > 1 { format!("; {fold} heads share tiles") } else { String::new() };
    format!("{chunks}, merged in ascending order: {why}{heads}")
}

/// The kernels of one part, in order.
fn variants(
    problem: &Problem,
    kernel: KernelKind,
    tiles: CudaTiles,
    chunks: Option<KeyChunks>,
) -> Vec<CudaVariant> {
    let (dtype, general) = (problem.dtype(), is_general(problem));
    match (kernel, chunks) {
        (KernelKind::Flash, None) => {
            vec![CudaVariant::new(Operation::FlashForward, dtype, general, tiles)]
        }
        (KernelKind::Flash, Some(_)) => vec![
            CudaVariant::new(Operation::FlashSplit, dtype, general, tiles),
            CudaVariant::new(Operation::FlashMerge, dtype, general, CUDA_MERGE_TILES),
        ],
        (KernelKind::Unfused, _) => vec![
            CudaVariant::new(Operation::UnfusedScores, dtype, general, tiles),
            // The scores already include masks and softcap.
            CudaVariant::new(
                Operation::UnfusedSoftmax,
                DType::F32,
                problem.dropout().is_some(),
                CUDA_SOFTMAX_TILES,
            ),
            CudaVariant::new(Operation::UnfusedValues, dtype, general, tiles),
        ],
    }
}

/// Floats from row to row of the workspace. Rows start at multiples of 16 bytes.
fn score_stride(problem: &Problem) -> u64 {
    (problem.seq_kv() as u64).next_multiple_of(4)
}

impl Schedule {
    /// Floats of workspace per row; 0 without a workspace.
    fn row_words(&self, problem: &Problem) -> u64 {
        match (self.kernel, self.chunks) {
            (KernelKind::Unfused, _) => score_stride(problem),
            (KernelKind::Flash, None) => 0,
            // For each chunk O, m and l, from multiples of 16 bytes on.
            (KernelKind::Flash, Some(chunks)) => {
                chunks.count() as u64 * (problem.head_dim_v() as u64 + 2).next_multiple_of(4)
            }
        }
    }

    /// The parts of the problem. Heads that share tiles stay together.
    fn divide(&self, problem: &Problem, machine: &Machine) -> Result<Vec<Part>, Reason> {
        if problem.is_empty() {
            return Ok(Vec::new());
        }
        let Schedule { kernel, tiles, fold, .. } = *self;
        let (keys, columns) = (problem.seq_kv() as u64, problem.head_dim_v() as u64);
        let over_columns = columns.div_ceil(tiles.columns.into());
        // The most blocks of the kernels. The merge and the softmax have one block per row.
        let blocks_per_tile = match (kernel, self.chunks) {
            (KernelKind::Flash, None) => over_columns,
            (KernelKind::Flash, Some(chunks)) => {
                (over_columns * chunks.count() as u64).max(tiles.rows.into())
            }
            (KernelKind::Unfused, _) => {
                over_columns.max(keys.div_ceil(tiles.keys.into())).max(tiles.rows.into())
            }
        };
        let fold = u64::from(fold);
        let budgets = [
            Budget {
                per_row: 4 * self.row_words(problem).saturating_mul(fold),
                limit: MAX_WORKSPACE_BYTES,
            },
            Budget {
                per_row: if machine.watchdog {
                    flops_per_row(problem, kernel).saturating_mul(fold)
                } else {
                    0
                },
                limit: MAX_WATCHDOG_FLOPS,
            },
        ];
        let heads = problem.batch() as u64 * problem.heads() as u64 / fold;
        let tile_rows = (tiles.rows / self.fold).max(1);
        let mut parts = split(heads, problem.seq_q() as u32, tile_rows, blocks_per_tile, &budgets)?;
        for Part { heads, .. } in &mut parts {
            *heads = heads.start * fold..heads.end * fold;
        }
        Ok(parts)
    }
}

/// FLOPs of one row in a call at capacity. The unfused kernels compute every score, and flash only
/// those that causal masks and windows allow: the average per row if parts contain whole heads,
/// else the maximum.
fn flops_per_row(problem: &Problem, kernel: KernelKind) -> u64 {
    let (rows, keys) = (problem.seq_q(), problem.seq_kv());
    let per_pair = 2 * (problem.head_dim() as u64 + problem.head_dim_v() as u64);
    let band = problem.band();
    let most = match kernel {
        KernelKind::Flash => {
            (i64::from(band.hi) - i64::from(band.lo) + 1).clamp(0, keys as i64) as u64
        }
        KernelKind::Unfused => return (keys as u64).saturating_mul(per_pair),
    };
    let head = band.pairs(0..rows, rows, keys).saturating_mul(per_pair);
    if head <= MAX_WATCHDOG_FLOPS {
        head.div_ceil(rows.max(1) as u64)
    } else {
        most.saturating_mul(per_pair)
    }
}

fn why_divided(workspace: bool, machine: &Machine) -> String {
    let mut why = vec![format!("a grid has at most {} blocks", i32::MAX)];
    if workspace {
        why.push(format!("the workspace uses at most {MAX_WORKSPACE_BYTES} bytes"));
    }
    if machine.watchdog {
        why.push("this GPU drives a display; dispatches stay below the watchdog limit".into());
    }
    why.join("; ")
}

impl Schedule {
    /// The launch of one dispatch in one call; `None` if the call leaves it nothing to compute.
    ///
    /// The dispatch belongs to this schedule, which was made for `problem`, and `call` was resolved
    /// against the same problem.
    pub fn launch(
        &self,
        problem: &Problem,
        dispatch: &Dispatch,
        call: &ResolvedCall,
        pointers: &Pointers,
    ) -> Option<Launch> {
        let CudaVariant { operation, tiles, .. } = dispatch.variant;
        let rows = dispatch.part.rows.start..dispatch.part.rows.end.min(call.seq_q as u32);
        if rows.is_empty() {
            return None;
        }
        // Of the flash kernels that split keys; the others have one head per row.
        let (fold, chunk_count) = match (operation, self.chunks) {
            (Operation::FlashSplit, Some(chunks)) => {
                (self.fold, chunks.of_keys(0..call.seq_kv).len() as u32)
            }
            (Operation::FlashSplit, None)
            | (
                Operation::FlashForward
                | Operation::FlashMerge
                | Operation::UnfusedScores
                | Operation::UnfusedSoftmax
                | Operation::UnfusedValues,
                _,
            ) => (1, 1),
        };
        let tile_count = (rows.len() * fold as usize).div_ceil(tiles.rows as usize) as u32;
        let across = match operation {
            Operation::UnfusedScores => (call.seq_kv as u32).div_ceil(tiles.keys),
            Operation::UnfusedSoftmax | Operation::FlashMerge => 1,
            Operation::FlashForward | Operation::FlashSplit | Operation::UnfusedValues => {
                (problem.head_dim_v() as u32).div_ceil(tiles.columns)
            }
        };
        let heads = dispatch.part.heads.end - dispatch.part.heads.start;
        // At most 2^31 - 1: `divide` limits the parts to that.
        let tiles_of_all = heads / u64::from(fold) * u64::from(chunk_count) * u64::from(tile_count);
        let grid = (tiles_of_all * u64::from(across)) as u32;
        if grid == 0 {
            return None;
        }
        let band = problem.band();
        let dropout = problem.dropout();
        let params = CudaParams {
            q: pointers.q,
            k: pointers.k,
            v: pointers.v,
            mask: pointers.mask,
            kv_lens: pointers.kv_lens,
            out: pointers.out,
            lse: pointers.lse,
            scores: pointers.scores,
            q_strides: strides(problem.q()),
            k_strides: strides(problem.k()),
            v_strides: strides(problem.v()),
            out_strides: strides(problem.out()),
            mask_strides: problem
                .mask()
                .map_or([0; 4], |mask| mask.strides.map(|stride| stride as u64)),
            score_stride: score_stride(problem),
            bh_begin: dispatch.part.heads.start,
            lse_rows: problem.seq_q() as u32,
            seq_q: call.seq_q as u32,
            seq_kv: call.seq_kv as u32,
            heads: problem.heads() as u32,
            group: problem.group_size() as u32,
            row_begin: rows.start,
            row_end: rows.end,
            tile_count,
            across,
            // With a causal mask the last queries see the most keys. Blocks that start last should
            // finish soon, so these queries come first.
            longest_first: (operation == Operation::FlashForward && band.hi < Band::UNBOUNDED)
                .into(),
            band_lo: band.lo,
            band_hi: band.hi,
            bottom_right: band.bottom_right.into(),
            mask_kind: mask_kind(problem),
            // 2^32 (all dropped) does not fit into 32 bits; a keep_scale of 0 has the same effect.
            dropout_threshold: dropout
                .map_or(0, |dropout| dropout.threshold.min(u32::MAX.into()) as u32),
            dropout_offset: call.offset,
            seed: [call.seed as u32, (call.seed >> 32) as u32],
            scale: call.scale,
            softcap: problem.softcap().unwrap_or(0.0),
            keep_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale),
            dropout: dropout.is_some().into(),
            head_dim: problem.head_dim() as u32,
            head_dim_v: problem.head_dim_v() as u32,
            dense: dense(problem, pointers),
            fold,
            chunk_keys: self.chunks.map_or(0, |chunks| chunks.keys() as u32),
            chunk_count,
            chunk_stride: self.chunks.map_or(0, |chunks| chunks.count() as u32),
            pad: 0,
        };
        Some(Launch { variant: dispatch.variant, params, grid })
    }
}

fn mask_kind(problem: &Problem) -> u32 {
    match problem.mask().map(|mask| mask.kind) {
        None => CudaParams::NO_MASK,
        Some(MaskKind::Bool) => CudaParams::BOOL_MASK,
        Some(MaskKind::Additive(DType::F32)) => CudaParams::F32_MASK,
        Some(MaskKind::Additive(DType::F16)) => CudaParams::F16_MASK,
        Some(MaskKind::Additive(DType::BF16)) => CudaParams::BF16_MASK,
    }
}

/// The strides in elements, with 0 along axes of size 1. There a view may have any stride, and
/// kernels compute addresses of rows beyond the last, which have to be valid although nothing reads
/// them.
fn strides(view: &TensorView) -> [u64; 4] {
    [0, 1, 2, 3].map(|axis| if view.shape[axis] > 1 { view.strides[axis] as u64 } else { 0 })
}

/// Bits that state which tensors kernels may copy in units of 16 bytes, and which in units of 4.
fn dense(problem: &Problem, pointers: &Pointers) -> u32 {
    let tensors = [
        (CudaParams::DENSE_Q, problem.q(), pointers.q),
        (CudaParams::DENSE_K, problem.k(), pointers.k),
        (CudaParams::DENSE_V, problem.v(), pointers.v),
        (CudaParams::DENSE_OUT, problem.out(), pointers.out),
    ];
    let is_dense = |view: &TensorView, pointer: u64, bytes: u64| {
        let per_unit = bytes / view.dtype.size() as u64;
        let adjacent = view.shape[3] == 1 || view.strides[3] == 1;
        adjacent
            && pointer.is_multiple_of(bytes)
            && strides(view)[..3].iter().all(|stride| stride.is_multiple_of(per_unit))
    };
    tensors.into_iter().fold(0, |bits, (bit, view, pointer)| {
        let by_16 = if is_dense(view, pointer, 16) { bit } else { 0 };
        let by_4 = if is_dense(view, pointer, 4) { bit << CudaParams::DENSE_WORDS } else { 0 };
        bits | by_16 | by_4
    })
}

#[cfg(test)]
mod tests;
