//! The kernels as NVRTC compiles them, run by the interpreter: device.cuh and its inline assembly too, for several compute capabilities, with every
//! access watched.

mod banks;
mod mistakes;

use super::conformance::{report, tile_cases};
use flashtile_core::{DType, KernelKind};
use flashtile_emulator::{EmulatedCudaBackend, PtxCompiler, ThreadOrder};
use flashtile_shaders::cuda::{Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CudaTiles, Engine};
use flashtile_testkit::{Case, chosen_cases, run_case};

/// The most that a case costs.
const MOST_FLOPS: u64 = 400_000;

/// Pascal's and Turing's texts differ from the others, which are all like Hopper's; and of how many cases of the catalogue each is given one.
const ARCHS: [(Arch, usize); 3] = [(90, 2), (75, 9), (60, 17)];

type PtxTest = (String, Arch, Box<dyn FnOnce(PtxCompiler) -> Result<(), String> + Send>);

pub(super) fn tests() -> Vec<PtxTest> {
    let mut tests: Vec<PtxTest> = Vec::new();
    let mut add =
        |name: String, arch, test: Box<dyn FnOnce(PtxCompiler) -> Result<(), String> + Send>| {
            tests.push((format!("ptx: {name}"), arch, test));
        };
    let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
    let replay = cases.len() == 1;
    let small: Vec<Case> = cases
        .into_iter()
        .map(|(_, case)| case)
        .filter(|case| replay || case.flops() <= MOST_FLOPS)
        .collect();
    for &kernel in KernelKind::ALL {
        for (arch, step) in ARCHS {
            let step = if replay { 1 } else { step };
            let cases: Vec<Case> = small.iter().step_by(step).cloned().collect();
            let parts = if replay { 1 } else { 8 };
            for part in 0..parts {
                let cases: Vec<Case> = cases.iter().skip(part).step_by(parts).cloned().collect();
                add(
                    format!("sm_{arch} {kernel}, part {part}"),
                    arch,
                    Box::new(move |c| run_all(&c, arch, None, kernel, &cases)),
                );
            }
        }
    }
    if replay {
        return tests;
    }
    for tiles in CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES) {
        add(
            format!("sm_90 {tiles}, head_dim {}, {} columns", tiles.head_dim, tiles.columns),
            90,
            Box::new(move |c| {
                run_all(&c, 90, Some(tiles), KernelKind::Flash, &tile_cases_of_few_types(&tiles))
            }),
        );
    }
    let shapes = CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES).map(Some);
    for tiles in shapes.chain([None]) {
        let name = tiles.map_or("unfused".to_owned(), |tiles| {
            format!("{tiles}, head_dim {}, {} columns", tiles.head_dim, tiles.columns)
        });
        add(
            format!("no bank conflicts, {name}"),
            90,
            Box::new(move |c| banks::no_conflicts(&c, 90, tiles)),
        );
    }
    for (name, arch, mistakes) in mistakes::suspects() {
        add(
            format!("mistakes in {name}"),
            arch,
            Box::new(move |c| mistakes::find_all(&c, arch, &mistakes)),
        );
    }
    tests
}

/// As for the emulation, of which each text is compiled in parallel; NVRTC compiles one after the other, and so bf16 has to do with the catalogue.
fn tile_cases_of_few_types(tiles: &CudaTiles) -> Vec<Case> {
    let mut cases = tile_cases(tiles);
    if tiles.engine == Engine::Mma {
        cases.iter_mut().for_each(|case| case.dtype = DType::F16);
    }
    cases
}

fn run_all(
    compiler: &PtxCompiler,
    arch: Arch,
    tiles: Option<CudaTiles>,
    kernel: KernelKind,
    cases: &[Case],
) -> Result<(), String> {
    let orders = ThreadOrder::ALL;
    report(cases.iter().enumerate().filter_map(|(n, case)| {
        let backend =
            EmulatedCudaBackend::with_ptx(compiler.clone(), arch, orders[n % orders.len()]);
        let backend = tiles.map_or(backend.clone(), |tiles| backend.with_tiles(tiles));
        run_case(&backend, kernel, case).err()
    }))
}
