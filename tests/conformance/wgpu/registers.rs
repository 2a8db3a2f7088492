//! The kernels that are made for heads of one width and keep rows in registers. Plans take them on
//! GPUs; here they are forced, because what they compute does not depend on the device.

use super::{
    Check, Devices,
    embedding::{buffer, read},
};
use crate::harness::is_required;
use crate::shared::{bytes, cases, dense, floats, hold, run_all, text};
use flashtile_core::{HostInputs, KernelKind, Problem};
use flashtile_shaders::{BROADCAST_LANES, LANE_TILES, UNIFORM_TILES, broadcast_tiles};
use flashtile_wgpu::{Args, Context, Plan, PlanOptions, Region, Tiles, wgpu};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 2] = [
    ("runtime checks change no bit", runtime_checks),
    ("tensors may start between words of 16 bytes", between_words),
];

/// The shapes that run here. Kernels that have all of a wide row in one thread take minutes to
/// compile on software adapters; they differ from narrow ones in how often the same lines are
/// repeated.
pub(super) fn shapes() -> impl Iterator<Item = Tiles> {
    let narrow = |tiles: &Tiles| !matches!(tiles, Tiles::Uniform(shape) if shape.width > 16);
    let broadcast = BROADCAST_LANES.into_iter().flat_map(broadcast_tiles);
    UNIFORM_TILES.into_iter().chain(LANE_TILES).filter(narrow).chain(broadcast)
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

/// Kernels run unchecked, because every index is in range. If one were not, the checked twin would
/// read another element.
fn runtime_checks(context: &Context) -> Result<(), String> {
    let checked = context.with_runtime_checks();
    for (tiles, width) in [(None, 40), (Some(UNIFORM_TILES[0]), 16), (Some(LANE_TILES[0]), 16)] {
        let (problem, host) = problem(width)?;
        let options = PlanOptions::new().tiles(tiles);
        let mut results = Vec::new();
        for context in [context, &checked] {
            let plan = match context.plan_blocking(&problem, &options) {
                Err(flashtile_wgpu::Error::Refused { .. }) if tiles == Some(LANE_TILES[0]) => {
                    continue; // no subgroups
                }
                plan => plan.map_err(text)?,
            };
            let x = buffer(context, &host, Usage::STORAGE);
            results.push(result(context, &plan, &x, Region::from(&x))?);
        }
        if results.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("{tiles:?}: the results differ"));
        }
    }
    Ok(())
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
