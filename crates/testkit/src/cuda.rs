use crate::Backend;
use flashtile_core::{HostArgs, KernelKind, Problem, Verdict};
use flashtile_cuda::{Context, CudaTiles, DeviceChoice, Error, PlanOptions, open, schedule};

/// Kernels on one NVIDIA card.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    context: Context,
    name: String,
    tiles: Option<CudaTiles>,
}

impl CudaBackend {
    /// Kernels in a CUDA context that is open already.
    pub fn new(context: Context) -> Self {
        let name = format!("cuda on {}", context.name());
        Self { context, name, tiles: None }
    }

    /// The first card of this machine.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::OldDriver`], [`Error::NoDevice`].
    pub fn first() -> Result<Self, Error> {
        Ok(Self::new(open(&DeviceChoice::default())?))
    }

    /// The same card, with a tile shape forced on its flash kernel.
    pub fn with_tiles(&self, tiles: CudaTiles) -> Self {
        Self { tiles: Some(tiles), name: format!("{}, {tiles:?}", self.name), ..self.clone() }
    }

    /// The card's context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    fn options(&self, kernel: KernelKind) -> PlanOptions {
        let mut options = PlanOptions::new().kernel(kernel);
        options.tiles = self.tiles.filter(|_| kernel == KernelKind::Flash);
        options
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        match schedule(problem, kernel, &self.options(kernel), self.context.machine()) {
            Ok(_) => self.context.verdict(problem, kernel),
            Err(reasons) => Verdict::Refused(reasons),
        }
    }

    fn run(
        &self,
        problem: &Problem,
        kernel: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let plan = self.context.plan(problem, &self.options(kernel))?;
        self.context.run_host(&plan, args)?;
        Ok(())
    }
}
