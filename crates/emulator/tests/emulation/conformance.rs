//! The kernels over the catalogue, held to the oracle's bound, on the launches that flashtile-cuda makes for several compute capabilities.

use super::Test;
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, HostArgs, HostStats, KernelKind, PlanOptions,
    Problem, Verdict,
};
use flashtile_emulator::{EmulatedCudaBackend, Emulator, ThreadOrder};
use flashtile_shaders::cuda::{Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CudaTiles, Engine};
use flashtile_testkit::{
    Case, Failure, catalogue, check_neighbours, check_repeats, chosen_cases, run_case, run_random,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most that a case costs: the emulation does some 10^8 operations a second.
const MOST_FLOPS: u64 = 4_000_000;

/// Cards, and of how many cases of the catalogue they are given one. sm_80: tensor cores for both 16-bit types; sm_60: none; sm_75: for f16 only;
/// sm_90: the widest tiles.
const ARCHS: [(Arch, usize); 4] = [(80, 1), (60, 4), (75, 7), (90, 9)];

pub(super) fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    let mut add =
        |name: String, test: Box<dyn FnOnce(Arc<Emulator>) -> Result<(), String> + Send>| {
            tests.push((name, test));
        };
    let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
    let replay = cases.len() == 1;
    let mut groups: Vec<&str> = cases.iter().map(|(group, _)| *group).collect();
    groups.dedup();
    for group in groups {
        let of_group =
            cases.iter().filter(|(g, case)| *g == group && (replay || case.flops() <= MOST_FLOPS));
        let of_group: Vec<Case> = of_group.map(|(_, case)| case.clone()).collect();
        let spread = move |step: usize| {
            of_group.iter().step_by(if replay { 1 } else { step }).cloned().collect()
        };
        for (arch, step) in ARCHS {
            let cases: Vec<Case> = spread(step);
            add(
                format!("sm_{arch} flash: {group}"),
                Box::new(move |e| run_all(&e, arch, None, KernelKind::Flash, &cases, replay)),
            );
        }
        let cases: Vec<Case> = spread(3);
        add(
            format!("sm_80 unfused: {group}"),
            Box::new(move |e| run_all(&e, 80, None, KernelKind::Unfused, &cases, replay)),
        );
    }
    if replay {
        return tests;
    }
    for tiles in CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES) {
        add(
            format!("tiles: {tiles}, head_dim {}, {} columns", tiles.head_dim, tiles.columns),
            Box::new(move |e| {
                run_all(&e, 90, Some(tiles), KernelKind::Flash, &tile_cases(&tiles), true)
            }),
        );
    }
    for &kernel in KernelKind::ALL {
        add(
            format!("{kernel}: same bits in every order of threads"),
            Box::new(move |e| same_in_every_order(e, kernel)),
        );
        add(
            format!("{kernel}: same bits beside other batch entries"),
            Box::new(move |e| {
                let backend = EmulatedCudaBackend::new(e, 80, ThreadOrder::Forward);
                report(
                    together()
                        .iter()
                        .filter_map(|case| check_neighbours(&backend, kernel, case).err()),
                )
            }),
        );
        let count =
            std::env::var("FLASHTILE_RANDOM").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
        let count = if kernel == KernelKind::Flash { count } else { count / 3 };
        add(
            format!("{kernel}: random problems"),
            Box::new(move |e| {
                let backend = EmulatedCudaBackend::new(e, 80, ThreadOrder::Shuffled(2));
                let tally = run_random(&backend, kernel, 0..count)
                    .map_err(|failure| failure.to_string())?;
                if tally.all_passed() { Ok(()) } else { Err(tally.to_string()) }
            }),
        );
    }
    tests
}

/// Runs every case in one order of threads, or in `every_order`, and reports every failure.
fn run_all(
    emulator: &Arc<Emulator>,
    arch: Arch,
    tiles: Option<CudaTiles>,
    kernel: KernelKind,
    cases: &[Case],
    every_order: bool,
) -> Result<(), String> {
    let run = |case: &Case, order| {
        let backend = EmulatedCudaBackend::new(emulator.clone(), arch, order);
        let backend = tiles.map_or(backend.clone(), |tiles| backend.with_tiles(tiles));
        run_case(&backend, kernel, case).err()
    };
    let orders = ThreadOrder::ALL;
    report(cases.iter().enumerate().flat_map(|(n, case)| {
        let orders = if every_order { orders.to_vec() } else { vec![orders[n % orders.len()]] };
        orders.into_iter().filter_map(|order| run(case, order)).collect::<Vec<_>>()
    }))
}

pub(super) fn report(failures: impl Iterator<Item = Failure>) -> Result<(), String> {
    let failures: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} failed\n{}", failures.len(), failures.join("\n")))
    }
}

/// The widest head that the shape holds and an odd one, over several tiles of queries and keys with edges, in every storage type that it has; and
/// all features at once.
pub(super) fn tile_cases(tiles: &CudaTiles) -> Vec<Case> {
    let (wide, columns) = (tiles.head_dim, tiles.columns);
    let (rows, keys) = (tiles.rows + 5, 2 * tiles.keys + 13);
    let (plain, odd) = if tiles.engine == Engine::Mma { ("bf16", "f16") } else { ("f32", "bf16") };
    let mut lines = vec![
        format!(
            "shape=1x2x{rows}x{wide} hkv=1 skv={keys} dtype={plain} causal=yes align=bottom-right"
        ),
        format!(
            "shape=2x1x9x{} skv={keys} dv={} dtype={odd} window_left=20 window_right=30 align=11 kv_lens={keys}:5 poison=unseen",
            wide - 1,
            columns + 3
        ),
    ];
    if tiles.has_general() {
        lines.push(format!(
            "shape=1x2x{rows}x24 skv={keys} dv={} dtype=f16 causal=yes align=2 window_right=4 softcap=5.0 mask=f32:1hqk:blocks \
             kv_lens=random dropout=0.25 poison=unseen",
            columns.min(57)
        ));
    }
    lines.iter().map(|line| line.parse().unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn together() -> Vec<Case> {
    catalogue()
        .into_iter()
        .filter(|(group, _)| *group == "together")
        .map(|(_, case)| case)
        .step_by(4)
        .collect()
}

/// The same card, with another order of threads in each run.
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
    report(together().iter().flat_map(|case| others.map(|other| (case, other))).filter_map(
        |(case, other)| {
            let orders = [ThreadOrder::Forward, other];
            let turning = Turning { backend: backend.clone(), orders, runs: AtomicUsize::new(0) };
            check_repeats(&turning, kernel, case).err()
        },
    ))
}
