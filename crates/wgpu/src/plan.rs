use crate::{
    Context, Error,
    bind::BindCache,
    context::Pipeline,
    ring::Ring,
    schedule::{Machine, Schedule, schedule},
    scope::{catch, check_lost},
};
use flashtile_core::{KernelKind, Problem, Verdict, choose_kernel};
use flashtile_shaders::{Operation, Tiles};
use std::{fmt, ops::Range, sync::Arc};

/// What a plan may be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Forces a kernel. Default: flash where it runs, else unfused.
    pub kernel: Option<KernelKind>,
    /// Forces a tile shape of the flash kernel, one of [`FLASH_TILES`](flashtile_shaders::FLASH_TILES): for measuring. Default: the plan's choice.
    pub tiles: Option<Tiles>,
}

impl PlanOptions {
    /// The flash kernel with a tile shape of one's own.
    pub fn tiles(tiles: Tiles) -> Self {
        Self { kernel: Some(KernelKind::Flash), tiles: Some(tiles) }
    }

    /// Forces `kernel`.
    pub fn kernel(kernel: KernelKind) -> Self {
        Self { kernel: Some(kernel), ..Self::default() }
    }
}

/// How one problem is done on one device. Display it to read it; a clone is another handle to the same.
///
/// Encoding takes `&self` and may happen on several threads at once.
#[derive(Clone)]
pub struct Plan {
    pub(crate) inner: Arc<PlanInner>,
}

pub(crate) struct PlanInner {
    pub(crate) context: Context,
    pub(crate) problem: Problem,
    pub(crate) schedule: Schedule,
    /// One a step.
    pub(crate) pipelines: Vec<Pipeline>,
    /// Scores of the unfused kernels. Calls on one queue follow each other, so they can share it.
    pub(crate) workspace: Option<wgpu::Buffer>,
    pub(crate) bind_cache: BindCache,
    /// The context's, or a larger one of its own for a plan of very many dispatches.
    pub(crate) ring: Arc<Ring>,
}

/// One dispatch of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// What it computes.
    pub operation: Operation,
    /// Name of its kernel variant.
    pub variant: String,
    /// Its tile shape.
    pub tiles: Tiles,
    /// The batch entries that it does.
    pub batch: Range<usize>,
    /// The query heads that it does.
    pub heads: Range<usize>,
    /// The queries that it does.
    pub rows: Range<usize>,
}

impl Context {
    fn machine(&self) -> Machine {
        Machine::new(&self.inner.limits, self.device().features(), &self.inner.info)
    }

    /// Whether `kernel` runs `problem` here, without compiling anything.
    pub fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        match schedule(problem, kernel, &PlanOptions::default(), &self.machine()) {
            Ok(schedule) => Verdict::Runs(format!("{}, {}", self.inner.info.name, schedule.tiles)),
            Err(reasons) => Verdict::Refused(reasons),
        }
    }

    /// Plans `problem`, compiling the kernels that are not compiled yet.
    ///
    /// # Errors
    /// [`Error::Refused`] with every reason, [`Error::Compile`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        let machine = self.machine();
        let (mut schedule, why) =
            choose_kernel(options.kernel, |kernel| schedule(problem, kernel, options, &machine))
                .map_err(|(kernel, reasons)| Error::Refused { kernel, reasons })?;
        schedule.reasons.insert(0, why);
        self.build(problem, schedule).await
    }

    /// As [`plan`](Self::plan), blocking.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    #[cfg(not(target_family = "wasm"))]
    pub fn plan_blocking(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        pollster::block_on(self.plan(problem, options))
    }

    async fn build(&self, problem: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        let mut pipelines = Vec::with_capacity(schedule.steps.len());
        for step in &schedule.steps {
            pipelines.push(self.pipeline(&step.variant, &schedule.constants).await?);
        }
        let workspace = if schedule.workspace_bytes > 0 && !schedule.steps.is_empty() {
            let descriptor = wgpu::BufferDescriptor {
                label: Some("flashtile scores"),
                size: schedule.workspace_bytes.next_multiple_of(4),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            };
            let buffer = catch(self.device(), || self.device().create_buffer(&descriptor)).await;
            Some(buffer.map_err(|caught| {
                caught.about(self.device(), || format!("{} bytes of scores", descriptor.size))
            })?)
        } else {
            None
        };
        // Two calls at least must fit: one in flight while the next is recorded.
        let slots = 2 * schedule.steps.len() as u32;
        let ring = if slots > Ring::SHARED_SLOTS {
            let ring = catch(self.device(), || Ring::new(self.device(), slots)).await;
            Arc::new(ring.map_err(|caught| {
                caught.about(self.device(), || format!("{slots} parameter slots"))
            })?)
        } else {
            self.inner.ring.clone()
        };
        check_lost(self.device())?;
        let inner = PlanInner {
            context: self.clone(),
            problem: problem.clone(),
            schedule,
            pipelines,
            workspace,
            bind_cache: BindCache::default(),
            ring,
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
    pub fn tiles(&self) -> Tiles {
        self.inner.schedule.tiles
    }

    /// Bytes of device memory that it keeps besides the caller's tensors.
    pub fn workspace_bytes(&self) -> u64 {
        self.inner.workspace.as_ref().map_or(0, wgpu::Buffer::size)
    }

    /// Why it is as it is.
    pub fn reasons(&self) -> &[String] {
        &self.inner.schedule.reasons
    }

    /// Its dispatches, in order.
    pub fn dispatches(&self) -> Vec<Dispatch> {
        let Schedule { steps, parts, .. } = &self.inner.schedule;
        let dispatch = |step: &crate::schedule::Step| {
            let part = parts[step.part].clone();
            Dispatch {
                operation: step.variant.operation,
                variant: step.variant.to_string(),
                tiles: step.variant.tiles,
                batch: part.batch,
                heads: part.heads,
                rows: part.rows,
            }
        };
        steps.iter().map(dispatch).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanInner { context, problem, schedule, .. } = &*self.inner;
        writeln!(f, "{}: {problem}", schedule.kernel)?;
        writeln!(f, "on {} ({})", context.inner.info.name, context.inner.info.backend)?;
        for reason in &schedule.reasons {
            writeln!(f, "because {reason}")?;
        }
        const SHOWN: usize = 6;
        let dispatches = self.dispatches();
        for (n, dispatch) in dispatches.iter().take(SHOWN).enumerate() {
            let Dispatch { variant, batch, heads, rows, .. } = dispatch;
            writeln!(
                f,
                "dispatch {n}: {variant}, batch {batch:?}, heads {heads:?}, rows {rows:?}"
            )?;
        }
        if dispatches.len() > SHOWN {
            writeln!(f, "and {} more dispatches", dispatches.len() - SHOWN)?;
        }
        write!(f, "workspace {} bytes", self.workspace_bytes())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("schedule", &self.inner.schedule).finish_non_exhaustive()
    }
}
