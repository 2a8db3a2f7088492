//! Tests of the CPU backend. The names of these tests start with `cpu`.

use crate::{
    harness::{Suite, Test},
    shared::{
        Chosen, bytes, cases, dense, floats, hold, random, report, run_all, same_bits,
        same_bits_at_any_length, text,
    },
};
use flashtile_core::{
    Argument, Backend, BackendKind, Call, HostArgs, HostInputs, KernelKind, KeySplit, MatrixUnits,
    PlanOptions, Problem, ProblemError, Reason,
};
use flashtile_cpu::{Cpu, Error};
use flashtile_testkit::{
    Case, catalogue, check_agreement, check_neighbours, check_repeats, run_case,
};

const FLASH: KernelKind = KernelKind::Flash;

/// A test of something that a program does with the crate.
type Check = fn(&Cpu) -> Result<(), String>;

const CHECKS: [(&str, Check); 10] = [
    ("the number of threads changes no bit", threads),
    ("a plan is shared by threads", shared_plan),
    ("a plan is made for the caller's pool", callers_pool),
    ("memory at odd addresses gives the same bits", odd_addresses),
    ("forced chunks of keys", chunks),
    ("heads side by side", side_by_side),
    ("heads of any width", wide_heads),
    ("many equal tokens", equal_tokens),
    ("bad memory is a typed error", bad_memory),
    ("what it has not is refused", refusals),
];

pub(super) fn suite() -> Suite<Cpu> {
    let open = || Ok(Cpu::new());
    Suite { device: "CPU", required: "FLASHTILE_REQUIRE_CPU", open, tests: tests() }
}

fn tests() -> Vec<Test<Cpu>> {
    let mut tests: Vec<Test<Cpu>> = Vec::new();
    let chosen = Chosen::by_environment();
    for (group, all) in chosen.groups {
        tests.push(Test::new(format!("cpu flash: {group}"), move |cpu: &Cpu| {
            run_all(cpu, FLASH, &all)
        }));
    }
    if chosen.replay {
        return tests;
    }
    let check = |(name, run): (&str, Check)| Test::new(format!("cpu: {name}"), run);
    tests.extend(CHECKS.map(check));
    tests.push(Test::new("cpu same bits in a second run", |cpu: &Cpu| {
        same_bits(cpu, &[FLASH], check_repeats)
    }));
    tests.push(Test::new("cpu same bits beside other batch entries", |cpu: &Cpu| {
        same_bits(cpu, &[FLASH], check_neighbours)
    }));
    tests.push(Test::new("cpu same bits for calls of any length", |cpu: &Cpu| {
        same_bits_at_any_length(cpu, &[FLASH])
    }));
    tests.push(Test::new("cpu random problems: flash", |cpu: &Cpu| random(cpu, FLASH)));
    tests
}

/// Every third case of the catalogue, and cases that 1, 2, 5 and 16 threads cut into different
/// tiles.
fn threads(_: &Cpu) -> Result<(), String> {
    let [one, two, five, sixteen] = [1, 2, 5, 16].map(|n| Cpu::with_threads(n).map_err(text));
    let (one, others) = (one?, [two?, five?, sixteen?]);
    let many = cases([
        "shape=1x2x300x64 skv=300 causal=yes window_left=70",
        "shape=1x4x130x40 hkv=2 skv=210 dv=24 dtype=f16 causal=yes align=bottom-right \
         mask=f32:b11k:blocks dropout=0.3 softcap=8.0 poison=unseen",
        "shape=2x4x5x32 hkv=1 skv=2000 causal=yes align=bottom-right kv_lens=1999:3 poison=unseen",
    ]);
    let long = |group: &str| group.starts_with("long");
    let some = catalogue().into_iter().filter(|(group, _)| !long(group)).step_by(3);
    let cases: Vec<Case> = many.into_iter().chain(some.map(|(_, case)| case)).collect();
    report(cases.iter().enumerate().filter_map(|(n, case)| {
        check_agreement([&one, &others[n % others.len()]], FLASH, case).err()
    }))
}

/// The roundings of a sum repeat where its terms are equal. Sums have to be short, therefore.
fn equal_tokens(cpu: &Cpu) -> Result<(), String> {
    let shapes = ["1x2x40", "1x2x5", "1x2x1"];
    let lengths = [32, 64, 100, 128, 192, 256, 512, 700, 1024, 2048, 4096, 8192];
    let lines = shapes.iter().flat_map(|shape| {
        lengths.map(|skv| format!("shape={shape}x16 skv={skv} dv=150 values=alike"))
    });
    run_all(cpu, FLASH, &cases(lines))
}

