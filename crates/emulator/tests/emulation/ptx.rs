//! The PTX that NVRTC writes for the kernels, run by the interpreter for several compute
//! capabilities. It includes device.cuh with its inline assembly, and every memory access is
//! checked.

mod banks;
mod mistakes;

use super::common::{all_tiles, on_tensor_cores, report, tile_cases, tile_name};
use flashtile_core::{DType, KernelKind};
use flashtile_emulator::{EmulatedCudaBackend, PtxCompiler, TensorSums, ThreadOrder};
use flashtile_shaders::cuda::{Arch, CudaTiles, Engine};
use flashtile_testkit::{Case, chosen_cases, run_case};

/// Larger cases are left out.
const MOST_FLOPS: u64 = 400_000;

/// Compute capabilities, and the step through the catalogue's cases for each one. Pascal and Turing
/// have PTX of their own; all others have the same PTX as Hopper.
const ARCHS: [(Arch, usize); 3] = [(90, 2), (75, 9), (60, 17)];

/// The cases of one compute capability are spread over so many tests, which run in parallel.
const PARTS: usize = 8;

/// A test with its name and the compute capability that NVRTC has to compile for.
type PtxTest = (String, Arch, Box<dyn FnOnce(PtxCompiler) -> Result<(), String> + Send>);

fn test(
    name: String,
    arch: Arch,
    run: impl FnOnce(PtxCompiler) -> Result<(), String> + Send + 'static,
) -> PtxTest {
    (format!("ptx: {name}"), arch, Box::new(run))
}

pub(super) fn tests() -> Vec<PtxTest> {
    let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
    if let [(_, case)] = &cases[..] {
        return of_catalogue(std::slice::from_ref(case), true);
    }
    let cases = cases.into_iter().map(|(_, case)| case);
    let small: Vec<Case> = cases.filter(|case| case.flops() <= MOST_FLOPS).collect();
    let mut tests = of_catalogue(&small, false);
    for tiles in all_tiles() {
        tests.push(test(format!("sm_90 {}", tile_name(&tiles)), 90, move |compiler| {
            run_all(&compiler, 90, Some(tiles), KernelKind::Flash, &cases_of_few_types(&tiles)?)
        }));
    }
    for tiles in all_tiles().map(Some).chain([None]) {
        let name = tiles.map_or("unfused".to_owned(), |tiles| tile_name(&tiles));
        tests.push(test(format!("no bank conflicts, {name}"), 90, move |compiler| {
            banks::no_conflicts(&compiler, 90, tiles)
        }));
    }
    for (name, arch, suspect) in mistakes::suspects() {
        tests.push(test(format!("mistakes in {name}"), arch, move |compiler| {
            mistakes::find_all(&compiler, arch, &suspect)
        }));
    }
    tests
}

/// Some of the cases per kernel and compute capability; with `all`, each of them.
fn of_catalogue(cases: &[Case], all: bool) -> Vec<PtxTest> {
    let mut tests = Vec::new();
    for &kernel in KernelKind::ALL {
        for (arch, step) in ARCHS {
            let (step, parts) = if all { (1, 1) } else { (step, PARTS) };
            for part in 0..parts {
                let cases = cases.iter().step_by(step).skip(part).step_by(parts);
                let cases: Vec<Case> = cases.cloned().collect();
                tests.push(test(
                    format!("sm_{arch} {kernel}, part {part}"),
                    arch,
                    move |compiler| run_all(&compiler, arch, None, kernel, &cases),
                ));
            }
        }
    }
    tests
}

/// Without bf16. NVRTC compiles one kernel at a time, so bf16 has to do with the catalogue.
fn cases_of_few_types(tiles: &CudaTiles) -> Result<Vec<Case>, String> {
    let mut cases = tile_cases(tiles)?;
    if tiles.engine == Engine::Mma {
        cases.iter_mut().for_each(|case| case.dtype = DType::F16);
    }
    Ok(cases)
}

/// Runs every case once, in alternating orders of threads. What tensor cores add is rounded and
/// truncated: both results have to be within the bound.
fn run_all(
    compiler: &PtxCompiler,
    arch: Arch,
    tiles: Option<CudaTiles>,
    kernel: KernelKind,
    cases: &[Case],
) -> Result<(), String> {
    let orders = ThreadOrder::ALL;
    report(cases.iter().enumerate().flat_map(|(n, case)| {
        let order = orders[n % orders.len()];
        let backend = EmulatedCudaBackend::with_ptx(compiler.clone(), arch, order);
        let backend = tiles.map_or(backend.clone(), |tiles| backend.with_tiles(tiles));
        let matrix = match tiles {
            Some(tiles) => tiles.engine.is_matrix(),
            None => kernel == KernelKind::Flash && on_tensor_cores(arch, case.dtype),
        };
        let truncating = matrix.then(|| TensorSums::measured(arch));
        let sums = [Some(TensorSums::Nearest), truncating].into_iter().flatten();
        let run = |sums| run_case(&backend.with_sums(sums), kernel, case).err();
        sums.filter_map(run).collect::<Vec<_>>()
    }))
}
