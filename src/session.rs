use crate::{Error, Report};
use flashtile_core::{BackendKind, Explanation, HostArgs, KernelKind, Problem, Reason, Verdict};
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Plans that a session keeps, and bytes of workspace that they may keep with them; the least recently used goes first.
const KEPT_PLANS: usize = 64;
const KEPT_BYTES: u64 = 256 << 20;

/// What a session needs of a backend that works on devices.
pub(crate) trait Device {
    /// The backend's name.
    const BACKEND: BackendKind;
    /// Which device to open.
    type Choice: Clone + Default + Send + Sync;
    /// An open device; a clone is another handle to the same.
    type Context: Clone + fmt::Debug + Send + Sync;
    /// What a plan is asked for.
    type Options: Copy + PartialEq + Send + Sync;
    /// How a problem is done; a clone is another handle to the same.
    type Plan: Clone + fmt::Display + Send + Sync;
    /// What can go wrong.
    type Error: Into<Error>;

    /// Opens a device, or says why there is none.
    fn open(choice: &Self::Choice) -> Result<Self::Context, Reason>;
    fn name(context: &Self::Context) -> String;
    fn verdict(context: &Self::Context, problem: &Problem, kernel: KernelKind) -> Verdict;
    /// `None`: the first kernel that runs.
    fn options(kernel: Option<KernelKind>) -> Self::Options;
    fn plan(
        context: &Self::Context,
        problem: &Problem,
        options: &Self::Options,
    ) -> Result<Self::Plan, Self::Error>;
    fn run(
        context: &Self::Context,
        plan: &Self::Plan,
        args: HostArgs<'_>,
    ) -> Result<Ran, Self::Error>;
    fn problem(plan: &Self::Plan) -> &Problem;
    fn kernel(plan: &Self::Plan) -> KernelKind;
    fn workspace_bytes(plan: &Self::Plan) -> u64;
    /// Whether the device is of no use any more.
    fn is_lost(error: &Self::Error) -> bool;
}

/// What one run on host tensors took.
pub(crate) struct Ran {
    pub(crate) run_ms: f64,
    pub(crate) gpu_ms: Option<f64>,
    pub(crate) device_bytes: u64,
}

/// One backend's side of a session: a device, opened when first needed, and the plans made on it.
pub(crate) struct Session<D: Device> {
    /// What to open; `None` where the caller gave a device.
    choice: Option<D::Choice>,
    /// The device, or why there is none; `None` before it was asked for, and after it was lost.
    context: Mutex<Option<Result<D::Context, Reason>>>,
    /// Most recently used last. Few and cheap to compare, and [`Problem`] holds floats: a list, not a map.
    plans: Mutex<Vec<(D::Options, D::Plan)>>,
}

impl<D: Device> Default for Session<D> {
    fn default() -> Self {
        Self::new(D::Choice::default())
    }
}

impl<D: Device> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("backend", &D::BACKEND)
            .field("context", &lock(&self.context))
            .finish_non_exhaustive()
    }
}

/// What these locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Device> Session<D> {
    pub(crate) fn new(choice: D::Choice) -> Self {
        Self { choice: Some(choice), context: Mutex::default(), plans: Mutex::default() }
    }

    pub(crate) fn with_context(context: D::Context) -> Self {
        Self { choice: None, context: Mutex::new(Some(Ok(context))), plans: Mutex::default() }
    }

    fn context(&self) -> Result<D::Context, Reason> {
        let choice = self.choice.clone().unwrap_or_default();
        lock(&self.context).get_or_insert_with(|| D::open(&choice)).clone()
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
            Ok(context) => D::verdict(&context, problem, kernel),
            Err(why) => Verdict::Refused(vec![why]),
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
            let refused = Verdict::Refused(vec![why]);
            Error::Refused(Explanation { verdicts: vec![(D::BACKEND, kernel, refused)] })
        })?;
        let options = D::options(forced.then_some(kernel));
        let run = || {
            let plan = self.plan(&context, problem, options)?;
            let ran = D::run(&context, &plan, args)?;
            Ok((plan, ran))
        };
        let (plan, ran) = run().map_err(|e: D::Error| {
            if D::is_lost(&e) {
                self.forget();
            }
            e.into()
        })?;
        Ok(Report {
            backend: D::BACKEND,
            kernel: D::kernel(&plan),
            device: D::name(&context),
            plan: plan.to_string(),
            why: String::new(),
            first_ms: 0.0,
            run_ms: ran.run_ms,
            gpu_ms: ran.gpu_ms,
            workspace_bytes: D::workspace_bytes(&plan),
            peak_bytes: ran.device_bytes,
        })
    }

    fn plan(
        &self,
        context: &D::Context,
        problem: &Problem,
        options: D::Options,
    ) -> Result<D::Plan, D::Error> {
        let mut plans = lock(&self.plans);
        if let Some(at) = plans
            .iter()
            .position(|(made_for, plan)| *made_for == options && D::problem(plan) == problem)
        {
            let found = plans.remove(at);
            let plan = found.1.clone();
            plans.push(found);
            return Ok(plan);
        }
        // Compiling takes long: other threads go on meanwhile.
        drop(plans);
        let plan = D::plan(context, problem, &options)?;
        let mut plans = lock(&self.plans);
        plans.push((options, plan.clone()));
        let kept = |plans: &[(D::Options, D::Plan)]| {
            plans.iter().map(|(_, plan)| D::workspace_bytes(plan)).sum::<u64>()
        };
        while plans.len() > KEPT_PLANS || plans.len() > 1 && kept(&plans) > KEPT_BYTES {
            plans.remove(0);
        }
        Ok(plan)
    }
}
