use crate::{
    Context, Error, PlanOptions, Schedule, Step, module::Function, schedule, workspace::Workspace,
};
use flashtile_core::{KernelKind, Problem, Reason, Verdict, choose_kernel};
use flashtile_shaders::cuda::CudaTiles;
use std::{fmt, sync::Arc};

/// How one problem is done on one card. Display it to read it; a clone is another handle to the same.
///
/// Launching takes `&self` and may happen on several threads and streams at once.
#[derive(Clone)]
pub struct Plan {
    pub(crate) inner: Arc<PlanInner>,
}

pub(crate) struct PlanInner {
    pub(crate) context: Context,
    pub(crate) problem: Problem,
    pub(crate) schedule: Schedule,
    /// One a step.
    pub(crate) functions: Vec<Arc<Function>>,
    /// Scores of the unfused kernels, for calls that bring none.
    pub(crate) workspace: Option<Workspace>,
}

impl Context {
    /// Whether `kernel` runs `problem` here, without compiling anything.
    pub fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        let schedule = match schedule(problem, kernel, &PlanOptions::default(), self.machine()) {
            Ok(schedule) => schedule,
            Err(reasons) => return Verdict::Refused(reasons),
        };
        match self.compiler() {
            Ok(_) => Verdict::Runs(format!("{}, {}", self.name(), schedule.tiles)),
            Err(e) => Verdict::Refused(vec![Reason::NoCompiler(e.to_string())]),
        }
    }

    /// Plans `problem`, compiling the kernels that are not compiled yet.
    ///
    /// # Errors
    /// [`Error::Refused`] with every reason, [`Error::NoCompiler`], [`Error::Compile`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        let (mut schedule, why) = choose_kernel(options.kernel, |kernel| {
            schedule(problem, kernel, options, self.machine())
        })
        .map_err(|(kernel, reasons)| Error::Refused { kernel, reasons })?;
        schedule.reasons.insert(0, why);
        self.build(problem, schedule)
    }

    fn build(&self, problem: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        let functions = schedule
            .steps
            .iter()
            .map(|step| self.function(&step.variant))
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
    /// What it computes.
    pub fn problem(&self) -> &Problem {
        &self.inner.problem
    }

    /// The kernel that was chosen.
    pub fn kernel(&self) -> KernelKind {
        self.inner.schedule.kernel
    }

    /// The tile shape of its main kernel.
    pub fn tiles(&self) -> CudaTiles {
        self.inner.schedule.tiles
    }

    /// Bytes of device memory that it keeps besides the caller's tensors.
    pub fn workspace_bytes(&self) -> u64 {
        self.inner.workspace.as_ref().map_or(0, |workspace| workspace.bytes)
    }

    /// Why it is as it is.
    pub fn reasons(&self) -> &[String] {
        &self.inner.schedule.reasons
    }

    /// Its launches, in order.
    pub fn steps(&self) -> &[Step] {
        &self.inner.schedule.steps
    }

    /// The context that it was made in.
    pub fn context(&self) -> &Context {
        &self.inner.context
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanInner { context, problem, schedule, functions, .. } = &*self.inner;
        writeln!(f, "{}: {problem}", schedule.kernel)?;
        let arch = context.machine().arch;
        writeln!(
            f,
            "on {} (CUDA, compute capability {}.{})",
            context.name(),
            arch / 10,
            arch % 10
        )?;
        for reason in &schedule.reasons {
            writeln!(f, "because {reason}")?;
        }
        const SHOWN: usize = 6;
        for (n, (step, function)) in schedule.steps.iter().zip(functions).take(SHOWN).enumerate() {
            let Step { variant, part } = step;
            write!(f, "launch {n}: {variant}, heads {:?}, rows {:?}", part.heads, part.rows)?;
            if let Some(usage) = function.usage {
                write!(f, ", {} registers", usage.registers)?;
            }
            writeln!(f, ", {} bytes of shared memory", variant.shared_bytes())?;
        }
        if schedule.steps.len() > SHOWN {
            writeln!(f, "and {} more launches", schedule.steps.len() - SHOWN)?;
        }
        write!(f, "workspace {} bytes", self.workspace_bytes())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("schedule", &self.inner.schedule).finish_non_exhaustive()
    }
}
