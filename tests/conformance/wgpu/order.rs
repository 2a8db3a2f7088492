//! In which order workgroups take the tiles of queries. Results cannot show this, and it matters
//! only for speed: work that starts last should be short, and the last tile of a causal head has
//! the most keys. So each kernel runs up to the line where a workgroup takes its tile, and records
//! how many keys it is going to visit.

use super::{
    embedding::{buffer, read},
    probe::{Probe, words},
};
use crate::shared::text;
use flashtile_core::{DType, Problem, TensorView, Verdict};
use flashtile_shaders::{Operation, Params, Slot, Tiles, Variant, flash_tiles};
use flashtile_wgpu::{Context, PlanOptions, wgpu};
use std::mem::{Discriminant, discriminant};
use wgpu::BufferUsages as Usage;

/// Tiles of queries per head, heads, batch entries, and chunks of keys where they are split.
const TILES: u32 = 5;
const HEADS: u32 = 2;
const BATCH: u32 = 2;
const CHUNKS: u32 = 2;

/// Where the probe writes.
const RECORD_BINDING: u32 = 9;

const DECLARATION: &str = "@group(0) @binding(9) var<storage, read_write> visited: array<u32>;\n";

/// What takes the place of all that follows after a workgroup has taken its tile.
const RECORD: &str = "
    let seen = kv_range(item, tile_row_end(item, BR));
    if (seen.x != item.keys.x) {
        visited[index] = 0xffffffffu; // a causal mask cuts no keys at the start
        return;
    }
    visited[index] = seen.y - seen.x;
}
";

/// Every kernel that runs here without matrix units.
pub(super) fn longest_first(context: &Context) -> Result<(), String> {
    let kinds = check(context, |tiles| !tiles.uses_matrix_units())?;
    // The portable kernel, the row kernel and the one with uniform loads run everywhere.
    if kinds < 3 { Err(format!("only {kinds} kinds of kernels ran")) } else { Ok(()) }
}

/// The kernel on matrix units.
pub(super) fn longest_first_on_matrix_units(context: &Context) -> Result<(), String> {
    match check(context, Tiles::uses_matrix_units)? {
        0 => Err("no kernel ran".into()),
        _ => Ok(()),
    }
}

/// Checks every shape among `some` that runs here. Returns how many kinds of kernels they are.
fn check(context: &Context, some: fn(&Tiles) -> bool) -> Result<usize, String> {
    let mut kinds: Vec<Discriminant<Tiles>> = Vec::new();
    for tiles in flash_tiles().filter(some) {
        if !runs(context, tiles)? {
            continue;
        }
        for operation in [Operation::FlashForward, Operation::FlashSplit] {
            let variant = Variant::new(operation, DType::F16, None, false, false, tiles);
            let (got, expected) = (visited(context, &variant)?, expected(&variant));
            if got != expected {
                return Err(format!("{variant}: workgroups visit {got:?} keys, not {expected:?}"));
            }
        }
        if !kinds.contains(&discriminant(&tiles)) {
            kinds.push(discriminant(&tiles));
        }
    }
    Ok(kinds.len())
}

/// Whether the device runs the shape at all.
fn runs(context: &Context, tiles: Tiles) -> Result<bool, String> {
    let width = tiles.max_head_dim_v() as usize;
    let view = TensorView::bshd(DType::F16, [1, 8, 1, width]).map_err(text)?;
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let verdict = context.verdict(&problem, &PlanOptions::new().tiles(tiles));
    Ok(matches!(verdict, Verdict::Runs(_)))
}

/// The last tile of a head is shorter than the others.
fn rows(variant: &Variant) -> u32 {
    TILES * variant.tiles.rows() - 1
}

/// Keys per chunk.
fn chunk(variant: &Variant) -> Option<u32> {
    match variant.operation {
        Operation::FlashSplit => Some(rows(variant).div_ceil(CHUNKS)),
        _ => None,
    }
}

/// The keys that each workgroup visits under a causal mask, the last tile of each head first.
fn expected(variant: &Variant) -> Vec<u32> {
    let (rows, per_chunk) = (rows(variant), chunk(variant));
    let chunk_keys = per_chunk.unwrap_or(Params::UNSPLIT);
    let of_head = (0..per_chunk.map_or(1, |_| CHUNKS)).flat_map(|chunk| {
        (0..TILES).rev().map(move |tile| {
            let seen = ((tile + 1) * variant.tiles.rows()).min(rows);
            seen.saturating_sub(chunk * chunk_keys).min(chunk_keys)
        })
    });
    let of_head: Vec<_> = of_head.collect();
    of_head.repeat((HEADS * BATCH) as usize)
}

/// The keys that each workgroup is going to visit, in the order in which workgroups start.
fn visited(context: &Context, variant: &Variant) -> Result<Vec<u32>, String> {
    let rows = rows(variant);
    let view = TensorView::bshd(variant.dtype, [1; 4]).map_err(text)?;
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    let band = problem.band();
    let per_chunk = chunk(variant);
    let chunk_count = per_chunk.map_or(1, |_| CHUNKS);
    let item_count = BATCH * HEADS * chunk_count * TILES;
    let params = Params {
        seq_q: rows,
        seq_kv: rows,
        row_end: rows,
        heads: HEADS,
        head_count: HEADS,
        group: 1,
        fold: 1,
        tile_count: TILES,
        chunk_count,
        chunk_keys: per_chunk.unwrap_or(Params::UNSPLIT),
        item_count,
        grid_width: item_count,
        band_lo: band.lo,
        band_hi: band.hi,
        ..Params::default()
    };
    let source = variant.wgsl();
    let taken = source.find("@compute").and_then(|entry| {
        let call = entry + source[entry..].find("work_item(")?;
        Some(call + source[call..].find('\n')?)
    });
    let taken = taken.ok_or_else(|| format!("{variant} takes no tile"))?;
    let name = variant.to_string();
    let probe = Probe {
        name: &name,
        wgsl: with_declaration(&source[..taken]) + RECORD,
        entry_point: variant.entry_point(),
        constants: &[],
        workgroups: [item_count, 1],
    };
    let params = buffer(context, bytemuck::bytes_of(&params), Usage::UNIFORM);
    let record = buffer(context, &vec![0; 4 * item_count as usize], Usage::STORAGE);
    probe.run(context, &[(Slot::Params as u32, &params), (RECORD_BINDING, &record)]);
    Ok(words(&read(context, &record)?))
}

/// Declares the record before the entry point: directives come first in a source.
fn with_declaration(source: &str) -> String {
    source.replacen("@compute", &format!("{DECLARATION}@compute"), 1)
}
