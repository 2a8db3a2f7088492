use crate::{
    Args, Context, Error,
    bind::BindCache,
    context::{Inner, Pipeline},
    schedule::{Schedule, Step, measured, schedule},
    scope::{catch, check_lost},
    tiles::WORD_BYTES,
};
use flashtile_core::{
    CachedPlan, KernelKind, PlanOptions as CoreOptions, Problem, Verdict,
    planning::{PlanSummary, choose_kernel},
};
use flashtile_shaders::{Operation, Tiles};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// What a plan is asked for: see [`flashtile_core::PlanOptions`]. Tile shapes are those of
/// [`FLASH_TILES`](flashtile_shaders::FLASH_TILES).
pub type PlanOptions = CoreOptions<Tiles>;

/// How one problem is computed on one device. A clone is another handle to the same plan.
///
/// Make one plan per attention configuration and share it: all layers of a model, all calls and all
/// threads can use it at once. Sequence lengths are capacities, so a decode loop plans once for its
/// key-value cache. `Display` shows the dispatches, and why the plan is as it is.
#[derive(Clone)]
pub struct Plan {
    pub(crate) inner: Arc<PlanInner>,
}

pub(crate) struct PlanInner {
    pub(crate) context: Context,
    pub(crate) problem: Problem,
    pub(crate) schedule: Schedule,
    /// One per step.
    pub(crate) pipelines: Vec<Pipeline>,
    /// Scores of the unfused kernels, or the partial results of a split. Calls on one queue run one
    /// after the other, so they share it.
    pub(crate) workspace: Option<wgpu::Buffer>,
    pub(crate) bind_cache: BindCache,
    /// The same problem for calls whose tensors do not start at multiples of 16 bytes, where the
    /// plan's own kernel needs that. Made by the first such call.
    portable: OnceLock<Arc<PlanInner>>,
}

/// One dispatch of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispatch {
    /// What it computes.
    pub operation: Operation,
    /// Name of its kernel variant.
    pub variant: String,
    /// Its tile shape.
    pub tiles: Tiles,
    /// Its batch entries.
    pub batch: Range<usize>,
    /// Its query heads.
    pub heads: Range<usize>,
    /// Its queries.
    pub rows: Range<usize>,
    /// Its keys: all, or those of some chunks.
    pub keys: Range<usize>,
}

impl Context {
    /// Whether `problem` runs here with `options`, without compiling anything.
    pub fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        match self.schedule(problem, options) {
            Ok(schedule) => {
                let chunks = schedule.chunks.map_or(String::new(), |c| format!(", {c}"));
                let without = schedule.no_matrix_units;
                let without =
                    without.map_or(String::new(), |why| format!("; no matrix units: {why}"));
                let measured = if schedule.measured { ", measured" } else { "" };
                let (name, tiles) = (&self.inner.info.name, schedule.tiles);
                Verdict::Runs(format!("{name}, {tiles}{chunks}{measured}{without}"))
            }
            Err((_, reasons)) => Verdict::Refused(reasons),
        }
    }

    /// Plans `problem`, compiling the kernels that are not compiled yet.
    ///
    /// With compiled kernels it takes microseconds and does not ask the device, so a lost device is
    /// then reported by the run. A [`PlanCache`](flashtile_core::PlanCache) keeps plans by problem.
    ///
    /// # Errors
    /// [`Error::Refused`] with every reason, [`Error::Compile`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        let schedule = self
            .schedule(problem, options)
            .map_err(|(kernel, reasons)| Error::Refused { kernel, reasons })?;
        self.build(problem, schedule).await
    }

    fn schedule(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Schedule, (KernelKind, Vec<flashtile_core::Reason>)> {
        let Inner { machine, tuning, .. } = &*self.inner;
        let one = |kernel| {
            let planned = schedule(problem, kernel, options, machine)?;
            Ok(match tuning {
                Some(tuning) => measured(tuning, problem, options, machine, planned),
                None => planned,
            })
        };
        let (mut schedule, why) = choose_kernel(options.named_kernel(), one)?;
        schedule.rationale.insert(0, why);
        Ok(schedule)
    }

    /// As [`plan`](Self::plan), blocking.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    #[cfg(not(target_family = "wasm"))]
    pub fn plan_blocking(&self, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        pollster::block_on(self.plan(problem, options))
    }

    pub(crate) async fn build(&self, problem: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        let mut pipelines = Vec::with_capacity(schedule.steps.len());
        for step in &schedule.steps {
            pipelines.push(self.pipeline(&step.variant, &schedule.constants).await?);
        }
        let workspace = match schedule.workspace_bytes {
            0 => None,
            _ if schedule.steps.is_empty() => None,
            bytes => Some(self.workspace(bytes.next_multiple_of(4)).await?),
        };
        // Bind groups of one call come and go together.
        let bind_cache = BindCache::new(schedule.steps.len());
        let (context, problem) = (self.clone(), problem.clone());
        let portable = OnceLock::new();
        let inner =
            PlanInner { context, problem, schedule, pipelines, workspace, bind_cache, portable };
        Ok(Plan { inner: Arc::new(inner) })
    }

    /// As `build`, at once.
    #[cfg(not(target_family = "wasm"))]
    fn build_now(&self, problem: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        pollster::block_on(self.build(problem, schedule))
    }

    /// A browser's main thread cannot wait; no plan needs this there, because browsers do not say
    /// enough of a GPU for its plan to leave the portable kernels.
    #[cfg(target_family = "wasm")]
    fn build_now(&self, _: &Problem, schedule: Schedule) -> Result<Plan, Error> {
        let because = "tensors must start at multiples of 16 bytes".to_owned();
        let reason = flashtile_core::Reason::Tiles { tiles: schedule.tiles.to_string(), because };
        Err(Error::Refused { kernel: schedule.kernel, reasons: vec![reason] })
    }

    async fn workspace(&self, size: u64) -> Result<wgpu::Buffer, Error> {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("flashtile workspace"),
            size,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        };
        let buffer = catch(self.device(), || self.device().create_buffer(&descriptor)).await;
        let what = || format!("{size} bytes of workspace");
        let buffer = buffer.map_err(|caught| caught.about(self.device(), what))?;
        check_lost(self.device())?;
        Ok(buffer)
    }
}

