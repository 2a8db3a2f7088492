use crate::{Context, Dispatch, Error, Schedule, module::Function, schedule, workspace::Workspace};
use flashtile_core::{
    CachedPlan, KernelKind, PlanOptions as CoreOptions, Problem, Reason, Verdict,
    planning::{PlanSummary, choose_kernel},
};
use flashtile_shaders::cuda::CudaTiles;
use std::{fmt, sync::Arc};

/// What the caller requests of a plan: see [`flashtile_core::PlanOptions`]. Tile shapes are those
/// of [`CUDA_SIMT_TILES`](flashtile_shaders::cuda::CUDA_SIMT_TILES),
/// [`CUDA_MMA_TILES`](flashtile_shaders::cuda::CUDA_MMA_TILES) and
/// [`CUDA_TF32_TILES`](flashtile_shaders::cuda::CUDA_TF32_TILES).
pub type PlanOptions = CoreOptions<CudaTiles>;

/// How one problem is computed on one GPU. A clone is another handle to the same plan.
///
/// Make one plan per attention configuration and share it: all layers of a model, all calls,
/// threads and streams can use it at once. Sequence lengths are capacities, so a decode loop plans
/// once for its key-value cache. `Display` prints the dispatches and the reasons for the choices.
#[derive(Clone)]
pub struct Plan {
    pub(crate) inner: Arc<PlanInner>,
}

pub(crate) struct PlanInner {
    pub(crate) context: Context,
    pub(crate) problem: Problem,
    pub(crate) schedule: Schedule,
    /// One per dispatch.
    pub(crate) functions: Vec<Arc<Function>>,
    /// For the scores of the unfused kernels or the parts of a split, in calls without a workspace
    /// of their own.
    pub(crate) workspace: Option<Workspace>,
}

impl Context {
    /// Whether `problem` runs here with `options`. Compiles nothing.
    pub fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        let schedule = match self.schedule(problem, options) {
            Ok(schedule) => schedule,
            Err((_, reasons)) => return Verdict::Refused(reasons),
        };
        match self.compiler() {
            Ok(_) => Verdict::Runs(format!("{}, {}", self.name(), schedule.tiles)),
            Err(e) => Verdict::Refused(vec![Reason::NoCompiler(e.to_string())]),
        }
    }

    /// Plans `problem`, and compiles the kernels that are not compiled yet.
    ///
    /// With compiled kernels this takes microseconds. A [`PlanCache`](flashtile_core::PlanCache)
    /// keeps plans by problem.
    ///
    /// # Errors
    /// [`Error::Refused`] with every reason, [`Error::NoCompiler`], [`Error::Compile`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        let schedule = self
            .schedule(problem, options)
            .map_err(|(kernel, reasons)| Error::Refused { kernel, reasons })?;
        self.build(problem, schedule)
    }

    fn schedule(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Schedule, (KernelKind, Vec<Reason>)> {
        let one = |kernel| schedule(problem, kernel, options, self.machine());
        let (mut schedule, why) = choose_kernel(options.named_kernel(), one)?;
        schedule.rationale.insert(0, why);
        Ok(schedule)
    }

    fn build(&self, problem: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        let functions = schedule
            .dispatches
            .iter()
            .map(|dispatch| self.function(&dispatch.variant))
            .collect::<Result<Vec<_>, _>>()?;
        let workspace = match schedule.workspace_bytes {
            0 => None,
            bytes => Some(Workspace::new(self.cuda(), bytes)?),
        };
        let inner = PlanInner {
            context: self.clone(),
            problem: problem.clone(),
            schedule,
            functions,
            workspace,
        };
        Ok(Plan { inner: Arc::new(inner) })
    }
}

impl Plan {
    /// The problem that it computes.
    pub fn problem(&self) -> &Problem {
        &self.inner.problem
    }

    /// The chosen kernel.
    pub fn kernel(&self) -> KernelKind {
        self.inner.schedule.kernel
    }

    /// The tile shape of its main kernel.
    pub fn tiles(&self) -> CudaTiles {
        self.inner.schedule.tiles
    }

    /// Bytes of device memory that it keeps in addition to the caller's tensors.
    pub fn workspace_bytes(&self) -> u64 {
        self.inner.workspace.as_ref().map_or(0, |workspace| workspace.bytes)
    }

    /// The reasons for its choices, one sentence each.
    pub fn rationale(&self) -> &[String] {
        &self.inner.schedule.rationale
    }

    /// Its dispatches, in order. Each is one kernel launch per call.
    pub fn dispatches(&self) -> &[Dispatch] {
        &self.inner.schedule.dispatches
    }

    /// The context that created it.
    pub fn context(&self) -> &Context {
        &self.inner.context
    }
}

impl CachedPlan for Plan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanInner { context, problem, schedule, functions, .. } = &*self.inner;
        let dispatch = |n: usize| {
            let Dispatch { variant, part } = &schedule.dispatches[n];
            let registers =
                functions[n].usage.map(|usage| format!(", {} registers", usage.registers));
            let (registers, bytes) = (registers.unwrap_or_default(), variant.shared_bytes());
            let (heads, rows) = (&part.heads, &part.rows);
            format!(
                "{variant}, heads {heads:?}, rows {rows:?}{registers}, \
                 {bytes} bytes of shared memory"
            )
        };
        let capability = context.machine().capability();
        let device = format!("{} (CUDA, compute capability {capability})", context.name());
        PlanSummary::new(schedule.kernel, problem, device)
            .rationale(&schedule.rationale)
            .dispatches(schedule.dispatches.len(), &dispatch)
            .workspace_bytes(self.workspace_bytes())
            .fmt(f)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("schedule", &self.inner.schedule).finish_non_exhaustive()
    }
}