/// Four threads run one plan at the same time, with inputs of their own.
fn shared_plan(cpu: &Cpu) -> Result<(), String> {
    let view = dense([1, 2, 90, 16]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    let plan = cpu.plan(&problem, &PlanOptions::new()).map_err(text)?;
    let run = |seed: u64| {
        let inputs = [0, 1, 2].map(|n| bytes(&floats(10 * seed + n, 2 * 90 * 16)));
        let [q, k, v] = &inputs;
        for _ in 0..20 {
            let mut out = vec![0; q.len()];
            plan.run(HostArgs::new(q, k, v, &mut out)).map_err(text)?;
            hold(&problem, &HostInputs::new(q, k, v), &out)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [1, 2, 3, 4].map(|seed| scope.spawn(move || run(seed)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

/// A call from within a rayon pool counts that pool's threads, and so does one from a task of it.
/// That they do the work, and no others, is a test of its own: crates/cpu/tests/callers_pool.rs.
fn callers_pool(cpu: &Cpu) -> Result<(), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().map_err(text)?;
    let view = dense([1, 2, 70, 8]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let inputs = [0, 1, 2].map(|n| bytes(&floats(n, 2 * 70 * 8)));
    let [q, k, v] = &inputs;
    let run = || {
        if cpu.threads() != 3 {
            return Err(format!("{} threads in a pool of 3", cpu.threads()));
        }
        let plan = cpu.plan(&problem, &PlanOptions::new()).map_err(text)?;
        if !plan.to_string().contains("3 threads when planned") {
            return Err(format!("not for a pool of 3: {plan}"));
        }
        let mut out = vec![0; q.len()];
        plan.run(HostArgs::new(q, k, v, &mut out)).map_err(text)?;
        hold(&problem, &HostInputs::new(q, k, v), &out)
    };
    pool.install(|| {
        let (one, other) = rayon::join(run, run);
        one.and(other)
    })
}

/// Tensors that start at any byte, which no vector load and no f32 may do.
fn odd_addresses(cpu: &Cpu) -> Result<(), String> {
    let view = dense([1, 2, 40, 24]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    let plan = cpu.plan(&problem, &PlanOptions::new()).map_err(text)?;
    let aligned = [0, 1, 2].map(|n| bytes(&floats(n, 2 * 40 * 24)));
    let run = |[q, k, v]: [&[u8]; 3], skip: usize| {
        let mut out = vec![0; q.len() + skip];
        plan.run(HostArgs::new(q, k, v, &mut out[skip..])).map_err(text)?;
        Ok::<_, String>(out.split_off(skip))
    };
    let expected = run([&aligned[0], &aligned[1], &aligned[2]], 0)?;
    for skip in [1, 2, 3, 5] {
        let moved = aligned.clone().map(|tensor| [vec![0xFF; skip], tensor].concat());
        let got = run([&moved[0][skip..], &moved[1][skip..], &moved[2][skip..]], skip)?;
        if got != expected {
            return Err(format!("other bits {skip} bytes further"));
        }
    }
    Ok(())
}

/// Chunks that no plan would choose, with many queries too.
fn chunks(cpu: &Cpu) -> Result<(), String> {
    let mut failures = Vec::new();
    for line in [
        "shape=2x4x3x16 hkv=2 skv=1800 kv_lens=1800:700 causal=yes align=bottom-right \
         poison=unseen",
        "shape=1x2x170x32 skv=900 mask=bool:qk:blocks causal=yes align=800 dropout=0.2",
        "shape=1x4x200x20 hkv=2 skv=1200 dtype=f16 window_left=300 causal=yes softcap=5.0",
    ] {
        let case: Case = line.parse().map_err(text)?;
        let tensors = case.build().map_err(text)?;
        let problem = &tensors.problem;
        let options = PlanOptions::new().key_split(KeySplit::Keys(256));
        let plan = cpu.plan(problem, &options).map_err(text)?;
        let mut out = vec![0; problem.out().byte_span().unwrap_or(0)];
        let mut lse = vec![0.0; problem.lse_shape().iter().product()];
        let lse = problem.lse().then_some(&mut lse[..]);
        plan.run(tensors.args(&mut out, lse)).map_err(text)?;
        failures.extend(hold(problem, &tensors.inputs(), &out).err());
        if !plan.to_string().contains("chunks of 256 keys") {
            failures.push(format!("the plan does not mention its chunks: {plan}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// One thread reads all heads of a tile of keys side by side, where memory interleaves them. Many
/// threads take them one by one, for the same bits.
fn side_by_side(_: &Cpu) -> Result<(), String> {
    let [one, many] = [1, 64].map(|n| Cpu::with_threads(n).map_err(text));
    let (one, many) = (one?, many?);
    let mut failures = Vec::new();
    for case in cases([
        "shape=1x8x1x64 hkv=2 skv=4099 k=bshd v=bshd lse=yes",
        "shape=2x6x2x40 hkv=3 skv=2100 dv=24 k=bshd v=bshd q=bshd out=bshd causal=yes \
         align=bottom-right kv_lens=2099:300 window_left=900 poison=unseen",
        "shape=1x3x1x72 skv=2050 dtype=f16 k=bshd v=bshd mask=f32:bhqk:blocks softcap=9.0 \
         dropout=0.3",
        "shape=1x4x1x20 skv=3000 dtype=bf16 k=bshd v=bshd poison=unseen kv_lens=2222 \
         mask=bool:k:blocks",
    ]) {
        let tensors = case.build().map_err(text)?;
        let said = |cpu: &Cpu| {
            let plan = cpu.plan(&tensors.problem, &PlanOptions::new()).map_err(text)?;
            Ok::<_, String>(plan.to_string().contains("side by side"))
        };
        if [said(&one)?, said(&many)?] != [true, false] {
            failures.push(format!("{case}: the plans do not differ"));
        }
        failures.extend(run_case(&one, FLASH, &case).err().map(text));
        failures.extend(check_agreement([&one, &many], FLASH, &case).err().map(text));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// Wider heads than any GPU kernel takes, up to the documented limit.
fn wide_heads(cpu: &Cpu) -> Result<(), String> {
    run_all(
        cpu,
        FLASH,
        &cases([
            "shape=1x2x70x700 skv=90 dv=513 causal=yes",
            "shape=1x2x9x64 skv=130 dv=3001 dtype=f16",
            "shape=1x4x1x2050 hkv=2 skv=1100 dv=1025 dtype=bf16 softcap=20.0",
            "shape=1x1x2x1048576 skv=2 dv=3",
        ]),
    )?;
    let refused = |line: &str| match cases([line]).iter().find_map(|c| c.problem().ok()) {
        Some(problem) => !Backend::verdict(cpu, &problem, &PlanOptions::new()).runs(),
        None => false,
    };
    if refused("shape=1x1x1x1048577") {
        Ok(())
    } else {
        Err("wider heads than the limit are not refused".to_owned())
    }
}

fn bad_memory(cpu: &Cpu) -> Result<(), String> {
    let view = dense([1, 1, 8, 8]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let plan = cpu.plan(&problem, &PlanOptions::new()).map_err(text)?;
    let (x, mut out) = ([0; 256], [9; 256]);
    let short = |argument| ProblemError::TooShort { argument, expected: 256, given: 255 };
    let mut wrong = Vec::new();
    let mut expect = |got: Result<_, Error>, expected: ProblemError| {
        if got.as_ref().err() != Some(&Error::Problem(expected.clone())) {
            wrong.push(format!("{got:?} instead of {expected:?}"));
        }
    };
    expect(plan.run(HostArgs::new(&x[1..], &x, &x, &mut out)), short(Argument::Q));
    expect(plan.run(HostArgs::new(&x, &x[1..], &x, &mut out)), short(Argument::K));
    expect(plan.run(HostArgs::new(&x, &x, &x[1..], &mut out)), short(Argument::V));
    expect(plan.run(HostArgs::new(&x, &x, &x, &mut out[1..])), short(Argument::Out));
    let args = HostArgs::new(&x, &x, &x, &mut out).mask(&x);
    expect(plan.run(args), ProblemError::Unexpected { argument: Argument::AttnMask });
    let args = HostArgs::new(&x, &x, &x, &mut out).call(Call::new().seq_kv(9));
    let beyond = ProblemError::BeyondCapacity { axis: "seq_kv", capacity: 8, given: 9 };
    expect(plan.run(args), beyond);
    if out != [9; 256] {
        wrong.push("a refused call wrote to out".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn refusals(cpu: &Cpu) -> Result<(), String> {
    let view = dense([1, 1, 8, 8]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let (backend, kernel) = (BackendKind::Cpu, KernelKind::Unfused);
    let options = PlanOptions::new();
    for (options, expected) in [
        (options.kernel(kernel), Reason::NoSuchKernel { backend, kernel }.to_string()),
        (
            options.matrix_units(MatrixUnits::Require),
            "matrix units are required: the cpu backend has no kernel for them".to_owned(),
        ),
        (
            options.key_split(KeySplit::Keys(300)),
            "chunks of 300 keys were requested: a chunk has a power of two of keys, at least 256"
                .to_owned(),
        ),
    ] {
        let verdict = Backend::verdict(cpu, &problem, &options).to_string();
        if verdict != format!("refused: {expected}") {
            return Err(format!("{options:?}: {verdict}"));
        }
        let error = cpu.plan(&problem, &options).expect_err("refused").to_string();
        if !error.ends_with(&expected) {
            return Err(format!("{options:?}: {error}"));
        }
    }
    match Cpu::with_threads(0) {
        Err(Error::Threads { threads: 0, .. }) => Ok(()),
        other => Err(format!("0 threads: {other:?}")),
    }
}
