use crate::{Error, Report};
use flashtile_core::{BackendKind, HostArgs, KernelKind, Problem, Reason, Verdict};
use flashtile_wgpu::{AdapterChoice, Context, Plan, PlanOptions};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Plans that a session keeps, and bytes of workspace that they may keep with them; the least recently used goes first.
const KEPT_PLANS: usize = 64;
const KEPT_BYTES: u64 = 256 << 20;

/// The wgpu side of a session: a device, opened when first needed, and the plans made on it.
pub(crate) struct Gpu {
    /// What to open; `None` where the caller gave a device.
    choice: Option<AdapterChoice>,
    /// The device, or why there is none; `None` before it was asked for, and after it was lost.
    context: Mutex<Option<Result<Context, String>>>,
    /// Most recently used last. Few and cheap to compare, and [`Problem`] holds floats: a list, not a map.
    plans: Mutex<Vec<(PlanOptions, Plan)>>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new(AdapterChoice::default())
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("context", &lock(&self.context)).finish_non_exhaustive()
    }
}

/// What these locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    pub(crate) fn new(choice: AdapterChoice) -> Self {
        Self { choice: Some(choice), context: Mutex::default(), plans: Mutex::default() }
    }

    pub(crate) fn with_context(context: Context) -> Self {
        Self { choice: None, context: Mutex::new(Some(Ok(context))), plans: Mutex::default() }
    }

    fn context(&self) -> Result<Context, String> {
        let choice = self.choice.clone().unwrap_or_default();
        let open = || flashtile_wgpu::open_blocking(&choice).map_err(|e| e.to_string());
        lock(&self.context).get_or_insert_with(open).clone()
    }

    /// Lets go of a device that is lost, so that the next call opens another; the caller's own cannot be replaced.
    fn forget(&self) {
        if self.choice.is_some() {
            *lock(&self.context) = None;
            lock(&self.plans).clear();
        }
    }

    pub(crate) fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        match self.context() {
            Ok(context) => context.verdict(problem, kernel),
            Err(why) => Verdict::Refused(vec![Reason::NoDevice(why)]),
        }
    }

    /// Runs with `kernel`, which [`verdict`](Self::verdict) said runs; `forced` where the caller asked for it by name.
    pub(crate) fn run(
        &self,
        problem: &Problem,
        args: HostArgs<'_>,
        kernel: KernelKind,
        forced: bool,
    ) -> Result<Report, Error> {
        let context = self.context().map_err(|why| {
            let refused = Verdict::Refused(vec![Reason::NoDevice(why)]);
            Error::Refused(flashtile_core::Explanation { verdicts: vec![(BackendKind::Wgpu, kernel, refused)] })
        })?;
        let options = if forced { PlanOptions::kernel(kernel) } else { PlanOptions::default() };
        let run = || {
            let plan = self.plan(&context, problem, options)?;
            let stats = context.run_host_blocking(&plan, args)?;
            Ok((plan, stats))
        };
        let (plan, stats) = run().inspect_err(|e| {
            if matches!(e, flashtile_wgpu::Error::DeviceLost(_)) {
                self.forget();
            }
        })?;
        Ok(Report {
            backend: BackendKind::Wgpu,
            kernel: plan.kernel(),
            device: device_name(&context),
            plan: plan.to_string(),
            why: String::new(),
            first_ms: 0.0,
            run_ms: stats.run.host.as_secs_f64() * 1e3,
            gpu_ms: stats.run.gpu.map(|time| time.as_secs_f64() * 1e3),
            workspace_bytes: plan.workspace_bytes(),
            peak_bytes: stats.device_bytes,
        })
    }

    fn plan(&self, context: &Context, problem: &Problem, options: PlanOptions) -> Result<Plan, flashtile_wgpu::Error> {
        let mut plans = lock(&self.plans);
        if let Some(at) = plans.iter().position(|(made_for, plan)| *made_for == options && plan.problem() == problem) {
            let found = plans.remove(at);
            let plan = found.1.clone();
            plans.push(found);
            return Ok(plan);
        }
        // Compiling takes long: other threads go on meanwhile.
        drop(plans);
        let plan = context.plan_blocking(problem, &options)?;
        let mut plans = lock(&self.plans);
        plans.push((options, plan.clone()));
        let kept = |plans: &[(PlanOptions, Plan)]| plans.iter().map(|(_, plan)| plan.workspace_bytes()).sum::<u64>();
        while plans.len() > KEPT_PLANS || plans.len() > 1 && kept(&plans) > KEPT_BYTES {
            plans.remove(0);
        }
        Ok(plan)
    }
}

/// The adapter's name and graphics API.
fn device_name(context: &Context) -> String {
    let info = context.adapter_info();
    format!("{} ({:?})", info.name, info.backend)
}
