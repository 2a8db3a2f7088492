//! The kernels that are made for heads of one width and keep rows in registers. Plans take them on
//! GPUs; here they are forced, because what they compute does not depend on the device.

use super::{
    Check, Devices,
    embedding::{buffer, read},
};
use crate::harness::is_required;
use crate::shared::{SameBits, bytes, cases, dense, floats, hold, report, run_all, text};
use flashtile_core::{HostInputs, KernelKind, Problem};
use flashtile_shaders::{BROADCAST_LANES, LANE_TILES, UNIFORM_TILES, broadcast_tiles};
use flashtile_testkit::{Case, check_lengths, check_neighbours};
use flashtile_wgpu::{Args, Context, Plan, PlanOptions, Region, Tiles, wgpu};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 1] =
    [("tensors may start between words of 16 bytes", between_words)];

/// The shapes that run here. Kernels that have all of a wide row in one thread take minutes to
/// compile on software adapters; they differ from narrow ones in how often the same lines are
/// repeated.
pub(super) fn shapes() -> impl Iterator<Item = Tiles> {
    let narrow = |tiles: &Tiles| !matches!(tiles, Tiles::Uniform(shape) if shape.width > 16);
    let broadcast = BROADCAST_LANES.into_iter().flat_map(broadcast_tiles);
    UNIFORM_TILES.into_iter().chain(LANE_TILES).filter(narrow).chain(broadcast)
}

/// One shape of each kernel that reads words of 16 bytes, among those that run on the device; two of
/// the kernel with broadcasts, for few queries and for many.
pub(super) fn first_shapes(context: &Context) -> Vec<Tiles> {
    let lanes = context.adapter_info().subgroup_min_size;
    let subgroups = context.device().features().contains(wgpu::Features::SUBGROUP);
    let mut shapes = vec![UNIFORM_TILES[0]];
    if let Tiles::Lanes(shape) = LANE_TILES[0]
        && subgroups
        && shape.lanes <= lanes
    {
        shapes.push(LANE_TILES[0]);
    }
    if subgroups && BROADCAST_LANES.contains(&lanes) {
        let [few, _, _, many, ..] = broadcast_tiles(lanes);
        shapes.extend([few, many]);
    }
    shapes
}

/// Cases over everything that the kernel of `tiles` computes, for several batch entries. Few of them
/// need a pipeline of their own.
pub(super) fn cases_of(tiles: Tiles) -> Vec<Case> {
    let width = tiles.max_head_dim_v();
    let mut lines = vec![
        format!("shape=2x2x75x{width} hkv=1 skv=141 causal=yes poison=unseen"),
        format!("shape=3x2x40x{width} skv=300 causal=yes align=bottom-right window_left=150"),
        // Rows that lie apart.
        format!(
            "shape=2x2x40x{width} skv=141 q={}:{}:{}:1 k={}:{}:{}:1 out={}:{}:{}:1 scale=-3.0",
            200 * width,
            90 * width,
            2 * width,
            300 * width,
            150 * width,
            width,
            400 * width,
            width,
            3 * width
        ),
        format!("shape=2x2x40x{width} skv=141 call_q=33 call_kv=97 poison=unseen"),
        format!("shape=2x1x40x{width} skv=141 nan=v"),
        format!("shape=3x2x37x{width} skv=140 dtype=f16 causal=yes kv_lens=random poison=unseen"),
        // Split into chunks, and merged.
        format!(
            "shape=3x4x5x{width} hkv=2 skv=1500 dtype=f16 causal=yes align=bottom-right \
             window_left=300 kv_lens=1500:520:0 poison=unseen"
        ),
        format!("shape=2x4x2x{width} hkv=2 skv=1300 dtype=f16 kv_lens=1300:3"),
    ];
    if tiles.has_general() {
        lines.push(format!(
            "shape=2x4x39x{width} hkv=2 skv=141 dtype=bf16 causal=yes align=2 window_left=90 \
             window_right=4 softcap=5.0 mask=f32:b11k:blocks kv_lens=random dropout=0.25 \
             poison=unseen"
        ));
    }
    cases(lines)
}

/// Cases whose lengths are shorter than the cache.
fn short_cases_of(tiles: Tiles) -> Vec<Case> {
    let width = tiles.max_head_dim_v();
    let mut lines = vec![
        format!("shape=2x4x3x{width} hkv=2 skv=3000 dtype=f16 kv_lens=1000:257 poison=unseen"),
        format!("shape=2x2x40x{width} skv=300 dtype=f16 causal=yes kv_lens=100:64 poison=unseen"),
    ];
    if tiles.has_general() {
        lines.push(format!(
            "shape=3x2x40x{width} skv=300 dtype=bf16 causal=yes align=400 window_left=380 \
             kv_lens=90:64:51 mask=f32:b11k:blocks dropout=0.2 softcap=10.0"
        ));
    }
    cases(lines)
}

