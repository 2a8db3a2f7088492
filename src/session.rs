use crate::{
    Error, Report,
    backends::{self, Prepare},
};
use flashtile_core::{
    Backend, BackendKind, BackendPlan, DeviceChoice, Explanation, HostArgs, KernelKind, PlanCache,
    PlanOptions, Problem, Reason, Verdict,
};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// One backend's side of a session: a device, opened when it is first needed, and the plans made on
/// it.
pub(crate) struct Session {
    kind: BackendKind,
    /// What to open; `None` where the caller gave a device.
    choice: Option<DeviceChoice>,
    prepare: Prepare,
    /// The device, or why there is none; `None` before it is first needed, and after it was lost.
    device: Mutex<Option<Result<Arc<dyn Backend>, Reason>>>,
    plans: PlanCache<Arc<dyn BackendPlan>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("kind", &self.kind)
            .field("device", &*self.lock())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Opens the device that `choice` names when it is first needed.
    pub(crate) fn new(kind: BackendKind, choice: DeviceChoice) -> Self {
        let (prepare, device, plans) = (Prepare::default(), Mutex::default(), PlanCache::new());
        Self { kind, choice: Some(choice), prepare, device, plans }
    }

    /// What is done to the device when it has been opened.
    #[cfg(feature = "wgpu")]
    pub(crate) fn prepare(&mut self, prepare: Prepare) {
        self.prepare = prepare;
    }

    /// Works on a device that is open already.
    pub(crate) fn with_device(device: Arc<dyn Backend>) -> Self {
        let kind = device.kind();
        let device = Mutex::new(Some(Ok(device)));
        let (prepare, plans) = (Prepare::default(), PlanCache::new());
        Self { kind, choice: None, prepare, device, plans }
    }

    pub(crate) fn kind(&self) -> BackendKind {
        self.kind
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<Arc<dyn Backend>, Reason>>> {
        // The contents are whole between any two statements.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> Result<Arc<dyn Backend>, Reason> {
        let choice = self.choice.clone().unwrap_or_default();
        let open = || backends::open(self.kind, &choice, &self.prepare);
        self.lock().get_or_insert_with(open).clone()
    }

    /// Lets go of a lost device, so that the next call opens another. A device of the caller's
    /// cannot be replaced.
    fn forget(&self) {
        if self.choice.is_some() {
            *self.lock() = None;
            self.plans.clear();
        }
    }

    /// Whether its device is a GPU in software. Opens the device.
    pub(crate) fn is_software(&self) -> bool {
        self.device().is_ok_and(|device| device.is_software())
    }

    pub(crate) fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        match self.device() {
            Ok(device) => device.verdict(problem, options),
            Err(why) => Verdict::Refused(vec![why]),
        }
    }

    /// Runs with `kernel`, which [`verdict`](Self::verdict) allowed. `options` name it if the
    /// caller did.
    pub(crate) fn run(
        &self,
        problem: &Problem,
        args: HostArgs<'_>,
        kernel: KernelKind,
        options: &PlanOptions,
    ) -> Result<Report, Error> {
        let device = self.device().map_err(|why| {
            let refused = Verdict::Refused(vec![why]);
            Error::Refused(Explanation::new(vec![(self.kind, kernel, refused)]))
        })?;
        let run = || {
            let plan =
                self.plans.get_or_plan(problem, options, || device.plan(problem, options))?;
            let stats = plan.run(args)?;
            Ok((plan, stats))
        };
        let (plan, stats) = run().inspect_err(|e: &flashtile_core::BackendError| {
            if e.is_device_lost() {
                self.forget();
            }
        })?;
        Ok(Report {
            backend: self.kind,
            kernel: plan.kernel(),
            device: device.device_name(),
            plan: plan.to_string(),
            why: String::new(),
            first: Duration::ZERO,
            timing: stats.run,
            workspace_bytes: plan.workspace_bytes(),
            peak_bytes: stats.device_bytes,
        })
    }
}
