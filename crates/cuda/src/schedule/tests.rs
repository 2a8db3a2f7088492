use super::*;
use flashtile_core::{Call, Layout, Mask, MatrixUnits, NoMatrixUnits, ProblemBuilder};
use flashtile_shaders::cuda::{CUDA_MMA_TILES, Engine};

const ARCHS: [u32; 9] = [60, 70, 75, 80, 86, 89, 90, 100, 120];

fn builder(dtype: DType, shape: [usize; 4]) -> ProblemBuilder {
    let view = TensorView::from_bhsd_sizes(dtype, Layout::Bhsd, shape).expect("small");
    Problem::builder(view, view, view)
}

fn problem(dtype: DType, shape: [usize; 4]) -> Problem {
    builder(dtype, shape).build().expect("valid")
}

fn plan(problem: &Problem, kernel: KernelKind, machine: &Machine) -> Schedule {
    schedule(problem, kernel, &PlanOptions::new(), machine).expect("runs")
}

fn launches(problem: &Problem, schedule: &Schedule, call: Call, pointers: Pointers) -> Vec<Launch> {
    let call = call.resolve(problem).expect("valid");
    schedule
        .dispatches
        .iter()
        .filter_map(|dispatch| schedule.launch(problem, dispatch, &call, &pointers))
        .collect()
}

