//! The planner's count of loop iterations, compared with kernels that count their own. Drivers that
//! end loops early give wrong results without an error, so a count that is too low is a wrong
//! result on them.
//!
//! Inputs make the loops run as often as they can: V is NaN, so that every edge tile takes the
//! careful path, and keys grow, so that every tile rescales.

use super::{
    embedding::{buffer, read},
    probe::{Probe, words},
};
use crate::shared::text;
use flashtile_core::{
    Align, Call, DType, KernelKind, KeyChunks, KeyTiles, Mask, MaskKind, Problem, TensorView,
    TileKind,
};
use flashtile_shaders::{
    LANE_TILES, LoopShape, Operation, Params, Slot, Tiles, UNIFORM_TILES, Variant, broadcast_tiles,
    matrix_tiles, row_tiles,
};
use flashtile_wgpu::{Context, export_baseline, wgpu};
use std::{collections::BTreeMap, ops::Range};
use wgpu::BufferUsages as Usage;

/// What decides whether tiles are edge tiles, and which loops a kernel has.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The last tile of keys is an edge tile.
    Plain,
    /// Tiles at both ends of a band are edge tiles.
    Band,
    /// All tiles are edge tiles.
    Masked,
    /// So are they, and Philox runs.
    Dropout,
    /// Few queries, whose keys are split into chunks.
    Split,
}

fn problem(kind: Kind, dtype: DType, [dim, dim_v]: [usize; 2]) -> Result<Problem, String> {
    let (seq_q, seq_kv) = match kind {
        Kind::Plain => (70, 300),
        Kind::Band => (150, 700),
        Kind::Masked => (70, 97),
        Kind::Dropout => (40, 145),
        // As many as rows are in the strips of a tile: each thread stores all of its rows.
        Kind::Split => (32, 8192),
    };
    let view = |seq, dim| TensorView::bhsd(dtype, [1, 2, seq, dim]).map_err(text);
    let problem = Problem::builder(view(seq_q, dim)?, view(seq_kv, dim)?, view(seq_kv, dim_v)?);
    let problem = match kind {
        Kind::Plain | Kind::Split => problem,
        Kind::Band => problem.causal(true).align(Align::BottomRight).window_left(400),
        Kind::Masked => problem.mask(Mask::contiguous(MaskKind::Bool, &[seq_kv]).map_err(text)?),
        Kind::Dropout => problem.dropout_p(0.5),
    };
    problem.build().map_err(text)
}