/// A row has the same bits whatever the batch, and however many keys lie beyond those that it sees.
pub(super) fn same_bits(devices: &Devices) -> Result<(), String> {
    let mut failures = Vec::new();
    for tiles in first_shapes(devices.full.context()) {
        let backend = devices.full.with_tiles(tiles);
        let checks: [(SameBits, Vec<Case>); 2] =
            [(check_neighbours, cases_of(tiles)), (check_lengths, short_cases_of(tiles))];
        for (check, cases) in checks {
            let failed =
                cases.iter().filter_map(|case| check(&backend, KernelKind::Flash, case).err());
            failures.extend(report(failed).err());
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// What a test of a shape means where subgroups do not have its number of lanes. The planner
/// refuses the shape there, which its own tests check.
fn without_lanes(lanes: u32) -> Result<(), String> {
    if is_required("FLASHTILE_REQUIRE_LANES") {
        return Err(format!("the adapter has no subgroups of {lanes} lanes"));
    }
    Ok(())
}

/// A shape of the kernel that broadcasts K and V, over all that it computes. It is made for
/// subgroups of one size.
pub(super) fn run_broadcast(devices: &Devices, tiles: Tiles) -> Result<(), String> {
    if tiles.threads() != devices.full.context().adapter_info().subgroup_min_size {
        return without_lanes(tiles.threads());
    }
    let width = tiles.max_head_dim_v();
    let (narrow, odd) = (width - 8, width / 2 + 8);
    let lines = [
        format!("shape=1x2x75x{width} hkv=1 skv=141 causal=yes poison=unseen"),
        format!(
            "shape=2x2x70x{narrow} hkv=1 skv=300 causal=yes align=bottom-right window_left=150"
        ),
        format!("shape=1x1x40x{odd} dv={narrow} skv=4099 causal=yes align=bottom-right"),
        format!("shape=1x2x37x{odd} dv=8 skv=140 dtype=f16 causal=yes poison=unseen"),
        format!("shape=1x1x5x{width} skv=50 scale=3e38"),
        format!("shape=1x1x40x{width} skv=141 scale=-3.0 nan=v"),
        format!("shape=1x1x40x{width} skv=141 nan=k causal=yes"),
        format!("shape=1x1x40x{width} skv=141 nan=q"),
        format!(
            "shape=2x4x39x{width} hkv=2 skv=141 dtype=bf16 causal=yes align=2 window_left=90 \
             window_right=4 kv_lens=random poison=unseen"
        ),
    ];
    run_all(&devices.full.with_tiles(tiles), KernelKind::Flash, &cases(lines))
}

/// A shape over several tiles of queries and keys, with edge tiles. Compiling such kernels takes
/// long on software adapters, up to minutes for wide ones with all of a row in one thread, so only
/// the first shape of each kernel runs every feature.
pub(super) fn run_shape(devices: &Devices, tiles: Tiles, width: u32) -> Result<(), String> {
    if let Tiles::Lanes(shape) = tiles
        && shape.lanes > devices.full.context().adapter_info().subgroup_min_size
    {
        return without_lanes(shape.lanes);
    }
    let backend = devices.full.with_tiles(tiles);
    let mut lines = vec![format!("shape=1x2x75x{width} hkv=1 skv=141 causal=yes poison=unseen")];
    if tiles == UNIFORM_TILES[0] || tiles == LANE_TILES[0] {
        lines.extend([
            format!(
                "shape=2x2x70x{width} hkv=1 skv=300 causal=yes align=bottom-right window_left=150"
            ),
            format!("shape=1x1x40x{width} skv=4099 causal=yes align=bottom-right"),
            format!("shape=1x2x37x{width} skv=140 dtype=f16 causal=yes poison=unseen"),
            format!("shape=1x1x5x{width} skv=50 scale=3e38"),
            format!("shape=1x2x33x{width} skv=29 mask=bool:b11k:blocks poison=unseen"),
            format!("shape=1x1x40x{width} skv=141 scale=-3.0 nan=v"),
            format!("shape=1x1x40x{width} skv=141 nan=k causal=yes"),
            format!("shape=1x1x40x{width} skv=141 nan=q mask=f32:11qk:blocks"),
            format!(
                "shape=2x4x39x{width} hkv=2 skv=141 dtype=bf16 causal=yes align=2 window_left=90 \
                 window_right=4 softcap=5.0 mask=f32:b11k:blocks kv_lens=random dropout=0.25 \
                 poison=unseen"
            ),
        ]);
    } else if tiles == LANE_TILES[6] || tiles == UNIFORM_TILES[1] {
        // Eight lanes exchange in another way than four, and Q in memory is read in another loop.
        lines.push(format!(
            "shape=1x2x39x{width} skv=61 dtype=bf16 mask=f32:b11k:blocks dropout=0.25 poison=unseen"
        ));
    }
    run_all(&backend, KernelKind::Flash, &cases(lines))
}

/// A causal problem over several tiles, in f32.
fn problem(width: usize) -> Result<(Problem, Vec<u8>), String> {
    let view = dense([1, 2, 75, width]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    Ok((problem, bytes(&floats(5, 2 * 75 * width))))
}

fn result(
    context: &Context,
    plan: &Plan,
    x: &wgpu::Buffer,
    k: Region<'_>,
) -> Result<Vec<u8>, String> {
    let out = buffer(context, &vec![0; x.size() as usize], Usage::STORAGE);
    plan.submit(&Args::new(x, k, x, &out)).map_err(text)?;
    read(context, &out)
}

fn between_words(context: &Context) -> Result<(), String> {
    let (problem, host) = problem(16)?;
    let options = PlanOptions::new().tiles(UNIFORM_TILES[0]);
    let plan = context.plan_blocking(&problem, &options).map_err(text)?;
    let x = buffer(context, &host, Usage::STORAGE);
    let moved = buffer(context, &[&[0xFF; 4][..], &host].concat(), Usage::STORAGE);
    for k in [Region::from(&moved).offset(4), Region::from(&x)] {
        let inputs = HostInputs::new(&host, &host, &host);
        hold(&problem, &inputs, &result(context, &plan, &x, k)?)?;
    }
    Ok(())
}
