use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, PlanOptions, Problem, Verdict,
};
use flashtile_cuda::{Context, CudaTiles, DeviceChoice, Error, open};
use std::sync::Arc;

/// The kernels on one NVIDIA GPU. A test can force a tile shape.
#[derive(Clone, Debug)]
pub(crate) struct CudaBackend {
    context: Context,
    name: String,
    tiles: Option<CudaTiles>,
}

impl CudaBackend {
    /// The first GPU of this machine.
    pub(crate) fn first() -> Result<Self, Error> {
        Ok(Self::new(open(&DeviceChoice::new())?))
    }

    /// On an open CUDA context.
    pub(crate) fn new(context: Context) -> Self {
        let name = Backend::device_name(&context);
        Self { context, name, tiles: None }
    }

    /// The same GPU, with a tile shape forced on its flash kernel.
    pub(crate) fn with_tiles(&self, tiles: CudaTiles) -> Self {
        Self { tiles: Some(tiles), name: format!("{}, {tiles:?}", self.name), ..self.clone() }
    }

    /// The GPU's context.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    fn options(&self, options: &PlanOptions) -> flashtile_cuda::PlanOptions {
        options.for_tiles().tiles(self.tiles)
    }
}

impl Backend for CudaBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn device_name(&self) -> String {
        self.name.clone()
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        self.context.verdict(problem, &self.options(options))
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Ok(Arc::new(self.context.plan(problem, &self.options(options))?))
    }
}
