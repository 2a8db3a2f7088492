//! What is measured: one kernel on one device.

use super::{cases::Case, inputs::Inputs};
use anyhow::Result;
use flashtile::{
    Backend, BackendRun, DType, KernelKind, PlanOptions, Problem, Reason, TensorView, Timing,
    Verdict, zeroed_bytes,
};
use std::{fmt, sync::Arc, time::Instant};

/// One kernel of one device.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) device: Arc<dyn Backend>,
    pub(crate) kernel: KernelKind,
}

/// As messages name it: `flash on wgpu llvmpipe (Vulkan)`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} {}", self.kernel, self.device.kind(), self.device.device_name())
    }
}

impl Target {
    /// Every kernel that the devices have, or `kernel` alone.
    pub(crate) fn all(
        devices: &[Arc<dyn Backend>],
        kernel: Option<KernelKind>,
    ) -> Result<Vec<Self>> {
        let x = TensorView::bshd(DType::F32, [1; 4])?;
        let problem = Problem::builder(x, x, x).build()?;
        let kernels =
            || KernelKind::ALL.iter().filter(|&&k| kernel.is_none_or(|wanted| k == wanted));
        let pairs = devices.iter().flat_map(|device| kernels().map(move |kernel| (device, kernel)));
        let targets = pairs.map(|(device, &kernel)| Self { device: device.clone(), kernel });
        Ok(targets.filter(|target| target.exists(&problem)).collect())
    }

    /// Whether the backend has the kernel at all. Other reasons to refuse are reported for each
    /// case.
    fn exists(&self, problem: &Problem) -> bool {
        match self.verdict(problem) {
            Verdict::Runs(_) => true,
            Verdict::Refused(reasons) => {
                !reasons.iter().any(|reason| matches!(reason, Reason::NoSuchKernel { .. }))
            }
        }
    }

    fn verdict(&self, problem: &Problem) -> Verdict {
        self.device.verdict(problem, &self.options())
    }

    fn options(&self) -> PlanOptions {
        PlanOptions::new().kernel(self.kernel)
    }

    /// The reasons why it cannot run `problem`, if it cannot.
    pub(crate) fn refusal(&self, problem: &Problem) -> Option<String> {
        match self.verdict(problem) {
            Verdict::Refused(reasons) => {
                Some(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
            Verdict::Runs(_) => None,
        }
    }

    /// Plans, compiles what is not compiled yet, uploads, and runs for the first time.
    pub(crate) fn prepare<'a>(&self, case: &Case, inputs: &'a Inputs) -> Result<Prepared<'a>> {
        let problem = case.problem()?;
        let mut out = zeroed_bytes(&problem)?;
        out.fill(UNWRITTEN);
        let start = Instant::now();
        let plan = self.device.plan(&problem, &self.options())?;
        let mut args = inputs.args(&mut out);
        let run = plan.upload(&args)?;
        let took = run.run()?;
        run.download(&mut args)?;
        let first_ms = start.elapsed().as_secs_f64() * 1e3;
        let clock = Clock::of(&took);
        let peak_bytes = run.device_bytes();
        Ok(Prepared {
            inputs,
            run,
            out,
            first_ms,
            first_run_ms: clock.ms(&took),
            clock,
            peak_bytes,
        })
    }
}

/// What the output holds before a run: NaN in every storage type, so that a row that no run writes
/// is a wrong result.
const UNWRITTEN: u8 = 0xFF;

/// A case on a device, ready to run again and again.
pub(crate) struct Prepared<'a> {
    inputs: &'a Inputs,
    run: Box<dyn BackendRun>,
    out: Vec<u8>,
    /// From the start of planning to the first result in host memory.
    pub(crate) first_ms: f64,
    /// That first run alone, by [`clock`](Self::clock).
    pub(crate) first_run_ms: f64,
    /// The clock that [`run`](Self::run) reads.
    pub(crate) clock: Clock,
    /// Inputs, output and workspace together.
    pub(crate) peak_bytes: u64,
}

impl Prepared<'_> {
    /// Runs `times` times, back to back where the backend can: the milliseconds of each run.
    pub(crate) fn run(&self, times: usize) -> Result<Vec<f64>> {
        Ok(self.run.run_times(times)?.iter().map(|took| self.clock.ms(took)).collect())
    }

    /// The output of the last run.
    pub(crate) fn output(&mut self) -> Result<&[u8]> {
        self.out.fill(UNWRITTEN);
        self.run.download(&mut self.inputs.args(&mut self.out))?;
        Ok(&self.out)
    }
}

/// Whose clock a time is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// From the start of the first dispatch to the end of the last, by timestamps that the GPU
    /// writes.
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

    /// A time by this clock, or by the host's for a run without GPU timestamps.
    fn ms(self, timing: &Timing) -> f64 {
        let time = match self {
            Clock::Gpu => timing.best(),
            Clock::Host => timing.host,
        };
        time.as_secs_f64() * 1e3
    }
}