/// The portable kernel, the merge and the unfused kernels, as plans dispatch them.
pub(super) fn planned(context: &Context) -> Result<(), String> {
    let mut failures = Vec::new();
    for (kind, dims, kernels) in [
        (Kind::Plain, [64, 64], KernelKind::ALL),
        (Kind::Band, [300, 512], &[KernelKind::Flash]),
        (Kind::Masked, [33, 40], &[KernelKind::Flash]),
        (Kind::Dropout, [128, 17], KernelKind::ALL),
        (Kind::Split, [33, 200], KernelKind::ALL),
    ] {
        let problem = problem(kind, DType::F32, dims)?;
        for &kernel in kernels {
            for dispatch in Dispatch::planned(&problem, kernel)? {
                failures.extend(dispatch.compare(context).err());
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// The other kernels that run here without matrix units.
pub(super) fn forced(context: &Context) -> Result<(), String> {
    use DType::{BF16, F16, F32};
    let lanes = subgroup_lanes(context);
    let mut all = Vec::new();
    let [_, rows, _, _, wide] = row_tiles(lanes.unwrap_or(1));
    all.extend([
        (rows, Kind::Plain, F32, [64, 60]),
        (rows, Kind::Band, F16, [40, 64]),
        (rows, Kind::Masked, BF16, [33, 57]),
        (rows, Kind::Dropout, F32, [64, 64]),
        (rows, Kind::Split, F16, [64, 64]),
        (wide, Kind::Band, F32, [300, 512]),
    ]);
    let [_, without_lanes, ..] = row_tiles(1);
    all.extend([
        (without_lanes, Kind::Band, F32, [64, 64]),
        (without_lanes, Kind::Dropout, F32, [33, 40]),
    ]);
    all.extend([
        (UNIFORM_TILES[0], Kind::Band, F32, [16, 16]),
        (UNIFORM_TILES[0], Kind::Dropout, F16, [16, 16]),
        (UNIFORM_TILES[0], Kind::Split, F16, [16, 16]),
        (UNIFORM_TILES[1], Kind::Masked, F32, [16, 16]),
    ]);
    if let Some(lanes) = lanes {
        let [few, _, _, many, ..] = broadcast_tiles(lanes);
        all.extend([
            (few, Kind::Plain, F32, [64, 48]),
            (few, Kind::Split, F32, [64, 64]),
            (many, Kind::Band, BF16, [48, 64]),
            (many, Kind::Split, F16, [64, 64]),
            (LANE_TILES[0], Kind::Dropout, F32, [16, 16]),
            (LANE_TILES[0], Kind::Split, F16, [16, 16]),
        ]);
    }
    compare_all(context, &all)
}

/// The kernel on matrix units.
pub(super) fn on_matrix_units(context: &Context) -> Result<(), String> {
    // The shapes whose loops are not unrolled.
    let rolled = |tiles: &Tiles| matches!(tiles, Tiles::Matrix(shape) if shape.lanes == 8);
    let mut all = Vec::new();
    for tiles in matrix_tiles().filter(rolled) {
        let width = tiles.max_head_dim_v() as usize;
        let kinds: &[Kind] = match width {
            64 => &[Kind::Dropout, Kind::Split],
            _ => &[Kind::Band],
        };
        all.extend(kinds.iter().map(|&kind| (tiles, kind, DType::F16, [width - 8, width])));
    }
    compare_all(context, &all)
}

/// The lanes of every subgroup, where kernels with broadcasts support them.
fn subgroup_lanes(context: &Context) -> Option<u32> {
    let info = context.adapter_info();
    let fixed = info.subgroup_min_size == info.subgroup_max_size;
    let subgroups = context.device().features().contains(wgpu::Features::SUBGROUP);
    let supported = flashtile_shaders::BROADCAST_LANES.contains(&info.subgroup_min_size);
    (fixed && subgroups && supported).then_some(info.subgroup_min_size)
}

fn compare_all(context: &Context, all: &[(Tiles, Kind, DType, [usize; 2])]) -> Result<(), String> {
    let mut failures = Vec::new();
    for &(tiles, kind, dtype, dims) in all {
        let problem = problem(kind, dtype, dims)?;
        let main = Dispatch::planned(&problem, KernelKind::Flash)?.into_iter().next();
        let main = main.ok_or("nothing is dispatched")?.with_tiles(tiles);
        failures.extend(main.compare(context).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// One dispatch of a whole problem.
struct Dispatch<'a> {
    problem: &'a Problem,
    variant: Variant,
    constants: Vec<(&'static str, f64)>,
    params: Params,
    workgroups: [u32; 2],
    chunks: Option<KeyChunks>,
    workspace_bytes: u64,
}

impl<'a> Dispatch<'a> {
    /// Those that a plan for WebGPU's default limits has.
    fn planned(problem: &'a Problem, kernel: KernelKind) -> Result<Vec<Self>, String> {
        let call = export_baseline(problem, kernel, &Call::new()).map_err(text)?;
        let dispatches = call.dispatches.iter().zip(&call.variants);
        let dispatch = |(exported, variant): (&flashtile_wgpu::ExportedDispatch, &Variant)| Self {
            problem,
            variant: *variant,
            constants: exported.constants.clone(),
            params: bytemuck::pod_read_unaligned(bytemuck::cast_slice(&exported.params)),
            workgroups: exported.workgroups,
            chunks: call.chunks,
            workspace_bytes: call.workspace_bytes,
        };
        Ok(dispatches.map(dispatch).collect())
    }

    /// The same with another tile shape.
    fn with_tiles(self, tiles: Tiles) -> Self {
        let mut params = self.params;
        assert_eq!(params.fold, 1, "every head has keys of its own");
        params.tile_count = params.seq_q.div_ceil(tiles.rows());
        params.item_count = params.heads * params.chunk_count * params.tile_count;
        params.grid_width = params.item_count;
        params.rolled = tiles.keys();
        let variant = Variant { tiles, ..self.variant };
        Self { variant, params, workgroups: [params.item_count, 1], ..self }
    }

    /// The prediction may not be lower. Conditions that it leaves out (rows that a thread does not
    /// have, blocks that a store does not need) make it a little higher.
    fn compare(&self, context: &Context) -> Result<(), String> {
        let (counted, predicted) = (self.counted(context)?, self.predicted());
        if predicted < counted || predicted > counted + counted / 8 + 100 {
            return Err(format!(
                "{}, {}: {counted} iterations, {predicted} predicted",
                self.problem, self.variant
            ));
        }
        Ok(())
    }

    /// By the planner's formula, for the key tiles that the kernel visits.
    fn predicted(&self) -> u64 {
        let problem = self.problem;
        let (tiles, edges) = self.most_tiles();
        let keys = match self.variant.operation {
            Operation::FlashForward | Operation::FlashSplit => {
                tiles * self.variant.tiles.keys() as usize
            }
            Operation::FlashMerge
            | Operation::UnfusedScores
            | Operation::UnfusedSoftmax
            | Operation::UnfusedValues => problem.seq_kv(),
        };
        self.variant.loop_iterations(&LoopShape {
            keys,
            chunks: self.chunks.map_or(0, KeyChunks::count),
            careful_tiles: edges as u64,
            head_dim: problem.head_dim(),
            head_dim_v: problem.head_dim_v(),
            dropout: problem.dropout().is_some(),
        })
    }

    /// The most key tiles, and the most edge tiles, that any workgroup of a flash kernel visits.
    fn most_tiles(&self) -> (usize, usize) {
        let problem = self.problem;
        let [rows, width] = [self.variant.tiles.rows(), self.variant.tiles.keys()];
        let (rows, width) = (rows as usize, width as usize);
        let masked = problem.mask().is_some() || problem.dropout().is_some();
        let chunk_keys = self.chunks.map_or(usize::MAX, KeyChunks::keys);
        let mut most = (0, 0);
        for first in (0..problem.seq_q()).step_by(rows) {
            let of_rows: Range<usize> = first..first + rows;
            let (seq_q, seq_kv) = (problem.seq_q(), problem.seq_kv());
            let visitor = KeyTiles::new(problem.band(), masked, of_rows, width, seq_q, seq_kv);
            let mut of_chunks: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
            for tile in visitor {
                let (tiles, edges) = of_chunks.entry(tile.keys.start / chunk_keys).or_default();
                *tiles += 1;
                *edges += usize::from(tile.kind == TileKind::Edge);
            }
            for (tiles, edges) in of_chunks.into_values() {
                most = (most.0.max(tiles), most.1.max(edges));
            }
        }
        most
    }

    /// The most loop iterations of any invocation.
    fn counted(&self, context: &Context) -> Result<u64, String> {
        let name = self.variant.to_string();
        let probe = Probe {
            name: &name,
            wgsl: counting(&self.variant.wgsl())?,
            entry_point: self.variant.entry_point(),
            constants: &self.constants,
            workgroups: self.workgroups,
        };
        let mut buffers = Vec::new();
        for binding in self.variant.bindings() {
            let mut contents = match binding.slot {
                Slot::Params => bytemuck::bytes_of(&self.params).to_vec(),
                slot => self.contents(slot)?,
            };
            contents.resize(contents.len().next_multiple_of(4), 0);
            let usage = if binding.slot == Slot::Params { Usage::UNIFORM } else { Usage::STORAGE };
            buffers.push((binding.slot as u32, buffer(context, &contents, usage)));
        }
        buffers.push((COUNTER_BINDING, buffer(context, &[0; 4], Usage::STORAGE)));
        let bound: Vec<_> = buffers.iter().map(|(binding, buffer)| (*binding, buffer)).collect();
        probe.run(context, &bound);
        let (_, counter) = bound.last().ok_or("no counter")?;
        Ok(words(&read(context, counter)?)[0].into())
    }

    /// What a buffer holds before the dispatch.
    fn contents(&self, slot: Slot) -> Result<Vec<u8>, String> {
        let (problem, dtype) = (self.problem, self.problem.dtype());
        let bytes = |view: &TensorView| view.byte_span().ok_or("too large".to_owned());
        let filled = |view: &TensorView, value: fn(usize) -> f64| {
            let mut contents = vec![0; bytes(view)?];
            let [_, heads, seq, dim] = view.shape;
            for (h, j) in (0..heads).flat_map(|h| (0..seq).map(move |j| (h, j))) {
                for d in 0..dim {
                    dtype.write(&mut contents, view.index(0, h, j, d), value(j));
                }
            }
            Ok(contents)
        };
        match slot {
            Slot::Q => filled(problem.q(), |_| 1.0),
            // The score of key j is at least j / 4.
            Slot::K => filled(problem.k(), |j| j as f64 / 16.0),
            // NaN in every storage type.
            Slot::V => Ok(vec![0xFF; bytes(problem.v())?]),
            // True.
            Slot::Mask => Ok(vec![0xFF; problem.mask().and_then(Mask::byte_span).unwrap_or(0)]),
            Slot::Out => Ok(vec![0; bytes(problem.out())?]),
            Slot::Workspace => Ok(vec![0; self.workspace_bytes as usize]),
            Slot::Params | Slot::Aux | Slot::Lse => {
                Err(format!("{slot:?} is not part of these problems"))
            }
        }
    }
}

/// Where the counting kernels write the largest count of any invocation.
const COUNTER_BINDING: u32 = 9;

/// Adds a counter to every loop of a kernel. It includes the last pass of a loop with a condition,
/// which only ends the loop.
fn counting(wgsl: &str) -> Result<String, String> {
    const DECLARATIONS: &str = "
@group(0) @binding(9) var<storage, read_write> most: atomic<u32>;
var<private> passes: u32;
";
    if wgsl.contains("loop {") || wgsl.contains("while ") {
        return Err("only `for` is counted".into());
    }
    let mut source = String::new();
    for line in wgsl.lines() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        if line.starts_with("@compute") {
            source += DECLARATIONS;
        }
        if code.starts_with("for (") {
            if !code.contains(";;)") {
                source += &format!("{indent}passes += 1u;\n");
            }
            source += &format!("{line}\n{indent}    passes += 1u;\n");
        } else {
            source += &format!("{line}\n");
        }
    }
    // The entry point comes last.
    let end = source.rfind('}').ok_or("no entry point")?;
    source.insert_str(end, "    atomicMax(&most, passes);\n");
    Ok(source)
}
