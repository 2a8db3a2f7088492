//! Tests of the CUDA kernels on the first NVIDIA GPU of this machine.
//!
//! The names of these tests start with `cuda`: scripts/on-gpu runs each in a process of its own.

mod backend;
mod memory;
mod packed;
mod refusals;
mod streams;

use crate::{
    harness::{Suite, Test},
    shared::{Chosen, cases, random, run_all, same_bits, same_bits_at_any_length},
};
use backend::CudaBackend;
use flashtile_core::{DType, KernelKind};
use flashtile_cuda::{Context, CudaVariant, PlanOptions, schedule};
use flashtile_shaders::Operation;
use flashtile_testkit::{Case, Rng, check_neighbours, check_repeats};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A test of something that a program does with the crate.
type Check = fn(&Context) -> Result<(), AnyError>;

pub(super) fn suite() -> Suite<CudaBackend> {
    let open = || CudaBackend::first().map_err(|e| e.to_string());
    Suite { device: "NVIDIA GPU", required: "FLASHTILE_REQUIRE_CUDA", open, tests: tests() }
}

fn tests() -> Vec<Test<CudaBackend>> {
    let mut tests: Vec<Test<CudaBackend>> = Vec::new();
    let chosen = Chosen::by_environment();
    if !chosen.replay {
        // Each compiles one kernel. They come first so that later tests find the kernels on disk,
        // also if each test runs in a process of its own.
        tests.extend(
            CudaVariant::all()
                .filter(|variant| variant.operation == Operation::FlashForward)
                .map(of_variant),
        );
    }
    for (group, all) in chosen.groups {
        let some = Chosen::spread(&all, 3);
        tests.extend([
            Test::new(format!("cuda flash: {group}"), move |gpu: &CudaBackend| {
                run_all(gpu, KernelKind::Flash, &all)
            }),
            Test::new(format!("cuda unfused: {group}"), move |gpu: &CudaBackend| {
                run_all(gpu, KernelKind::Unfused, &some)
            }),
        ]);
    }
    if chosen.replay {
        return tests;
    }
    let check = |(name, run): (&str, Check)| {
        Test::new(format!("cuda embedding: {name}"), move |gpu: &CudaBackend| {
            run(gpu.context()).map_err(|e| e.to_string())
        })
    };
    tests.extend(memory::CHECKS.map(check));
    tests.push(check(memory::LARGE_STRIDES).unless(|gpu| memory::too_small(gpu.context())));
    tests.extend(streams::CHECKS.map(check));
    tests.extend(refusals::CHECKS.map(check));
    tests.push(Test::new("cuda same bits in a second run", |gpu: &CudaBackend| {
        same_bits(gpu, KernelKind::ALL, check_repeats)
    }));
    tests.push(Test::new("cuda same bits beside other batch entries", |gpu: &CudaBackend| {
        same_bits(gpu, KernelKind::ALL, check_neighbours)
    }));
    tests.push(Test::new("cuda same bits for calls of any length", |gpu: &CudaBackend| {
        same_bits_at_any_length(gpu, KernelKind::ALL)
    }));
    for &kernel in KernelKind::ALL {
        tests.push(Test::new(
            format!("cuda random problems: {kernel}"),
            move |gpu: &CudaBackend| random(gpu, kernel),
        ));
    }
    tests
}

/// Forces one kernel variant, because every variant has to be right and not only those that plans
/// choose. Ignored if the variant needs a newer GPU or more shared memory.
fn of_variant(variant: CudaVariant) -> Test<CudaBackend> {
    let misfit = move |gpu: &CudaBackend| {
        let machine = gpu.context().machine();
        let (arch, shared) = (variant.min_arch(), variant.shared_bytes());
        if machine.arch < arch {
            return Some(format!("it needs compute capability {}.{}", arch / 10, arch % 10));
        }
        let given = machine.shared_limit;
        (shared > given).then(|| {
            format!("it needs {shared} bytes of shared memory, and a block here has {given}")
        })
    };
    Test::new(format!("cuda tiles: {variant}"), move |gpu: &CudaBackend| run_variant(gpu, &variant))
        .unless(misfit)
}

