//! The kernel source over the catalogue, within the oracle's bound, with the launches that
//! flashtile-cuda makes for several compute capabilities.

use super::Test;
use super::common::{all_tiles, on_tensor_cores, parse, report, tile_cases, tile_name};
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, HostArgs, HostStats, KernelKind, PlanOptions,
    Problem, Verdict,
};
use flashtile_emulator::{EmulatedCudaBackend, Emulator, TensorSums, ThreadOrder};
use flashtile_shaders::cuda::{Arch, CUDA_TF32_TILES, CudaTiles};
use flashtile_testkit::{
    Case, catalogue, check_lengths, check_neighbours, check_repeats, chosen_cases, run_case,
    run_random,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Larger cases are left out: the emulator computes about 10^8 operations per second.
const MOST_FLOPS: u64 = 4_000_000;

/// Compute capabilities, and the step through the catalogue's cases for each one. sm_80 has tensor
/// cores for all types, sm_60 has none, sm_75 has them for f16 only, sm_90 has the widest tiles.
const ARCHS: [(Arch, usize); 4] = [(80, 1), (60, 2), (75, 7), (90, 9)];

/// The same for the cases on tensor cores, with sums that are truncated as on GPUs.
const TRUNCATING_ARCHS: [(Arch, usize); 3] = [(80, 1), (75, 3), (90, 3)];

/// Cases in which truncation loses most: sums of one sign over many keys, or over head_dim where q
/// is parallel to k. Tensor cores alone would exceed the bound in most of them.
const ONE_SIGN: [(Arch, &str); 18] = [
    (75, "shape=1x1x16x32 skv=32768 dtype=f16 values=positive"),
    (75, "shape=1x1x4x128 skv=4096 dtype=f16 values=positive"),
    (80, "shape=1x1x16x32 skv=16384 dtype=f16 values=positive"),
    (90, "shape=1x1x16x32 skv=16384 dtype=f16 values=positive"),
    (75, "shape=1x2x20x32 skv=40 dtype=f16 values=onehot"),
    (75, "shape=1x2x20x64 skv=40 dtype=f16 values=onehot"),
    (75, "shape=1x2x20x128 skv=40 dtype=f16 values=onehot"),
    (80, "shape=1x2x20x128 skv=40 dtype=f16 values=onehot"),
    (80, "shape=1x2x20x256 skv=40 dtype=f16 values=onehot"),
    (90, "shape=1x2x20x256 skv=40 dtype=f16 values=onehot"),
    (80, "shape=1x1x16x32 skv=32768 values=positive"),
    (90, "shape=1x1x16x32 skv=32768 values=positive"),
    (80, "shape=1x1x16x32 skv=64 values=positive"),
    (90, "shape=1x1x16x32 skv=64 values=positive"),
    (80, "shape=1x2x20x16 skv=40 values=onehot"),
    (90, "shape=1x2x20x16 skv=40 values=onehot"),
    (80, "shape=1x2x20x128 skv=40 values=onehot"),
    (90, "shape=1x2x20x256 skv=40 values=onehot"),
];

pub(super) fn tests() -> Vec<Test> {
    let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
    if let [(_, case)] = &cases[..] {
        return replay(case);
    }
    let mut tests = of_catalogue(&cases);
    tests.extend(of_tiles());
    tests.extend(few_queries_in_f32(&cases));
    for &kernel in KernelKind::ALL {
        tests.extend(of_kernel(kernel));
    }
    tests
}

/// What a test runs, beside its cases.
#[derive(Clone, Copy)]
struct Setup {
    arch: Arch,
    kernel: KernelKind,
    tiles: Option<CudaTiles>,
    sums: TensorSums,
    /// Every case in every order of threads; otherwise the orders take turns.
    every_order: bool,
}

impl Setup {
    fn new(arch: Arch, kernel: KernelKind) -> Self {
        let sums = TensorSums::Nearest;
        Self { arch, kernel, tiles: None, sums, every_order: false }
    }

    fn flash(arch: Arch) -> Self {
        Self::new(arch, KernelKind::Flash)
    }

    /// With the sums of real tensor cores.
    fn truncating(self) -> Self {
        Self { sums: TensorSums::measured(self.arch), ..self }
    }

    fn test(self, name: String, cases: Vec<Case>) -> Test {
        (name, Box::new(move |emulator| self.run_all(&emulator, &cases)))
    }

    /// Runs every case, and reports every failure.
    fn run_all(self, emulator: &Arc<Emulator>, cases: &[Case]) -> Result<(), String> {
        let backend = EmulatedCudaBackend::new(emulator.clone(), self.arch, ThreadOrder::Forward)
            .with_sums(self.sums);
        let backend = match self.tiles {
            Some(tiles) => backend.with_tiles(tiles),
            None => backend,
        };
        let orders = ThreadOrder::ALL;
        report(cases.iter().enumerate().flat_map(|(n, case)| {
            let orders =
                if self.every_order { orders.to_vec() } else { vec![orders[n % orders.len()]] };
            let run = |order| run_case(&backend.with_order(order), self.kernel, case).err();
            orders.into_iter().filter_map(run).collect::<Vec<_>>()
        }))
    }
}

/// One case on every kernel.
fn replay(case: &Case) -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    for (arch, _) in ARCHS {
        let setup = Setup { every_order: true, ..Setup::flash(arch) };
        tests.push(setup.test(format!("sm_{arch} flash"), vec![case.clone()]));
        if on_tensor_cores(arch, case.dtype) {
            let name = format!("sm_{arch} flash, truncated sums");
            tests.push(setup.truncating().test(name, vec![case.clone()]));
        }
    }
    let setup = Setup { every_order: true, ..Setup::new(80, KernelKind::Unfused) };
    tests.push(setup.test("sm_80 unfused".to_owned(), vec![case.clone()]));
    tests
}

