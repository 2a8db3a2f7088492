//! Implements [`Backend`], which runs problems on host memory on any device.

use crate::{Context, Error, HostRun, Plan};
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, BackendRun, HostArgs, KernelKind, PlanOptions,
    Problem, Timing, Verdict,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

impl Backend for Context {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    /// The GPU's name and compute capability.
    fn device_name(&self) -> String {
        format!("{} (CUDA {})", self.name(), self.machine().capability())
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        Context::verdict(self, problem, &options.for_tiles())
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Ok(Arc::new(Context::plan(self, problem, &options.for_tiles())?))
    }

    fn release_kernels(&self) {
        Context::release_kernels(self);
    }
}

impl BackendPlan for Plan {
    fn problem(&self) -> &Problem {
        Plan::problem(self)
    }

    fn kernel(&self) -> KernelKind {
        Plan::kernel(self)
    }

    fn dispatch_count(&self) -> usize {
        self.dispatches().len()
    }

    fn workspace_bytes(&self) -> u64 {
        Plan::workspace_bytes(self)
    }

    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError> {
        Ok(Box::new(SharedRun(Mutex::new(HostRun::upload(self, args)?))))
    }
}

/// A [`HostRun`] that several threads can share. A run needs it exclusively, because it writes the
/// output.
struct SharedRun(Mutex<HostRun>);

impl SharedRun {
    fn lock(&self) -> MutexGuard<'_, HostRun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendRun for SharedRun {
    fn run(&self) -> Result<Timing, BackendError> {
        Ok(self.lock().run()?)
    }

    fn run_times(&self, times: usize) -> Result<Vec<Timing>, BackendError> {
        Ok(self.lock().run_times(times)?)
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        Ok(self.lock().download(args)?)
    }

    fn device_bytes(&self) -> u64 {
        self.lock().device_bytes()
    }
}

impl From<Error> for BackendError {
    fn from(error: Error) -> Self {
        let lost = matches!(error, Error::DeviceLost(_));
        BackendError::new(BackendKind::Cuda, lost, error)
    }
}
