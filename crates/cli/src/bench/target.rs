use super::cases::Case;
use crate::{
    adapters::{card_name, cards, contexts, device_name},
    args::BenchArgs,
    complain,
};
use anyhow::{Result, bail};
use flashtile::{
    Attention, BackendKind, Call, Choice, HostArgs, KernelKind, Problem, Timing, Verdict, cuda,
    wgpu, zeroed_bytes,
};
use pollster::block_on;
use std::time::{Duration, Instant};

/// One kernel of one device.
pub(crate) struct Target {
    pub(crate) backend: BackendKind,
    pub(crate) kernel: KernelKind,
    /// Name of the device.
    pub(crate) device: String,
    place: Place,
}

/// Where a target runs.
#[derive(Clone)]
enum Place {
    Cpu,
    Adapter(wgpu::Context),
    Card(cuda::Context),
}

/// A case made ready to be run again and again.
pub(crate) struct Prepared<'a> {
    runner: Runner<'a>,
    /// From the plan's begin to the first result: compiling, copying, running.
    pub(crate) first_ms: f64,
    /// That first run alone, by the same clock.
    pub(crate) first_run_ms: f64,
    /// Whose clock [`run`](Self::run) reads.
    pub(crate) clock: Clock,
    /// Inputs, output and workspace together.
    pub(crate) peak_bytes: u64,
}

/// Whose clock a time is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// From the first dispatch's begin to the last one's end, by timestamps that the GPU writes.
    Gpu,
    /// From submission to completion, by the host's clock.
    Host,
}

impl Clock {
    pub(crate) const ALL: [Self; 2] = [Clock::Gpu, Clock::Host];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Clock::Gpu => "gpu",
            Clock::Host => "host",
        }
    }

    fn of(timing: &Timing) -> Self {
        if timing.gpu.is_some() { Clock::Gpu } else { Clock::Host }
    }

    /// A time by this clock, also where a later run could not be timed by it.
    fn ms(self, timing: &Timing) -> f64 {
        let time = match self {
            Clock::Gpu => timing.best(),
            Clock::Host => timing.host,
        };
        time.as_secs_f64() * 1e3
    }
}

/// Elements after which a tensor repeats itself: making all of a large one anew takes longer than to measure. A prime, so that no two rows of heads
/// are alike.
const PERIOD: usize = 1_000_003;

/// Runs that a card is given at once: as many as benches/torch_sdpa.py gives it.
const TOGETHER: usize = 5;

/// From here on the host's part does not show.
const LONG_MS: f64 = 100.0;

enum Runner<'a> {
    Adapter(Box<wgpu::HostRun>),
    Card(Box<cuda::HostRun>),
    Reference { problem: Box<Problem>, data: &'a Data, out: Vec<u8> },
}

/// Tensors of a case in host memory.
pub(crate) struct Data {
    q: Vec<u8>,
    k: Vec<u8>,
    v: Vec<u8>,
}

/// Every kernel of every device here that the arguments leave.
pub(crate) fn targets(args: &BenchArgs) -> Result<Vec<Target>> {
    let choice = args.choice.choice();
    let wanted = |backend| choice.backend.is_none_or(|b| b == backend);
    let kernels = || {
        KernelKind::ALL.iter().copied().filter(|&k| choice.kernel.is_none_or(|wanted| k == wanted))
    };
    let mut targets = Vec::new();
    let mut add = |backend, device: String, place: Place| {
        let exists = |&kernel: &KernelKind| {
            backend != BackendKind::Reference || kernel == KernelKind::Unfused
        };
        targets.extend(kernels().filter(exists).map(|kernel| {
            let (device, place) = (device.clone(), place.clone());
            Target { backend, kernel, device, place }
        }));
    };
    let mut any = false;
    if wanted(BackendKind::Cuda) {
        for context in cards(&args.choice)? {
            any = true;
            add(BackendKind::Cuda, card_name(&context), Place::Card(context));
        }
    }
    if wanted(BackendKind::Wgpu) {
        for context in contexts(&args.choice)? {
            any = true;
            add(BackendKind::Wgpu, device_name(&context), Place::Adapter(context));
        }
    }
    if !any && choice.backend.is_none() {
        complain("no card and no graphics adapter was found: only the CPU is measured");
    }
    if wanted(BackendKind::Reference) {
        add(BackendKind::Reference, "CPU".to_owned(), Place::Cpu);
    }
    if targets.is_empty() {
        // Somebody asked for what cannot run: the reasons are those that `run` gives.
        let problem =
            Case { shape: [1; 4], dtype: flashtile::DType::F32, causal: false, on_curve: false }
                .problem()?;
        bail!(flashtile::Error::Refused(Attention::new().explain_within(&problem, choice)));
    }
    Ok(targets)
}

