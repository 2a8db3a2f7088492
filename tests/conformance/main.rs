//! Every kernel on every device here, held to the oracle's bound: promises 1 to 4.
//!
//! Why a harness of its own: where there is no adapter these tests must show as ignored, with the reason, and never as passed. With
//! FLASHTILE_REQUIRE_GPU=1 (as on CI) they fail there instead.
//!
//! FLASHTILE_CASE="shape=..." replays one case on everything; FLASHTILE_RANDOM=N tries N random problems a kernel.
#![allow(clippy::unwrap_used)]

mod devices;
mod embedding;
mod visited;

use flashtile_core::KernelKind;
use flashtile_testkit::{
    Backend, Case, Failure, WgpuBackend, catalogue, check_neighbours, check_repeats, chosen_cases, run_case, run_random,
};
use flashtile_wgpu::{FLASH_TILES, Tiles};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, OnceLock};

/// The devices under test, opened by the first test that runs.
struct Devices {
    full: WgpuBackend,
    baseline: WgpuBackend,
}

type Opened = Arc<OnceLock<Result<Devices, String>>>;

fn open(devices: &Opened) -> Result<&Devices, String> {
    let opened = devices.get_or_init(|| {
        let full = WgpuBackend::full().map_err(|e| e.to_string())?;
        let baseline = WgpuBackend::baseline().map_err(|e| e.to_string())?;
        Ok(Devices { full, baseline })
    });
    opened.as_ref().map_err(Clone::clone)
}

fn main() {
    let arguments = Arguments::from_args();
    let devices: Opened = Arc::default();
    // Asked before anything runs: a test is ignored or not when it is listed.
    let absent = (!arguments.list).then(|| open(&devices).err()).flatten();
    let required = std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1");
    let trials = trials(&devices).into_iter().map(|(name, test)| match &absent {
        Some(reason) if !required => {
            Trial::test(format!("{name} (no adapter: {reason})"), || Ok(())).with_ignored_flag(true)
        }
        _ => {
            let devices = devices.clone();
            Trial::test(name, move || test(open(&devices)?).map_err(Failed::from))
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

type Test = Box<dyn FnOnce(&Devices) -> Result<(), String> + Send>;

fn trials(_: &Opened) -> Vec<(String, Test)> {
    let mut trials: Vec<(String, Test)> = Vec::new();
    let mut add = |name: String, test: Test| trials.push((name, test));
    let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
    let replay = cases.len() == 1;
    let mut groups: Vec<&str> = cases.iter().map(|(group, _)| *group).collect();
    groups.dedup();
    for group in groups {
        let of_group: Vec<Case> = cases.iter().filter(|(g, _)| *g == group).map(|(_, case)| case.clone()).collect();
        // Most pipelines are compiled by one case only, and on software adapters compiling is the time that tests take: the device that users
        // have runs every case, the others a spread of them.
        let spread = |step: usize| of_group.iter().step_by(if replay { 1 } else { step }).cloned().collect::<Vec<_>>();
        let (all, some, few) = (spread(1), spread(5), spread(8));
        add(format!("full flash: {group}"), Box::new(move |d| run_all(&d.full, KernelKind::Flash, &all)));
        add(format!("full unfused: {group}"), Box::new(move |d| run_all(&d.full, KernelKind::Unfused, &some)));
        add(format!("baseline flash: {group}"), Box::new(move |d| run_all(&d.baseline, KernelKind::Flash, &few)));
    }
    if replay {
        return trials;
    }
    for tiles in FLASH_TILES {
        add(format!("tiles: {tiles:?}"), Box::new(move |d| run_tiles(d, tiles)));
    }
    for (name, check) in embedding::CHECKS {
        add(format!("embedding: {name}"), Box::new(move |d| check(d.full.context())));
    }
    for (name, check) in devices::CHECKS {
        add(format!("device: {name}"), Box::new(move |d| check(d.full.context())));
    }
    add("tiles out of sight are not visited".into(), Box::new(|d| visited::visited_tiles(d.full.context())));
    add("same bits in a second run".into(), Box::new(|d| same_bits(d, check_repeats)));
    add("same bits beside other batch entries".into(), Box::new(|d| same_bits(d, check_neighbours)));
    let count = std::env::var("FLASHTILE_RANDOM").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    for kernel in KernelKind::ALL {
        let count = if kernel == KernelKind::Flash { count } else { count / 3 };
        add(format!("random problems: {kernel}"), Box::new(move |d| random(&d.full, kernel, count)));
    }
    trials
}

/// Runs every case and reports every failure.
fn run_all(backend: &dyn Backend, kernel: KernelKind, cases: &[Case]) -> Result<(), String> {
    report(cases.iter().filter_map(|case| run_case(backend, kernel, case).err()))
}

fn report(failures: impl Iterator<Item = Failure>) -> Result<(), String> {
    let failures: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if failures.is_empty() { Ok(()) } else { Err(format!("{} failed\n{}", failures.len(), failures.join("\n"))) }
}

/// Each tile shape at the widest head it holds and at an odd one, over several tiles of queries and keys, with edges.
fn run_tiles(devices: &Devices, tiles: Tiles) -> Result<(), String> {
    let wide = tiles.max_head_dim_v();
    let backend = if tiles.flash_workgroup_bytes() <= 16 << 10 { &devices.baseline } else { &devices.full };
    let backend = backend.with_tiles(tiles);
    let lines = [
        format!("shape=2x2x70x{wide} hkv=1 skv=300 causal=yes align=bottom-right window_left=150"),
        format!("shape=1x2x37x{} skv=140 dtype=f16 causal=yes poison=unseen", wide - 1),
        format!(
            "shape=2x4x39x24 hkv=2 skv=141 dv={} dtype=bf16 causal=yes align=2 window_left=90 window_right=4 softcap=5.0 \
             mask=f32:b11k:blocks kv_lens=random dropout=0.25 poison=unseen",
            wide.min(57)
        ),
    ];
    let cases: Vec<Case> = lines.iter().map(|line| line.parse().unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    run_all(&backend, KernelKind::Flash, &cases)
}

fn same_bits(
    devices: &Devices,
    check: fn(&dyn Backend, KernelKind, &Case) -> Result<(), Failure>,
) -> Result<(), String> {
    let cases: Vec<Case> =
        catalogue().into_iter().filter(|(g, _)| *g == "together").map(|(_, c)| c).step_by(6).collect();
    assert!(!cases.is_empty());
    report(
        KernelKind::ALL
            .into_iter()
            .flat_map(|kernel| cases.iter().filter_map(move |case| check(&devices.full, kernel, case).err())),
    )
}

fn random(backend: &dyn Backend, kernel: KernelKind, count: u64) -> Result<(), String> {
    let tally = run_random(backend, kernel, 0..count).map_err(|failure| failure.to_string())?;
    if tally.all_passed() { Ok(()) } else { Err(tally.to_string()) }
}
