//! Kernels through wgpu, on the best adapter of this machine.

mod backend;
mod calls;
mod checked;
mod devices;
mod embedding;
mod long;
mod loops;
mod matrix;
mod order;
mod probe;
mod registers;
mod stress;
mod tuning;
mod visited;

use crate::{
    harness::{Suite, Test},
    shared::{Chosen, cases, random, run_all, same_bits, same_bits_at_any_length},
};
use backend::WgpuBackend;
use flashtile_core::KernelKind;
use flashtile_testkit::{check_neighbours, check_repeats};
use flashtile_wgpu::{Context, FLASH_TILES, Tiles};

/// A test of what an application or a device does.
type Check = fn(&Context) -> Result<(), String>;

/// The devices under test: one adapter, opened twice.
pub(super) struct Devices {
    /// With everything that it offers.
    full: WgpuBackend,
    /// With WebGPU's default limits and no features.
    baseline: WgpuBackend,
}

pub(super) fn suite() -> Suite<Devices> {
    let open = || {
        let full = WgpuBackend::full().map_err(|e| e.to_string())?;
        let baseline = WgpuBackend::baseline().map_err(|e| e.to_string())?;
        Ok(Devices { full, baseline })
    };
    Suite { device: "adapter", required: "FLASHTILE_REQUIRE_GPU", open, tests: tests() }
}

fn tests() -> Vec<Test<Devices>> {
    let mut tests: Vec<Test<Devices>> = Vec::new();
    let chosen = Chosen::by_environment();
    if !chosen.replay {
        tests.extend(checked::tests(&chosen.groups));
    }
    for (group, all) in chosen.groups {
        tests.push(matrix::group(group, &all));
        tests.push(matrix::rounded(group, &all));
        if group == "long keys" && !chosen.replay {
            // A driver may refuse these for one reason only. Both devices run all of them.
            let again = all.clone();
            tests.extend([
                Test::new("full: long keys", move |d: &Devices| long::long_keys(&d.full, &all)),
                Test::new("baseline: long keys", move |d: &Devices| {
                    long::long_keys(&d.baseline, &again)
                }),
            ]);
            continue;
        }
        // Most pipelines serve one case only, and compiling them takes most of the time on software
        // adapters. So the flash kernel on the full device runs every case, and the others a part.
        let (some, few) = (Chosen::spread(&all, 5), Chosen::spread(&all, 8));
        let flash = KernelKind::Flash;
        tests.extend([
            Test::new(format!("full flash: {group}"), move |d: &Devices| {
                run_all(&d.full, flash, &all)
            }),
            Test::new(format!("full unfused: {group}"), move |d: &Devices| {
                run_all(&d.full, KernelKind::Unfused, &some)
            }),
            Test::new(format!("baseline flash: {group}"), move |d: &Devices| {
                run_all(&d.baseline, flash, &few)
            }),
        ]);
    }
    if chosen.replay {
        return tests;
    }
    let tiles = FLASH_TILES.into_iter().chain(registers::shapes());
    tests.extend(tiles.map(|tiles| {
        Test::new(format!("tiles: {tiles:?}"), move |d: &Devices| run_tiles(d, tiles))
    }));
    let check = |name, check: Check| Test::new(name, move |d: &Devices| check(d.full.context()));
    tests.extend(embedding::CHECKS.map(|(name, run)| check(format!("embedding: {name}"), run)));
    tests.extend(calls::CHECKS.map(|(name, run)| check(format!("calls: {name}"), run)));
    tests.extend(registers::CHECKS.map(|(name, run)| check(format!("registers: {name}"), run)));
    tests.extend(tuning::CHECKS.map(|(name, run)| check(format!("tuning: {name}"), run)));
    tests.extend(devices::CHECKS.map(|(name, run)| check(format!("device: {name}"), run)));
    tests.push(check(
        "kernels visit the key tiles of core's visitor".into(),
        visited::visited_tiles,
    ));
    tests.push(check("flash kernels take the last tiles first".into(), order::longest_first));
    tests.push(
        Test::new("matrix flash kernels take the last tiles first", |d: &Devices| {
            order::longest_first_on_matrix_units(d.full.context())
        })
        .unless(matrix::missing),
    );
    tests.extend([
        check("loop iterations are counted as kernels run them".into(), loops::planned),
        check("loop iterations are counted as forced kernels run them".into(), loops::forced),
        Test::new("loop iterations are counted as matrix kernels run them", |d: &Devices| {
            loops::on_matrix_units(d.full.context())
        })
        .unless(matrix::missing),
    ]);
    tests.push(check("eight threads see no spurious error".into(), stress::threads));
    tests.push(Test::new("same bits in a second run", |d: &Devices| {
        same_bits(&d.full, KernelKind::ALL, check_repeats)
    }));
    tests.push(Test::new("same bits beside other batch entries", |d: &Devices| {
        same_bits(&d.full, KernelKind::ALL, check_neighbours)
    }));
    tests.push(Test::new("same bits for calls of any length", |d: &Devices| {
        same_bits_at_any_length(&d.full, KernelKind::ALL)
    }));
    tests.push(Test::new("same bits of forced kernels", registers::same_bits));
    tests.extend(matrix::same_bits());
    tests.push(check("keys longer than a binding are split".into(), long::split_by_bindings));
    for &kernel in KernelKind::ALL {
        tests.push(Test::new(format!("random problems: {kernel}"), move |d: &Devices| {
            random(&d.full, kernel)
        }));
    }
    tests
}

/// Each tile shape with its largest head dimension and with an odd one, over several tiles of
/// queries and keys, with edge tiles.
fn run_tiles(devices: &Devices, tiles: Tiles) -> Result<(), String> {
    if let Some(width) = tiles.exact_width() {
        return registers::run_shape(devices, tiles, width);
    }
    if let Tiles::Broadcast(_) = tiles {
        return registers::run_broadcast(devices, tiles);
    }
    let wide = tiles.max_head_dim_v();
    let backend =
        if tiles.flash_workgroup_bytes() <= 16 << 10 { &devices.baseline } else { &devices.full };
    let backend = backend.with_tiles(tiles);
    let cases = cases([
        format!("shape=2x2x70x{wide} hkv=1 skv=300 causal=yes align=bottom-right window_left=150"),
        format!("shape=1x2x37x{} skv=140 dtype=f16 causal=yes poison=unseen", wide - 1),
        format!(
            "shape=2x4x39x24 hkv=2 skv=141 dv={} dtype=bf16 causal=yes align=2 window_left=90 \
             window_right=4 softcap=5.0 mask=f32:b11k:blocks kv_lens=random dropout=0.25 \
             poison=unseen",
            wide.min(57)
        ),
    ]);
    run_all(&backend, KernelKind::Flash, &cases)
}