impl Target {
    /// The reasons why it cannot run `problem`, if it cannot.
    pub(crate) fn refusal(&self, problem: &Problem) -> Option<String> {
        let verdict = match &self.place {
            Place::Cpu => return None,
            Place::Adapter(context) => context.verdict(problem, self.kernel),
            Place::Card(context) => context.verdict(problem, self.kernel),
        };
        match verdict {
            Verdict::Refused(reasons) => {
                Some(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
            Verdict::Runs(_) => None,
        }
    }

    /// Plans, compiles, copies and runs for the first time.
    pub(crate) fn prepare<'a>(&self, case: &Case, data: &'a Data) -> Result<Prepared<'a>> {
        let problem = case.problem()?;
        let mut out = zeroed_bytes(&problem)?;
        // A fresh context has compiled nothing yet, so that every case pays what its first user would. (CUDA's kernels may be on disk.)
        let (runner, first_ms, took, peak_bytes) = match &self.place {
            Place::Cpu => {
                let mut runner = Runner::Reference { problem: Box::new(problem), data, out };
                let report = runner.run_reference()?;
                let took = Timing { host: Duration::from_secs_f64(report.run_ms / 1e3), gpu: None };
                (runner, report.first_ms, took, report.peak_bytes)
            }
            Place::Adapter(context) => {
                let context =
                    wgpu::Context::new_blocking(context.device().clone(), context.queue().clone())?;
                let begin = Instant::now();
                let plan = context
                    .plan_blocking(&problem, &wgpu::PlanOptions::new().kernel(self.kernel))?;
                let mut args = data.args(&mut out);
                let run = block_on(wgpu::HostRun::upload(&plan, &args))?;
                let took = block_on(run.run())?;
                block_on(run.download(&mut args))?;
                let bytes = run.device_bytes();
                (Runner::Adapter(Box::new(run)), begin.elapsed().as_secs_f64() * 1e3, took, bytes)
            }
            Place::Card(context) => {
                let context = cuda::Context::new(context.stream().clone())?;
                let begin = Instant::now();
                let plan = context.plan(&problem, &cuda::PlanOptions::new().kernel(self.kernel))?;
                let mut args = data.args(&mut out);
                let mut run = cuda::HostRun::upload(&plan, &args)?;
                let took = run.run()?;
                run.download(&mut args)?;
                let bytes = run.device_bytes();
                (Runner::Card(Box::new(run)), begin.elapsed().as_secs_f64() * 1e3, took, bytes)
            }
        };
        let clock = Clock::of(&took);
        Ok(Prepared { runner, first_ms, first_run_ms: clock.ms(&took), clock, peak_bytes })
    }
}

impl Prepared<'_> {
    /// Runs once more, or a few times where a card would wait for the host between short runs: milliseconds by [`clock`](Self::clock) of each.
    pub(crate) fn run(&mut self) -> Result<Vec<f64>> {
        let short = self.first_run_ms < LONG_MS;
        let took = match &mut self.runner {
            Runner::Adapter(run) => vec![block_on(run.run())?],
            Runner::Card(run) => run.run_times(if short { TOGETHER } else { 1 })?,
            reference => return Ok(vec![reference.run_reference()?.run_ms]),
        };
        Ok(took.iter().map(|took| self.clock.ms(took)).collect())
    }
}

impl Runner<'_> {
    fn run_reference(&mut self) -> Result<flashtile::Report> {
        let Runner::Reference { problem, data, out } = self else { bail!("this runs on a GPU") };
        Ok(Attention::global().run(
            problem,
            data.args(out),
            Choice::backend(BackendKind::Reference),
        )?)
    }
}

impl Data {
    /// Numbers spread evenly over -1..1: scores of a size that attention sees. The same in every run.
    pub(crate) fn new(case: &Case) -> Self {
        let (len, size): (usize, _) = (case.shape.iter().product(), case.dtype.size());
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut fill = || {
            let mut bytes = vec![0; len * size];
            for index in 0..len.min(PERIOD) {
                // xorshift64, Marsaglia 2003.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                case.dtype.write(
                    &mut bytes,
                    index,
                    (state >> 40) as f64 / f64::from(1 << 23) - 1.0,
                );
            }
            let mut filled = PERIOD * size;
            while filled < bytes.len() {
                let more = filled.min(bytes.len() - filled);
                bytes.copy_within(..more, filled);
                filled += more;
            }
            bytes
        };
        Self { q: fill(), k: fill(), v: fill() }
    }

    fn args<'a>(&'a self, out: &'a mut [u8]) -> HostArgs<'a> {
        let Self { q, k, v } = self;
        HostArgs::new(q, k, v, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile::DType;

    #[test]
    fn tensors_repeat_and_differ() {
        let case =
            Case { shape: [1, 3, 700_001, 1], dtype: DType::F16, causal: false, on_curve: false };
        let Data { q, k, v } = Data::new(&case);
        assert_eq!((q.len(), k.len(), v.len()), (4_200_006, 4_200_006, 4_200_006));
        assert!(q != k && k != v);
        assert_eq!(q[..2 * 1_000], q[2 * PERIOD..2 * (PERIOD + 1_000)]);
        assert_eq!(q[..100_000], q[4 * PERIOD..4 * PERIOD + 100_000]);
        assert_ne!(q[..2 * 700_001], q[2 * 700_001..4 * 700_001]);
    }
}
