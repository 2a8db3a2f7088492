//! Checks and helpers that the tests of both kinds of device share.

use flashtile_core::{Backend, DType, HostInputs, KernelKind, Layout, Problem, TensorView};
use flashtile_reference::attention;
use flashtile_testkit::{
    Case, Failure, Rng, catalogue, check_lengths, chosen_cases, run_case, run_random,
};

/// The catalogue by groups, or only the case in FLASHTILE_CASE.
pub(crate) struct Chosen {
    pub(crate) groups: Vec<(&'static str, Vec<Case>)>,
    /// Whether one case is replayed. Nothing else is tested then.
    pub(crate) replay: bool,
}

impl Chosen {
    pub(crate) fn by_environment() -> Self {
        let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
        let replay = cases.len() == 1;
        let mut groups: Vec<(&str, Vec<Case>)> = Vec::new();
        for (group, case) in cases {
            match groups.last_mut() {
                Some((last, of_group)) if *last == group => of_group.push(case),
                _ => groups.push((group, vec![case])),
            }
        }
        Self { groups, replay }
    }

    /// Every `step`th case of a group, starting with the first, so a replayed case is always
    /// included.
    pub(crate) fn spread(of_group: &[Case], step: usize) -> Vec<Case> {
        of_group.iter().step_by(step).cloned().collect()
    }
}

/// Cases written as lines.
pub(crate) fn cases<T: AsRef<str>>(lines: impl IntoIterator<Item = T>) -> Vec<Case> {
    let parse =
        |line: T| line.as_ref().parse().unwrap_or_else(|e| panic!("{}: {e}", line.as_ref()));
    lines.into_iter().map(parse).collect()
}

/// Runs every case and reports every failure.
pub(crate) fn run_all(
    backend: &dyn Backend,
    kernel: KernelKind,
    cases: &[Case],
) -> Result<(), String> {
    report(cases.iter().filter_map(|case| run_case(backend, kernel, case).err()))
}

pub(crate) fn report(failures: impl Iterator<Item = Failure>) -> Result<(), String> {
    let failures: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} failed\n{}", failures.len(), failures.join("\n")))
    }
}

/// A check of guarantee 4: the same bits in every run, whatever the batch and the keys beyond.
pub(crate) type SameBits = fn(&dyn Backend, KernelKind, &Case) -> Result<(), Failure>;

/// Runs `check` on these kernels and on cases with every option.
pub(crate) fn same_bits(
    backend: &dyn Backend,
    kernels: &[KernelKind],
    check: SameBits,
) -> Result<(), String> {
    let cases = cases_of_batches();
    report(
        kernels.iter().copied().flat_map(|kernel| {
            cases.iter().filter_map(move |case| check(backend, kernel, case).err())
        }),
    )
}

/// Cases of several batch entries, with every option.
pub(crate) fn cases_of_batches() -> Vec<Case> {
    let group = |name| catalogue().into_iter().filter(move |(g, _)| *g == name).map(|(_, c)| c);
    let some = group("together").step_by(6);
    // With two to three batch entries, whose keys are split into chunks.
    let split = group("few queries").filter(|case| case.batch > 1).step_by(3);
    let cases: Vec<Case> = some.chain(split).collect();
    assert!(cases.len() > 6);
    cases
}

/// As [`same_bits`], on cases whose lengths are shorter than the cache, for calls of any length.
pub(crate) fn same_bits_at_any_length(
    backend: &dyn Backend,
    kernels: &[KernelKind],
) -> Result<(), String> {
    let cases = cases_of_short_calls();
    report(kernels.iter().copied().flat_map(|kernel| {
        cases
            .iter()
            .filter_map(move |case| check_lengths(backend, kernel, case).err())
            .collect::<Vec<_>>()
    }))
}

/// Cases whose lengths are shorter than the cache.
pub(crate) fn cases_of_short_calls() -> Vec<Case> {
    cases([
        "shape=2x4x1x64 hkv=2 skv=3000 kv_lens=1000:257 poison=unseen",
        "shape=2x4x3x40 hkv=1 skv=5000 dtype=f16 causal=yes align=bottom-right kv_lens=770:300 \
         poison=unseen",
        "shape=3x2x5x32 skv=1500 dtype=bf16 causal=yes align=400 window_left=380 \
         kv_lens=1024:256:511 mask=f32:b11k:blocks dropout=0.2 softcap=10.0",
        "shape=2x2x40x16 skv=300 kv_lens=100:64",
    ])
}

/// Runs FLASHTILE_RANDOM problems on the flash kernel, or a third of them on the unfused kernel.
pub(crate) fn random(backend: &dyn Backend, kernel: KernelKind) -> Result<(), String> {
    let count = std::env::var("FLASHTILE_RANDOM").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let count = if kernel == KernelKind::Flash { count } else { count / 3 };
    let tally = run_random(backend, kernel, 0..count).map_err(text)?;
    if tally.all_passed() { Ok(()) } else { Err(tally.to_string()) }
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    (0..count).map(|_| rng.normal() as f32).collect()
}

pub(crate) fn bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn dense(shape: [usize; 4]) -> TensorView {
    TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, shape).expect("small")
}

/// Requires results to be within the oracle's bound.
pub(crate) fn hold(problem: &Problem, inputs: &HostInputs<'_>, got: &[u8]) -> Result<(), String> {
    let answer = attention(problem, inputs).map_err(text)?;
    let width = problem.head_dim_v();
    for (n, &expected) in answer.out.iter().enumerate() {
        let row = n / width;
        let seq_q = answer.out.len() / width / problem.batch() / problem.heads();
        let (b, h, i) = (row / seq_q / problem.heads(), row / seq_q % problem.heads(), row % seq_q);
        let got = problem.dtype().read(got, problem.out().index(b, h, i, n % width));
        let bound = answer.rows[row].out_bound(problem.dtype(), problem.head_dim());
        if (got - expected).abs() > bound || got.is_nan() {
            return Err(format!(
                "({b}, {h}, {i}, {}): got {got}, expected {expected} +- {bound:e}",
                n % width
            ));
        }
    }
    Ok(())
}
