//! The context as a [`Backend`]: what runs problems on host memory, on any device.

use crate::{Context, Error, HostRun, Plan};
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, BackendRun, HostArgs, KernelKind, PlanOptions,
    Problem, Timing, Verdict,
};
use std::sync::Arc;

impl Backend for Context {
    fn kind(&self) -> BackendKind {
        BackendKind::Wgpu
    }

    /// The adapter's name and graphics API.
    fn device_name(&self) -> String {
        let info = self.adapter_info();
        format!("{} ({:?})", info.name, info.backend)
    }

    fn is_software(&self) -> bool {
        Context::is_software(self)
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        Context::verdict(self, problem, &options.for_tiles())
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Ok(Arc::new(self.plan_blocking(problem, &options.for_tiles())?))
    }

    fn release_kernels(&self) {
        self.release_pipelines();
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
        self.inner.schedule.steps.len()
    }

    fn workspace_bytes(&self) -> u64 {
        Plan::workspace_bytes(self)
    }

    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError> {
        Ok(Box::new(HostRun::upload_blocking(self, args)?))
    }
}

impl BackendRun for HostRun {
    fn run(&self) -> Result<Timing, BackendError> {
        Ok(self.run_blocking()?)
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        Ok(self.download_blocking(args)?)
    }

    fn device_bytes(&self) -> u64 {
        HostRun::device_bytes(self)
    }
}

impl From<Error> for BackendError {
    fn from(error: Error) -> Self {
        let lost = matches!(error, Error::DeviceLost(_));
        BackendError::new(BackendKind::Wgpu, lost, error)
    }
}
