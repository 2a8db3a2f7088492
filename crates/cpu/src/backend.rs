//! Implements [`Backend`], which the facade, `check` and `bench` use.

use crate::error::Error;
use crate::flash::Machine;
use crate::peak::peak_flops;
use crate::plan::{Plan, how, refusals};
use crate::threads::Threads;
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, BackendRun, HostArgs, HostCopies, HostStats,
    KernelKind, PlanOptions, Problem, Timing, Verdict,
};
use std::fmt;
use std::sync::Arc;

/// The CPU as a device.
///
/// By default work runs in the rayon pool of the thread that calls, or in rayon's global pool.
#[derive(Clone, Default)]
pub struct Cpu {
    threads: Threads,
}

impl Cpu {
    /// The CPU, with the threads of the caller's rayon pool, or of rayon's global one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The CPU, with `threads` threads of its own.
    ///
    /// # Errors
    /// [`Error::Threads`] for none, for more than one in a browser, and if the system starts no
    /// more threads.
    pub fn with_threads(threads: usize) -> Result<Self, Error> {
        Ok(Self { threads: Threads::own(threads)? })
    }

    /// How many threads share the work of a call that is made from here.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// The vector instructions that kernels use: `AVX2`, say.
    pub fn instructions(&self) -> &'static str {
        Machine::detect().name()
    }

    /// Measures the f32 operations per second of all threads, where a multiplication and an
    /// addition are two, by chains of them in registers. It takes a few hundredths of a second.
    pub fn peak_flops(&self) -> f64 {
        peak_flops(&self.threads)
    }

    /// Plans `problem`.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reasons.
    pub fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        Plan::new(problem, options, self.threads.clone())
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("instructions", &self.instructions()).finish_non_exhaustive()
    }
}

impl Backend for Cpu {
    fn kind(&self) -> BackendKind {
        BackendKind::Cpu
    }

    fn device_name(&self) -> String {
        format!("CPU, {} threads, {}", self.threads(), self.instructions())
    }

    fn measure_peak_flops(&self) -> Option<f64> {
        Some(self.peak_flops())
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        let reasons = refusals(problem, options);
        if reasons.is_empty() {
            Verdict::Runs(how(Machine::detect()))
        } else {
            Verdict::Refused(reasons)
        }
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Ok(Arc::new(SharedPlan(Arc::new(Cpu::plan(self, problem, options)?))))
    }
}

/// A plan that uploaded calls keep.
#[derive(Debug)]
struct SharedPlan(Arc<Plan>);

impl fmt::Display for SharedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BackendPlan for SharedPlan {
    fn problem(&self) -> &Problem {
        self.0.problem()
    }

    fn kernel(&self) -> KernelKind {
        KernelKind::Flash
    }

    fn dispatch_count(&self) -> usize {
        self.0.dispatch_count()
    }

    fn workspace_bytes(&self) -> u64 {
        self.0.workspace_bytes()
    }

    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError> {
        let tensors = HostCopies::new(self.0.problem(), args).map_err(Error::from)?;
        Ok(Box::new(CpuRun { plan: self.0.clone(), tensors }))
    }

    /// Works on the caller's memory: nothing is copied.
    fn run(&self, args: HostArgs<'_>) -> Result<HostStats, BackendError> {
        Ok(self.0.run(args)?)
    }
}

/// A call with copies of its tensors, to be run any number of times.
struct CpuRun {
    plan: Arc<Plan>,
    tensors: HostCopies,
}

impl BackendRun for CpuRun {
    fn run(&self) -> Result<Timing, BackendError> {
        Ok(self.tensors.with_args(|args| self.plan.run(args))?.run)
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        Ok(self.tensors.download(args).map_err(Error::from)?)
    }

    fn device_bytes(&self) -> u64 {
        self.tensors.bytes() + self.plan.workspace_bytes()
    }
}
