use crate::{Error, Report};
use flashtile_core::{BackendKind, HostArgs, KernelKind, Problem, Reason, Verdict};
use flashtile_wgpu::{AdapterChoice, Context, Plan, PlanOptions};
use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Plans that a session keeps; the least recently used goes first.
const KEPT_PLANS: usize = 64;

/// The wgpu side of a session: a device, opened once, and the plans made on it.
#[derive(Default)]
pub(crate) struct Gpu {
    choice: AdapterChoice,
    /// The device, or why there is none.
    context: OnceLock<Result<Context, String>>,
    /// Most recently used last. Few and cheap to compare, and [`Problem`] holds floats: a list, not a map.
    plans: Mutex<Vec<(PlanOptions, Plan)>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.context.get().map(|context| context.as_ref().map(device_name));
        f.debug_struct("Gpu").field("device", &device).finish_non_exhaustive()
    }
}

impl Gpu {
    pub(crate) fn new(choice: AdapterChoice) -> Self {
        Self { choice, ..Self::default() }
    }

    pub(crate) fn with_context(context: Context) -> Self {
        Self { context: OnceLock::from(Ok(context)), ..Self::default() }
    }

    fn context(&self) -> Result<&Context, &String> {
        let open = || flashtile_wgpu::open_blocking(&self.choice).map_err(|e| e.to_string());
        self.context.get_or_init(open).as_ref()
    }

    pub(crate) fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        match self.context() {
            Ok(context) => context.verdict(problem, kernel),
            Err(why) => Verdict::Refused(vec![Reason::NoDevice(why.clone())]),
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
            let refused = Verdict::Refused(vec![Reason::NoDevice(why.clone())]);
            Error::Refused(flashtile_core::Explanation { verdicts: vec![(BackendKind::Wgpu, kernel, refused)] })
        })?;
        let plan =
            self.plan(context, problem, if forced { PlanOptions::kernel(kernel) } else { PlanOptions::default() })?;
        let stats = context.run_host_blocking(&plan, args)?;
        Ok(Report {
            backend: BackendKind::Wgpu,
            kernel: plan.kernel(),
            device: device_name(context),
            plan: plan.to_string(),
            why: String::new(),
            first_ms: 0.0,
            run_ms: stats.run.as_secs_f64() * 1e3,
            workspace_bytes: plan.workspace_bytes(),
            peak_bytes: stats.device_bytes,
        })
    }

    fn plan(&self, context: &Context, problem: &Problem, options: PlanOptions) -> Result<Plan, Error> {
        let lock = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut plans = lock();
        if let Some(at) = plans.iter().position(|(made_for, plan)| *made_for == options && plan.problem() == problem) {
            let found = plans.remove(at);
            let plan = found.1.clone();
            plans.push(found);
            return Ok(plan);
        }
        // Compiling takes long: other threads go on meanwhile.
        drop(plans);
        let plan = context.plan_blocking(problem, &options)?;
        let mut plans = lock();
        plans.push((options, plan.clone()));
        if plans.len() > KEPT_PLANS {
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
