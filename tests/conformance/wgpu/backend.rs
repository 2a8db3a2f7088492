use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, MatrixUnits, PlanOptions, Problem, Verdict,
};
use flashtile_wgpu::{Context, DeviceChoice, Error, Tiles, open_baseline_blocking, open_blocking};
use std::sync::Arc;

/// The kernels on one wgpu device. A test can force a tile shape.
#[derive(Clone, Debug)]
pub(crate) struct WgpuBackend {
    context: Context,
    name: String,
    tiles: Option<Tiles>,
    matrix_units: Option<MatrixUnits>,
    reduced_precision: bool,
}

impl WgpuBackend {
    /// On an open device. `what` distinguishes it from others on the same adapter.
    pub(crate) fn new(context: Context, what: &str) -> Self {
        let name = format!("{what} on {}", Backend::device_name(&context));
        let (tiles, matrix_units, reduced_precision) = (None, None, false);
        Self { context, name, tiles, matrix_units, reduced_precision }
    }

    /// The best adapter of this machine, with everything that it offers.
    pub(crate) fn full() -> Result<Self, Error> {
        Ok(Self::new(open_blocking(&DeviceChoice::new())?, "full"))
    }

    /// The same adapter with WebGPU's default limits and no features, as a browser grants it.
    pub(crate) fn baseline() -> Result<Self, Error> {
        Ok(Self::new(open_baseline_blocking(&DeviceChoice::new())?, "baseline"))
    }

    /// The same device, with a tile shape forced on its flash kernel.
    pub(crate) fn with_tiles(&self, tiles: Tiles) -> Self {
        Self { tiles: Some(tiles), name: format!("{}, {tiles:?}", self.name), ..self.clone() }
    }

    /// The same device, whose flash kernel may not, or must, use matrix units.
    pub(crate) fn with_matrix_units(&self, units: MatrixUnits) -> Self {
        let name = format!("{}, matrix units {units}", self.name);
        Self { matrix_units: Some(units), name, ..self.clone() }
    }

    /// The same device, whose kernels may round inputs for matrix units.
    pub(crate) fn with_reduced_precision(&self) -> Self {
        let name = format!("{}, reduced precision", self.name);
        Self { reduced_precision: true, name, ..self.clone() }
    }

    /// The best adapter again, opened as another device, with the same choices.
    pub(crate) fn on_another_device(&self) -> Result<Self, Error> {
        let name = format!("{}, another device", self.name);
        Ok(Self { context: Self::full()?.context, name, ..self.clone() })
    }

    /// The same device, whose kernels run with wgpu's runtime checks. It compiles its own.
    pub(crate) fn with_runtime_checks(&self) -> Self {
        let context = self.context.with_runtime_checks();
        Self { context, name: format!("{}, with runtime checks", self.name), ..self.clone() }
    }

    /// The device's context.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    fn options(&self, options: &PlanOptions) -> flashtile_wgpu::PlanOptions {
        let units = self.matrix_units.unwrap_or(options.matrix_units);
        let options = options.for_tiles().tiles(self.tiles).matrix_units(units);
        options.reduced_precision(self.reduced_precision)
    }
}

impl Backend for WgpuBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Wgpu
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
        Ok(Arc::new(self.context.plan_blocking(problem, &self.options(options))?))
    }
}