#[test]
fn every_gpu_runs_every_head_dim_with_a_listed_variant() {
    let all: Vec<CudaVariant> = CudaVariant::all().collect();
    for arch in ARCHS {
        let machine = Machine::of_arch(arch);
        for &dtype in DType::ALL {
            for head_dim in (1..=512).step_by(7).chain([512]) {
                for (seq_q, softcap) in [(1, None), (40, None), (100, Some(1.0)), (1000, None)] {
                    let problem = builder(dtype, [1, 1, seq_q, head_dim])
                        .softcap(softcap)
                        .build()
                        .expect("valid");
                    for &kernel in KernelKind::ALL {
                        for dispatch in plan(&problem, kernel, &machine).dispatches {
                            let variant = dispatch.variant;
                            assert!(all.contains(&variant), "{variant} is not listed");
                            assert!(
                                variant.fits(arch, machine.shared_limit),
                                "{variant} does not fit {arch}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// `batch` times 32 query heads over 8 key heads.
fn decode(dtype: DType, batch: usize, seq_q: usize, seq_kv: usize, head_dim: usize) -> Problem {
    let view = |heads, seq| {
        TensorView::from_bhsd_sizes(dtype, Layout::Bshd, [batch, heads, seq, head_dim])
            .expect("small")
    };
    let kv = view(8, seq_kv);
    Problem::builder(view(32, seq_q), kv, kv).kv_lens(true).build().expect("valid")
}

#[test]
fn every_gpu_splits_keys_with_a_listed_variant() {
    let all: Vec<CudaVariant> = CudaVariant::all().collect();
    for arch in ARCHS {
        let machine = Machine::of_arch(arch);
        for &dtype in DType::ALL {
            for head_dim in [1, 32, 64, 100, 128, 192, 256, 512] {
                for seq_q in [1, 8, 64] {
                    let problem = decode(dtype, 1, seq_q, 32768, head_dim);
                    let schedule = plan(&problem, KernelKind::Flash, &machine);
                    let operations: Vec<_> =
                        schedule.dispatches.iter().map(|d| d.variant.operation).collect();
                    assert_eq!(operations[..2], [Operation::FlashSplit, Operation::FlashMerge]);
                    for Dispatch { variant, .. } in &schedule.dispatches {
                        assert!(all.contains(variant), "{variant} is not listed");
                        assert!(variant.fits(arch, machine.shared_limit), "{variant} on {arch}");
                    }
                }
            }
        }
    }
}

/// Many blocks share the keys of one sequence, in chunks that do not depend on the batch.
#[test]
fn few_queries_split_their_keys_whatever_the_batch() {
    let machine = Machine::of_arch(90);
    let problem = decode(DType::F16, 1, 1, 32768, 128);
    let one = plan(&problem, KernelKind::Flash, &machine);
    let of = |call| launches(&problem, &one, call, Pointers::default());
    let [split, merge] = of(Call::new())[..] else { panic!("two launches") };
    assert_eq!(
        (split.params.fold, split.params.chunk_keys, split.params.chunk_count),
        (4, 512, 64)
    );
    assert_eq!((split.grid, merge.grid), (8 * 64, 32));
    assert_eq!(one.workspace_bytes, 32 * 64 * 132 * 4);
    // A shorter call takes fewer chunks of the same size; without keys only the merge is left.
    let [split, _] = of(Call::new().seq_kv(513))[..] else { panic!("two launches") };
    assert_eq!((split.params.chunk_keys, split.grid), (512, 8 * 2));
    let [merge] = of(Call::new().seq_kv(0))[..] else { panic!("one launch") };
    assert_eq!(merge.variant.operation, Operation::FlashMerge);
    let four = plan(&decode(DType::F16, 4, 1, 32768, 128), KernelKind::Flash, &machine);
    assert_eq!((four.tiles, four.chunks), (one.tiles, one.chunks));
}

#[test]
fn a_split_is_forced_or_forbidden_by_name() {
    let machine = Machine::of_arch(80);
    let problem = decode(DType::F16, 1, 1, 32768, 128);
    let with =
        |options: PlanOptions<CudaTiles>| schedule(&problem, KernelKind::Flash, &options, &machine);
    let off = with(PlanOptions::new().key_split(KeySplit::Off)).expect("runs");
    assert_eq!((off.chunks, off.workspace_bytes), (None, 0));
    let forced = with(PlanOptions::new().key_split(KeySplit::Keys(8192))).expect("runs");
    assert_eq!(forced.chunks.map(KeyChunks::count), Some(4));
    let wrong = with(PlanOptions::new().key_split(KeySplit::Keys(100))).expect_err("too few");
    assert!(matches!(wrong[..], [Reason::KeySplit { keys: 100, .. }]), "{wrong:?}");
    // Tiles that no kernel with a split has: the tiles were requested, the split was not.
    let wide = CUDA_MMA_TILES.into_iter().find(|tiles| !tiles.has_split()).expect("listed");
    let problem = decode(DType::F16, 1, 1, 32768, 32);
    let with = |options| schedule(&problem, KernelKind::Flash, &options, &machine);
    let tiles = PlanOptions::new().tiles(wide);
    assert_eq!(with(tiles).expect("runs").chunks, None);
    let both = with(tiles.key_split(KeySplit::Keys(512))).expect_err("no such kernel");
    assert!(matches!(both[..], [Reason::Tiles { .. }]), "{both:?}");
}

/// Heads that share tiles are in one part.
#[test]
fn parts_of_a_split_hold_whole_groups() {
    let problem = decode(DType::F32, 64, 64, 1 << 20, 128);
    let schedule = plan(&problem, KernelKind::Flash, &Machine::of_arch(80));
    assert!(schedule.dispatches.len() > 2 && schedule.fold == 1);
    let problem = decode(DType::F32, 64, 16, 1 << 20, 128);
    let schedule = plan(&problem, KernelKind::Flash, &Machine::of_arch(80));
    assert!(schedule.dispatches.len() > 2 && schedule.fold == 4);
    for Dispatch { part, .. } in &schedule.dispatches {
        assert!(part.heads.start % 4 == 0 && part.heads.end % 4 == 0, "{part:?}");
    }
}

/// Tensor cores truncate their sums, so not every tile shape takes any number of keys.
#[test]
fn many_keys_get_tiles_whose_sums_stay_within_the_error_bound() {
    let tiles = |arch, keys, head_dim| {
        let problem = problem(DType::F16, [1, 1, keys, head_dim]);
        plan(&problem, KernelKind::Flash, &Machine::of_arch(arch)).tiles
    };
    for arch in [75, 80, 86, 90, 120] {
        for head_dim in [64, 96, 128, 192, 256] {
            for keys in [1000, 20_000, 40_000, 100_000] {
                let tiles = tiles(arch, keys, head_dim);
                assert_eq!(tiles.engine, Engine::Mma, "sm_{arch}, {keys} keys of {head_dim}");
                assert!(keys <= tiles.max_keys(arch) as usize, "sm_{arch}, {keys} of {head_dim}");
            }
        }
        assert_eq!(tiles(arch, 100_000, 512).engine, Engine::Simt, "sm_{arch}");
        assert_eq!(tiles(arch, 16_384, 512).engine, Engine::Mma, "sm_{arch}");
    }
    assert_ne!(tiles(80, 32_768, 128), tiles(80, 32_769, 128));
}

#[test]
fn tensor_cores_are_used_if_the_gpu_has_them() {
    for (arch, dtype, engine) in [
        (70, DType::F16, Engine::Simt),
        (75, DType::F16, Engine::Mma),
        (75, DType::BF16, Engine::Simt),
        (80, DType::BF16, Engine::Mma),
        (90, DType::F16, Engine::Mma),
        (75, DType::F32, Engine::Simt),
        (80, DType::F32, Engine::Tf32),
        (86, DType::F32, Engine::Simt),
        (90, DType::F32, Engine::Tf32),
        (100, DType::F32, Engine::Tf32),
        (120, DType::F32, Engine::Simt),
    ] {
        for head_dim in [1, 64, 128, 256, 512] {
            // Three products of TF32 keep more in shared memory than two of 16 bits.
            let engine =
                if engine == Engine::Tf32 && head_dim > 256 { Engine::Simt } else { engine };
            let schedule = plan(
                &problem(dtype, [1, 1, 512, head_dim]),
                KernelKind::Flash,
                &Machine::of_arch(arch),
            );
            assert_eq!(
                schedule.tiles.engine, engine,
                "{dtype} {head_dim} on {arch}: {:?}",
                schedule.rationale
            );
        }
    }
}

#[test]
fn matrix_units_are_required_or_left_out_by_name() {
    let with = |dtype, arch, dim, units| {
        let options = PlanOptions::new().matrix_units(units);
        let problem = problem(dtype, [1, 2, 256, dim]);
        schedule(&problem, KernelKind::Flash, &options, &Machine::of_arch(arch))
    };
    let engine = |units| with(DType::F16, 80, 64, units).expect("runs").tiles.engine;
    assert_eq!(engine(MatrixUnits::Require), Engine::Mma);
    assert_eq!(engine(MatrixUnits::Off), Engine::Simt);
    let f32 = |arch, units| with(DType::F32, arch, 128, units).expect("runs").tiles.engine;
    for arch in [80, 86, 90, 120] {
        assert_eq!(f32(arch, MatrixUnits::Require), Engine::Tf32, "{arch}");
        assert_eq!(f32(arch, MatrixUnits::Off), Engine::Simt, "{arch}");
    }
    let refused = |dtype, arch, dim| {
        with(dtype, arch, dim, MatrixUnits::Require).expect_err("has no tensor cores for it")
    };
    let reason = |reason| vec![Reason::MatrixUnits(reason)];
    let wide = NoMatrixUnits::Axis { axis: "head_dim", given: 257, max: 256 };
    assert_eq!(refused(DType::F32, 80, 257), reason(wide));
    let old = NoMatrixUnits::ComputeCapability { dtype: DType::F32, given: 75, needed: 80 };
    assert_eq!(refused(DType::F32, 75, 64), reason(old));
    let old = NoMatrixUnits::ComputeCapability { dtype: DType::BF16, given: 75, needed: 80 };
    assert_eq!(refused(DType::BF16, 75, 64), reason(old));
    let unfused = schedule(
        &problem(DType::F16, [1, 2, 256, 64]),
        KernelKind::Unfused,
        &PlanOptions::new().matrix_units(MatrixUnits::Require),
        &Machine::of_arch(80),
    );
    let kernel = NoMatrixUnits::Kernel { kernel: KernelKind::Unfused };
    assert_eq!(unfused.expect_err("does not use them"), reason(kernel));
}

#[test]
fn a_plan_in_f32_states_why_it_does_not_use_tensor_cores() {
    for (arch, seq, why) in [
        (75, 256, "they need compute capability 8.0 for f32; the GPU has 7.5"),
        (86, 256, "for f32 they are no faster than the other units of this GPU"),
        (80, 8, "seq_q is 8: most rows of each matrix would be empty"),
    ] {
        let problem = problem(DType::F32, [1, 2, seq, 64]);
        let machine = Machine::of_arch(arch);
        let schedule = plan(&problem, KernelKind::Flash, &machine);
        assert_eq!(schedule.tiles.engine, Engine::Simt, "{arch}");
        let stated = format!("f32 units, and not tensor cores: {why}");
        assert!(schedule.rationale.contains(&stated), "{:?}", schedule.rationale);
        let options = PlanOptions::new().matrix_units(MatrixUnits::Require);
        let required = super::schedule(&problem, KernelKind::Flash, &options, &machine);
        assert_eq!(required.is_ok(), arch >= 80, "{arch}");
    }
}

/// Guarantee 4: the rest of the batch does not change a row's arithmetic.
#[test]
fn tiles_do_not_depend_on_batch_and_heads() {
    for &dtype in DType::ALL {
        for (seq, head_dim) in [(1, 64), (9, 128), (4096, 64), (4096, 128)] {
            for arch in ARCHS {
                let machine = Machine::of_arch(arch);
                let tiles = |b, h| {
                    plan(&problem(dtype, [b, h, seq, head_dim]), KernelKind::Flash, &machine).tiles
                };
                assert_eq!(tiles(1, 1), tiles(64, 96));
            }
        }
    }
}

#[test]
fn few_queries_get_the_small_tile() {
    let machine = Machine::of_arch(90);
    let rows =
        |seq| plan(&problem(DType::F32, [1, 1, seq, 64]), KernelKind::Flash, &machine).tiles.rows;
    assert_eq!(
        [rows(1), rows(8), rows(9), rows(64), rows(65), rows(4096)],
        [8, 8, 64, 64, 128, 128]
    );
}

#[test]
fn wide_values_are_divided_among_blocks() {
    let view = |width| {
        TensorView::from_bhsd_sizes(DType::F16, Layout::Bhsd, [2, 3, 300, width]).expect("small")
    };
    let problem = Problem::builder(view(64), view(64), view(500)).build().expect("valid");
    let schedule = plan(&problem, KernelKind::Flash, &Machine::of_arch(90));
    let [launch] = launches(&problem, &schedule, Call::default(), Pointers::default())[..] else {
        panic!("expected one launch");
    };
    assert!(launch.params.across * schedule.tiles.columns >= 500 && schedule.tiles.head_dim >= 64);
    assert_eq!(launch.grid, 6 * 300u32.div_ceil(schedule.tiles.rows) * launch.params.across);
}

#[test]
fn forced_tiles_are_used_or_refused_with_the_reason() {
    let machine = Machine::of_arch(75);
    let problem = problem(DType::F16, [1, 1, 64, 128]);
    let forced = |tiles| {
        schedule(
            &problem,
            KernelKind::Flash,
            &PlanOptions::new().kernel(KernelKind::Flash).tiles(tiles),
            &machine,
        )
    };
    for tiles in flashtile_shaders::cuda::CUDA_SIMT_TILES {
        match forced(tiles) {
            Ok(schedule) => assert_eq!(schedule.tiles, tiles),
            Err(reasons) => assert!(
                matches!(
                    &reasons[..],
                    [Reason::Tiles { because, .. }] if because.contains("shared memory")
                ),
                "{reasons:?}"
            ),
        }
    }
    let unknown = CudaTiles { rows: 7, ..CUDA_UNFUSED_TILES };
    assert!(matches!(&forced(unknown).expect_err("unknown")[..], [Reason::Tiles { .. }]));
}

#[test]
fn a_refusal_states_every_reason() {
    let wide = problem(DType::F32, [1, 1, 4, 513]);
    let old = Machine { memory: 1000, ..Machine::of_arch(52) };
    let refused = schedule(&wide, KernelKind::Flash, &PlanOptions::new(), &old)
        .expect_err("three limits are exceeded");
    assert!(
        refused.contains(&Reason::Axis { axis: "head_dim_v", given: 513, max: 512 }),
        "{refused:?}"
    );
    assert!(refused.contains(&Reason::ComputeCapability { given: 52, needed: 60 }), "{refused:?}");
    let bytes = 4 * 4 * 513;
    assert!(refused.contains(&Reason::BufferSize {
        argument: Argument::K,
        needed: bytes,
        limit: 1000
    }));
    assert!(
        schedule(&wide, KernelKind::Unfused, &PlanOptions::new(), &Machine::of_arch(60)).is_ok(),
        "any width"
    );
}

/// With strides of 0 a huge problem needs little memory, so planning has to refuse it by itself.
#[test]
fn huge_problems_are_refused_at_once() {
    let huge = |shape| TensorView::strided(DType::F32, shape, [0, 0, 0, 1]);
    let small =
        |shape| TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, shape).expect("addressable");
    let machine = Machine::of_arch(90);
    for (shape, kv) in
        [([1 << 40, 1, 1, 4], [1 << 40, 1, 8, 4]), ([1, 1 << 45, 1, 4], [1, 1, 8, 4])]
    {
        let problem = Problem::builder(huge(shape), huge(kv), huge(kv)).out(small(shape)).build();
        for &kernel in KernelKind::ALL {
            let refused =
                schedule(&problem.clone().expect("valid"), kernel, &PlanOptions::new(), &machine);
            assert!(matches!(refused.expect_err("too large")[0], Reason::Axis { .. }));
        }
    }
    let (q, kv) = ([1 << 20, 1 << 12, 1 << 10, 1], [1 << 20, 1, (1 << 29) - 1, 1]);
    let problem = Problem::builder(small(q), huge(kv), huge(kv)).build().expect("valid");
    let refused = schedule(&problem, KernelKind::Unfused, &PlanOptions::new(), &machine);
    assert!(matches!(refused.expect_err("too large")[0], Reason::TooManyDispatches { .. }));
}

#[test]
fn an_empty_output_needs_no_launch() {
    for shape in [[0, 2, 5, 8], [2, 2, 0, 8]] {
        for &kernel in KernelKind::ALL {
            let schedule = plan(&problem(DType::F32, shape), kernel, &Machine::of_arch(80));
            assert!(schedule.dispatches.is_empty() && schedule.workspace_bytes == 0);
        }
    }
}

/// Without keys the output is zero, and a kernel has to write that.
#[test]
fn a_problem_without_keys_is_launched() {
    let q = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 2, 70, 8]).expect("small");
    let kv = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 2, 0, 8]).expect("small");
    let problem = Problem::builder(q, kv, kv).lse(true).build().expect("valid");
    let operations = |kernel| {
        let schedule = plan(&problem, kernel, &Machine::of_arch(80));
        let launches = launches(&problem, &schedule, Call::default(), Pointers::default());
        launches.iter().map(|launch| launch.variant.operation).collect::<Vec<_>>()
    };
    assert_eq!(operations(KernelKind::Flash), [Operation::FlashForward]);
    assert_eq!(
        operations(KernelKind::Unfused),
        [Operation::UnfusedSoftmax, Operation::UnfusedValues]
    );
}

#[test]
fn shorter_calls_launch_less() {
    let problem = problem(DType::F32, [2, 3, 1000, 64]);
    let schedule = plan(&problem, KernelKind::Flash, &Machine::of_arch(80));
    let grid = |seq_q| {
        let call = Call::new().seq_q(seq_q);
        launches(&problem, &schedule, call, Pointers::default()).first().map(|launch| launch.grid)
    };
    assert_eq!(
        [grid(1000), grid(129), grid(1), grid(0)],
        [Some(6 * 8), Some(6 * 2), Some(6), None]
    );
}

#[test]
fn the_workspace_is_bounded() {
    let problem = problem(DType::F16, [2, 8, 5000, 64]);
    let schedule = plan(&problem, KernelKind::Unfused, &Machine::of_arch(80));
    assert!(schedule.workspace_bytes <= MAX_WORKSPACE_BYTES && schedule.dispatches.len() > 3);
    for launch in launches(&problem, &schedule, Call::default(), Pointers::default()) {
        let params = launch.params;
        let heads =
            u64::from(launch.grid) / u64::from(params.across) / u64::from(params.tile_count);
        let rows = u64::from(params.row_end - params.row_begin);
        assert!(heads * rows * params.score_stride * 4 <= schedule.workspace_bytes);
    }
}

#[test]
fn a_watchdog_divides_long_work() {
    let problem = problem(DType::F16, [1, 8, 16384, 128]);
    let display = Machine { watchdog: true, ..Machine::of_arch(86) };
    assert!(plan(&problem, KernelKind::Flash, &display).dispatches.len() > 4);
    assert_eq!(plan(&problem, KernelKind::Flash, &Machine::of_arch(86)).dispatches.len(), 1);
}

#[test]
fn general_kernels_get_softcap_dropout_and_masks() {
    let mask = |kind| Mask::contiguous(kind, &[5, 7]).expect("rank 2");
    let plain =
        builder(DType::F32, [1, 1, 5, 8]).causal(true).kv_lens(true).build().expect("valid");
    let q = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 5, 8]).expect("small");
    let kv = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 7, 8]).expect("small");
    let b = || Problem::builder(q, kv, kv);
    let params = |problem: &Problem| {
        let schedule = plan(problem, KernelKind::Flash, &Machine::of_arch(80));
        let launch = launches(problem, &schedule, Call::default(), Pointers::default())[0];
        (launch.variant.general, launch.params)
    };
    let (general, of_plain) = params(&plain);
    assert_eq!((general, of_plain.longest_first), (false, 1));
    assert_eq!((of_plain.softcap, of_plain.keep_scale, of_plain.dropout), (0.0, 1.0, 0));
    let (general, capped) = params(&b().softcap(2.0).build().expect("valid"));
    assert_eq!((general, capped.softcap, capped.longest_first), (true, 2.0, 0));
    let (general, dropped) = params(&b().dropout_p(1.0).build().expect("valid"));
    assert!(general && dropped.dropout == 1 && dropped.keep_scale == 0.0);
    for (n, kind) in MaskKind::ALL.iter().copied().enumerate() {
        let (general, masked) = params(&b().mask(mask(kind)).build().expect("valid"));
        assert!(general);
        assert_eq!((masked.mask_kind, masked.mask_strides), (n as u32 + 1, [0, 0, 7, 1]));
    }
}