impl PlanInner {
    /// The plan for a call with `args`: itself, or the portable one where the plan's kernel reads
    /// words of 16 bytes and a tensor starts between them.
    pub(crate) fn for_call(&self, args: &Args<'_>) -> Result<&PlanInner, Error> {
        let wide = self.schedule.tiles.uses_words();
        let tensors = [args.q, args.k, args.v, args.out];
        if !wide || tensors.iter().all(|tensor| tensor.offset.is_multiple_of(WORD_BYTES)) {
            return Ok(self);
        }
        if let Some(portable) = self.portable.get() {
            return Ok(portable);
        }
        let context = &self.context;
        let kernel = self.schedule.kernel;
        let machine = context.inner.machine.portable();
        let made = schedule(&self.problem, kernel, &PlanOptions::new(), &machine)
            .map_err(|reasons| Error::Refused { kernel, reasons })?;
        let made = context.build_now(&self.problem, made)?;
        Ok(self.portable.get_or_init(|| made.inner))
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

    /// Why it is as it is, one sentence each.
    pub fn rationale(&self) -> &[String] {
        &self.inner.schedule.rationale
    }

    /// Its dispatches, in order.
    pub fn dispatches(&self) -> Vec<Dispatch> {
        self.inner.schedule.steps.iter().map(|step| self.dispatch(step)).collect()
    }

    fn dispatch(&self, step: &Step) -> Dispatch {
        let part = self.inner.schedule.parts[step.part].clone();
        Dispatch {
            operation: step.variant.operation,
            variant: step.variant.to_string(),
            tiles: step.variant.tiles,
            batch: part.batch,
            heads: part.heads,
            rows: part.rows,
            keys: part.keys,
        }
    }

    /// Drops the bind groups that the plan keeps, and with them its references to the caller's
    /// buffers. The next calls make new ones.
    ///
    /// Bind groups of buffer sets that are not used any more are dropped without it, but only as
    /// further calls are recorded: call it for a plan that will be idle.
    pub fn release_bindings(&self) {
        self.inner.bind_cache.clear();
    }

    /// How many bind groups the plan keeps.
    pub fn binding_count(&self) -> usize {
        self.inner.bind_cache.len()
    }
}

impl CachedPlan for Plan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanInner { context, problem, schedule, .. } = &*self.inner;
        let info = &context.inner.info;
        let dispatch = |n: usize| {
            let Dispatch { variant, batch, heads, rows, keys, .. } =
                self.dispatch(&schedule.steps[n]);
            format!("{variant}, batch {batch:?}, heads {heads:?}, rows {rows:?}, keys {keys:?}")
        };
        let device = format!("{} ({})", info.name, info.backend);
        PlanSummary::new(schedule.kernel, problem, device)
            .rationale(&schedule.rationale)
            .dispatches(schedule.steps.len(), &dispatch)
            .workspace_bytes(self.workspace_bytes())
            .fmt(f)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("schedule", &self.inner.schedule).finish_non_exhaustive()
    }
}