fn run_variant(gpu: &CudaBackend, variant: &CudaVariant) -> Result<(), String> {
    let tiles = variant.tiles;
    let cases = cases_of(variant);
    for case in &cases {
        let problem = case.problem().map_err(|e| e.to_string())?;
        let scheduled = schedule(
            &problem,
            KernelKind::Flash,
            &PlanOptions::new().kernel(KernelKind::Flash).tiles(tiles),
            gpu.context().machine(),
        );
        if !scheduled
            .is_ok_and(|schedule| schedule.dispatches.iter().all(|step| step.variant == *variant))
        {
            return Err(format!("{case} does not use {variant}"));
        }
    }
    run_all(&gpu.with_tiles(tiles), KernelKind::Flash, &cases)
}

/// Cases with several tiles of queries and of keys, with edge tiles, with the widest head that the
/// tile shape supports, with odd widths, and with more columns of V than a block computes.
fn cases_of(variant: &CudaVariant) -> Vec<Case> {
    let CudaVariant { dtype, tiles, .. } = *variant;
    let (rows, keys) = (tiles.rows, tiles.keys);
    let (seq_q, seq_kv) = (2 * rows + 9, 3 * keys + 13);
    // Tiles for tensor cores do not support wider heads. f32 units read Q again for them.
    let wide = tiles.head_dim;
    let wider = if tiles.engine.is_matrix() { wide } else { wide + 37 };
    let (wide_v, wider_v) = (tiles.columns, tiles.columns + 40);
    if variant.general {
        return cases([
            format!(
                "shape=2x4x{}x24 hkv=2 skv={seq_kv} dv={} dtype={dtype} causal=yes align=2 \
                 window_left={} window_right=4 softcap=5.0 mask=f32:b11k:blocks kv_lens=random \
                 dropout=0.25 poison=unseen",
                rows + 11,
                wide_v.min(57),
                2 * keys
            ),
            format!(
                "shape=1x2x{seq_q}x{wide} skv={seq_kv} dv={wide_v} dtype={dtype} \
                 mask=bool:hqk:rows poison=unseen"
            ),
            format!(
                "shape=1x2x{}x{} hkv=1 skv={seq_kv} dv={} dtype={dtype} out=hbsd \
                 mask={dtype}:qk+1:lowest dropout=0.5 dropout_seed=7",
                rows + 1,
                wide - 1,
                wide_v - 3
            ),
            format!(
                "shape=1x2x{}x{wider} skv={} dv={wider_v} dtype={dtype} softcap=20.0 causal=yes",
                rows - 3,
                keys + 5
            ),
        ]);
    }
    cases([
        format!(
            "shape=1x4x{seq_q}x{wide} hkv=2 skv={seq_kv} dv={wide_v} dtype={dtype} causal=yes \
             align=bottom-right window_left={}",
            keys + keys / 2
        ),
        format!(
            "shape=2x3x{}x{} skv={seq_kv} dv={} dtype={dtype} q=bhsd k=hbsd out=bsd causal=yes \
             align=20 kv_lens=random poison=unseen",
            rows + 9,
            wide - 1,
            wide_v - 3
        ),
        format!("shape=1x2x{}x{wider} skv={} dv={wider_v} dtype={dtype}", rows - 3, 2 * keys),
        format!("shape=1x2x{rows}x24 skv={keys} dv=8 dtype={dtype} values=large lse=no"),
    ])
}

/// Densely packed, normally distributed numbers.
fn numbers(dtype: DType, seed: u64, count: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed, 0);
    let mut bytes = vec![0; count * dtype.size()];
    (0..count).for_each(|n| dtype.write(&mut bytes, n, rng.normal()));
    bytes
}
