//! Kernels with wgpu's runtime checks, which clamp every index and bound every loop, give the bits
//! of those without. Kernels run unchecked because every index is in range; if one were not, its
//! checked twin would read or write another element.
//!
//! Compiling a kernel twice takes most of the time on software adapters, and running a case takes
//! little. So this takes a few kernels, and for each of them many cases of the catalogue. The choice
//! is the same in every run.

use super::{Devices, backend::WgpuBackend, long, matrix, registers};
use crate::{
    harness::Test,
    shared::{Chosen, report, text},
};
use flashtile_core::{DType, KernelKind, MatrixUnits};
use flashtile_shaders::{FLASH_TILES, Tiles};
use flashtile_testkit::{Case, KvLens, check_agreement};

/// The most cases per kernel and group.
const OF_EACH: usize = 2;

/// The widest heads that the portable shape of these tests holds.
const PORTABLE_WIDTH: usize = 32;

/// The widest heads that the narrowest shape for matrix units holds.
const MATRIX_WIDTH: usize = 64;

/// The tests, over `groups` of the catalogue.
pub(super) fn tests(groups: &[(&'static str, Vec<Case>)]) -> Vec<Test<Devices>> {
    let (flash, unfused) = (KernelKind::Flash, KernelKind::Unfused);
    // From 182 queries on, a software adapter takes kernels that are long to compile.
    let chosen = [
        ("lengths", DType::F32),
        ("strides", DType::BF16),
        ("few queries", DType::F16),
        ("together", DType::F32),
    ];
    let planned = of_groups(groups, &chosen, |case| case.seq_q < 182);
    let narrow = |case: &Case| case.head_dim_v <= PORTABLE_WIDTH;
    let portable = of_groups(groups, &[("together", DType::F16)], narrow);
    let in_unfused = of_groups(groups, &[("together", DType::BF16)], |_| true);
    let narrow = |case: &Case| case.head_dim.max(case.head_dim_v) <= MATRIX_WIDTH;
    let in_f16 = matrix::in_f16(&of_groups(groups, &chosen, narrow));
    vec![
        Test::new("runtime checks change no bit: planned kernels", move |d: &Devices| {
            compare(&d.full, flash, &planned)
        }),
        Test::new("runtime checks change no bit: portable kernel", move |d: &Devices| {
            compare(&d.full.with_tiles(FLASH_TILES[2]), flash, &portable)
        }),
        Test::new("runtime checks change no bit: unfused kernels", move |d: &Devices| {
            compare(&d.full, unfused, &in_unfused)
        }),
        Test::new("runtime checks change no bit: parts", move |d: &Devices| {
            let (short, cases) = long::short_bindings(d.full.context())?;
            compare_with(&short, &short, flash, &cases)
        }),
        Test::new("runtime checks change no bit: forced kernels", forced),
        Test::new("matrix flash: runtime checks change no bit", move |d: &Devices| {
            compare(&d.full.with_matrix_units(MatrixUnits::Require), flash, &in_f16)
        })
        .unless(matrix::missing),
    ]
}

/// What decides which kernel a case runs, apart from its tile shape.
fn kernel(case: &Case) -> String {
    let mask = case.mask.map(|mask| mask.kind);
    let kv_lens = case.kv_lens != KvLens::Off;
    let options = (case.softcap.is_some(), case.dropout_p > 0.0);
    let by_four = (case.head_dim | case.head_dim_v).is_multiple_of(4);
    let width = case.head_dim_v.next_power_of_two().max(32);
    // Their keys are split.
    let few = case.seq_q <= 16 && case.seq_kv > 768;
    format!("{} {mask:?} {kv_lens} {} {options:?} {by_four} {width} {few}", case.dtype, case.lse)
}

/// For each of the groups and storage types named, the kernel of the first wanted case; and cases of
/// all groups that run it.
fn of_groups(
    groups: &[(&'static str, Vec<Case>)],
    names: &[(&str, DType)],
    wanted: impl Fn(&Case) -> bool,
) -> Vec<Case> {
    let mut chosen: Vec<Case> = Vec::new();
    for (name, dtype) in names {
        let of_group = groups.iter().find(|(group, _)| group == name).map(|(_, cases)| cases);
        let suits = |case: &&Case| wanted(case) && case.dtype == *dtype;
        let first = of_group.and_then(|cases| cases.iter().find(suits));
        let first = first.unwrap_or_else(|| panic!("no case of {name} in {dtype} is wanted"));
        let runs_it = |case: &Case| wanted(case) && kernel(case) == kernel(first);
        if !chosen.iter().any(runs_it) {
            chosen.extend(of_kernel(groups, runs_it));
        }
    }
    chosen
}

/// The cases that run a kernel, at most [`OF_EACH`] of each group, spread over it.
fn of_kernel(groups: &[(&'static str, Vec<Case>)], runs_it: impl Fn(&Case) -> bool) -> Vec<Case> {
    let of_group = |cases: &Vec<Case>| {
        let cases: Vec<_> = cases.iter().filter(|case| runs_it(case)).cloned().collect();
        Chosen::spread(&cases, cases.len().div_ceil(OF_EACH).max(1))
    };
    groups.iter().flat_map(|(_, cases)| of_group(cases)).collect()
}

/// Compares with a twin on a device of its own: software adapters compile in a device's queue.
fn compare(backend: &WgpuBackend, kernel: KernelKind, cases: &[Case]) -> Result<(), String> {
    compare_with(backend, &backend.on_another_device().map_err(text)?, kernel, cases)
}

/// Compares with the kernels that `other` has when it compiles them with checks.
fn compare_with(
    backend: &WgpuBackend,
    other: &WgpuBackend,
    kernel: KernelKind,
    cases: &[Case],
) -> Result<(), String> {
    let checked = other.with_runtime_checks();
    let agree = |case| check_agreement([backend, &checked], kernel, case);
    report(cases.iter().filter_map(|case| agree(case).err()))
}

/// The kernels with uniform loads and with rows in registers, in f32 and without options: they are
/// unrolled, and each twin takes long to compile. Those with broadcasts are among the planned
/// kernels.
fn forced(devices: &Devices) -> Result<(), String> {
    let mut failures = Vec::new();
    for tiles in registers::first_shapes(devices.full.context()) {
        if let Tiles::Broadcast(_) = tiles {
            continue;
        }
        let mut cases = registers::cases_of(tiles);
        cases.retain(|case| case.dtype == DType::F32);
        failures.extend(compare(&devices.full.with_tiles(tiles), KernelKind::Flash, &cases).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}
