use crate::Backend;
use flashtile_core::{HostArgs, KernelKind, Problem, Verdict};
use flashtile_wgpu::{AdapterChoice, Context, Error, PlanOptions, Tiles, open_blocking};

/// Kernels on one wgpu device.
#[derive(Clone, Debug)]
pub struct WgpuBackend {
    context: Context,
    name: String,
    tiles: Option<Tiles>,
}

impl WgpuBackend {
    /// Kernels on a device that is open already.
    pub fn new(context: Context, what: &str) -> Self {
        let info = context.adapter_info();
        let name = format!("wgpu {what} on {} ({})", info.name, info.backend);
        Self { context, name, tiles: None }
    }

    /// The best adapter of this machine, with all that it offers.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where there is none.
    pub fn full() -> Result<Self, Error> {
        Ok(Self::new(open_blocking(&AdapterChoice::default())?, "full"))
    }

    /// The same with only WebGPU's default limits and no features: what a browser gives.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where there is none.
    pub fn baseline() -> Result<Self, Error> {
        let choice = AdapterChoice { baseline: true, ..AdapterChoice::default() };
        Ok(Self::new(open_blocking(&choice)?, "baseline"))
    }

    /// The same device, with a tile shape forced on its flash kernel.
    pub fn with_tiles(&self, tiles: Tiles) -> Self {
        Self { tiles: Some(tiles), name: format!("{}, {tiles:?}", self.name), ..self.clone() }
    }

    /// The device's context.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        self.context.verdict(problem, kernel)
    }

    fn run(
        &self,
        problem: &Problem,
        kernel: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut options = PlanOptions::new().kernel(kernel);
        options.tiles = self.tiles;
        let plan = self.context.plan_blocking(problem, &options)?;
        self.context.run_host_blocking(&plan, args)?;
        Ok(())
    }
}