fn of_catalogue(cases: &[(&'static str, Case)]) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut groups: Vec<&str> = cases.iter().map(|(group, _)| *group).collect();
    groups.dedup();
    for group in groups {
        let of_group = cases.iter().filter(|(g, _)| *g == group).map(|(_, case)| case);
        // Long keys show what shorter ones cannot, so none of those is left out.
        let fits = |case: &&Case| group == "long keys" || case.flops() <= MOST_FLOPS;
        let small: Vec<&Case> = of_group.filter(fits).collect();
        let spread = |step| small.iter().step_by(step).map(|&case| case.clone()).collect();
        for (arch, step) in ARCHS {
            let name = format!("sm_{arch} flash: {group}");
            tests.push(Setup::flash(arch).test(name, spread(step)));
        }
        let setup = Setup::new(80, KernelKind::Unfused);
        tests.push(setup.test(format!("sm_80 unfused: {group}"), spread(3)));
        for (arch, step) in TRUNCATING_ARCHS {
            let truncates = |case: &&&Case| on_tensor_cores(arch, case.dtype);
            let cases = small.iter().filter(truncates).step_by(step);
            let cases: Vec<Case> = cases.map(|&case| case.clone()).collect();
            if !cases.is_empty() {
                let name = format!("sm_{arch} flash, truncated sums: {group}");
                tests.push(Setup::flash(arch).truncating().test(name, cases));
            }
        }
    }
    for (arch, _) in TRUNCATING_ARCHS {
        let of_arch = ONE_SIGN.into_iter().filter(|(of, _)| *of == arch);
        let cases = of_arch.map(|(_, line)| line.parse().expect("a constant of this file"));
        let name = format!("sm_{arch} flash, truncated sums: one sign");
        tests.push(Setup::flash(arch).truncating().test(name, cases.collect()));
    }
    tests
}

fn of_tiles() -> Vec<Test> {
    all_tiles()
        .map(|tiles| {
            let setup = Setup { tiles: Some(tiles), every_order: true, ..Setup::flash(90) };
            let test: Test = (
                format!("tiles: {}", tile_name(&tiles)),
                Box::new(move |emulator| setup.run_all(&emulator, &tile_cases(&tiles)?)),
            );
            test
        })
        .collect()
}

/// Few queries in f32 on tensor cores, which plans use for them only if that is required. Most of
/// these cases split their keys.
fn few_queries_in_f32(cases: &[(&'static str, Case)]) -> Vec<Test> {
    let few = cases.iter().filter(|(group, _)| *group == "few queries").map(|(_, case)| case);
    let few: Vec<&Case> = few.filter(|case| case.flops() <= MOST_FLOPS).collect();
    let tiles =
        CUDA_TF32_TILES.into_iter().filter(|tiles| tiles.has_split() && tiles.has_general());
    tiles
        .map(|tiles| {
            let fits = |case: &&&Case| {
                tiles.engine.multiplies(case.dtype) && case.head_dim <= tiles.head_dim as usize
            };
            let cases = few.iter().filter(fits).map(|&case| case.clone()).collect();
            let setup = Setup { tiles: Some(tiles), ..Setup::flash(80) };
            setup.truncating().test(format!("few queries: {}", tile_name(&tiles)), cases)
        })
        .collect()
}

/// What holds for a kernel beyond the bound, and random problems.
fn of_kernel(kernel: KernelKind) -> Vec<Test> {
    let count = std::env::var("FLASHTILE_RANDOM").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let (count, all_sums) = if kernel == KernelKind::Flash {
        (count, vec![TensorSums::Nearest, TensorSums::measured(80)])
    } else {
        (count / 3, vec![TensorSums::Nearest])
    };
    let mut tests: Vec<Test> = vec![
        (
            format!("{kernel}: same bits in every order of threads"),
            Box::new(move |emulator| same_in_every_order(emulator, kernel)),
        ),
        (
            format!("{kernel}: same bits beside other batch entries"),
            Box::new(move |emulator| {
                let backend = EmulatedCudaBackend::new(emulator, 80, ThreadOrder::Forward);
                let check = |case: &Case| check_neighbours(&backend, kernel, case).err();
                report(together().iter().filter_map(check))
            }),
        ),
        (
            format!("{kernel}: same bits for calls of any length"),
            Box::new(move |emulator| {
                let backend = EmulatedCudaBackend::new(emulator, 80, ThreadOrder::Forward);
                let check = |case: &Case| check_lengths(&backend, kernel, case).err();
                report(shorter_than_the_cache().iter().filter_map(check))
            }),
        ),
    ];
    for sums in all_sums {
        let how = if sums == TensorSums::Nearest { "" } else { ", truncated sums" };
        tests.push((
            format!("{kernel}: random problems{how}"),
            Box::new(move |emulator| {
                let order = ThreadOrder::Shuffled(2);
                let backend = EmulatedCudaBackend::new(emulator, 80, order).with_sums(sums);
                let tally = run_random(&backend, kernel, 0..count).map_err(|e| e.to_string())?;
                if tally.all_passed() { Ok(()) } else { Err(tally.to_string()) }
            }),
        ));
    }
    tests
}

/// Some cases with all features at once.
fn together() -> Vec<Case> {
    let group = |name| catalogue().into_iter().filter(move |(group, _)| *group == name);
    // With two to three batch entries, whose keys are split into chunks.
    let split = group("few queries").filter(|(_, case)| case.batch > 1).step_by(4);
    group("together").step_by(4).chain(split).map(|(_, case)| case).collect()
}

/// Cases in which no row sees the last keys of the cache.
fn shorter_than_the_cache() -> Vec<Case> {
    let lines = [
        "shape=2x4x1x64 hkv=2 skv=2000 dtype=f16 kv_lens=1000:257 poison=unseen",
        "shape=1x4x3x24 hkv=1 skv=1500 causal=yes align=bottom-right kv_lens=300 poison=unseen",
        "shape=1x2x20x16 skv=100 dtype=bf16 kv_lens=40",
    ];
    lines.map(|line| parse(line).expect("a valid case")).to_vec()
}

/// The same GPU, with the other order of threads in every second run.
#[derive(Debug)]
struct Turning {
    backend: EmulatedCudaBackend,
    orders: [ThreadOrder; 2],
    runs: AtomicUsize,
}

impl Backend for Turning {
    fn kind(&self) -> BackendKind {
        self.backend.kind()
    }

    fn device_name(&self) -> String {
        format!("{}, then {:?}", self.backend.device_name(), self.orders[1])
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        self.backend.verdict(problem, options)
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        self.backend.plan(problem, options)
    }

    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.backend.with_order(self.orders[run % 2]).run(problem, options, args)
    }
}

fn same_in_every_order(emulator: Arc<Emulator>, kernel: KernelKind) -> Result<(), String> {
    let backend = EmulatedCudaBackend::new(emulator, 80, ThreadOrder::Forward);
    let others = [ThreadOrder::Reverse, ThreadOrder::Shuffled(1), ThreadOrder::Shuffled(2)];
    let cases = together();
    let runs = cases.iter().flat_map(|case| others.map(|other| (case, other)));
    report(runs.filter_map(|(case, other)| {
        let orders = [ThreadOrder::Forward, other];
        let turning = Turning { backend: backend.clone(), orders, runs: AtomicUsize::new(0) };
        check_repeats(&turning, kernel, case).err()
    }))
}