#[test]
fn dense_rows_start_at_multiples_of_16_bytes_or_of_4() {
    let words = |bits: u32| bits << CudaParams::DENSE_WORDS;
    let both = |bits: u32| bits | words(bits);
    let every =
        CudaParams::DENSE_Q | CudaParams::DENSE_K | CudaParams::DENSE_V | CudaParams::DENSE_OUT;
    let all = both(every);
    let at = Pointers { q: 0x100, k: 0x200, v: 0x300, out: 0x400, ..Pointers::default() };
    assert_eq!(dense(&problem(DType::F16, [1, 2, 3, 8]), &at), all);
    assert_eq!(dense(&problem(DType::F16, [1, 2, 3, 4]), &at), words(every), "rows of 8 bytes");
    assert_eq!(dense(&problem(DType::BF16, [1, 2, 3, 5]), &at), 0, "rows of 10 bytes");
    assert_eq!(dense(&problem(DType::F32, [1, 2, 3, 4]), &at), all);
    assert_eq!(dense(&problem(DType::F16, [1, 1, 1, 3]), &at), all, "one row each");
    let off = Pointers { q: 0x108, ..at };
    assert_eq!(dense(&problem(DType::F16, [1, 2, 3, 8]), &off), all & !CudaParams::DENSE_Q);
    let off = Pointers { q: 0x102, ..at };
    assert_eq!(dense(&problem(DType::F16, [1, 2, 3, 8]), &off), all & !both(CudaParams::DENSE_Q));
    let view = TensorView::strided(DType::F32, [1, 2, 3, 4], [0, 64, 4, 2]);
    let problem = Problem::builder(view, view, view).out(*problem(DType::F32, view.shape).q());
    assert_eq!(
        dense(&problem.build().expect("valid"), &at),
        both(CudaParams::DENSE_OUT),
        "every second element"
    );
}
