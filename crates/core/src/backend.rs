//! What a backend is: the one interface between backend crates and everything that runs problems on
//! host memory (the facade, the testkit, `flashtile check` and `flashtile bench`).

use crate::{
    BackendKind, HostArgs, HostStats, KernelKind, PlanOptions, Problem, ProblemError, Timing,
    Verdict,
};
use std::{error::Error, fmt, sync::Arc};

/// A device (or the CPU) that plans and runs problems. Each backend crate implements it once.
///
/// All methods block until they are done.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Which backend it is.
    fn kind(&self) -> BackendKind;

    /// The device's name, as reports show it: `llvmpipe (LLVM 15.0.6, 256 bits) (Vulkan)`.
    fn device_name(&self) -> String;

    /// Whether it is a GPU in software. `auto` then prefers the CPU backend.
    fn is_software(&self) -> bool {
        false
    }

    /// Measures the f32 operations per second that the device can do at most, where a
    /// multiplication and an addition are two. `None` where there is no such measurement.
    fn measure_peak_flops(&self) -> Option<f64> {
        None
    }

    /// Whether it runs `problem` with `options`, and if not, why. Compiles nothing.
    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict;

    /// Plans `problem`, compiling the kernels that are not compiled yet.
    ///
    /// # Errors
    /// The backend's own: a refusal with its reasons, a failed compilation, a lost device.
    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError>;

    /// Drops the kernels compiled so far: their memory is freed with the last plan that uses them,
    /// and the next plan compiles again. Backends that compile nothing do nothing.
    fn release_kernels(&self) {}

    /// Plans and runs one call on host memory.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and of [`BackendPlan::run`].
    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        self.plan(problem, options)?.run(args)
    }
}

/// How one backend runs one problem. Its `Display` shows kernel, tiles, dispatches and reasons.
pub trait BackendPlan: fmt::Debug + fmt::Display + Send + Sync {
    /// What it computes.
    fn problem(&self) -> &Problem;

    /// The kernel that was chosen.
    fn kernel(&self) -> KernelKind;

    /// How many dispatches (or launches) a call at capacity takes.
    fn dispatch_count(&self) -> usize;

    /// Bytes of memory that it keeps besides the tensors of a call.
    fn workspace_bytes(&self) -> u64;

    /// Copies the tensors of one call to the device, to be run any number of times. The output's
    /// memory is copied too, so that what lies between its strides keeps its contents.
    ///
    /// # Errors
    /// Arguments that do not fit the problem; failures of the device.
    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError>;

    /// Runs one call: upload, run, download.
    ///
    /// # Errors
    /// Those of [`upload`](Self::upload) and of [`BackendRun`].
    fn run(&self, mut args: HostArgs<'_>) -> Result<HostStats, BackendError> {
        let uploaded = self.upload(&args)?;
        let run = uploaded.run()?;
        uploaded.download(&mut args)?;
        Ok(HostStats { run, device_bytes: uploaded.device_bytes() })
    }
}

/// A call whose tensors are on the device.
pub trait BackendRun: Send + Sync {
    /// Runs once, and waits.
    ///
    /// # Errors
    /// Failures of the device.
    fn run(&self) -> Result<Timing, BackendError>;

    /// Runs `times` times, and waits. Backends override it where runs can be queued back to back.
    ///
    /// # Errors
    /// Failures of the device.
    fn run_times(&self, times: usize) -> Result<Vec<Timing>, BackendError> {
        (0..times).map(|_| self.run()).collect()
    }

    /// Copies the results to `args`.
    ///
    /// # Errors
    /// Slices that are too short; failures of the device.
    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError>;

    /// Bytes of device memory that the call uses: tensors and workspace.
    fn device_bytes(&self) -> u64;
}

/// A backend's own error, behind the [`Backend`] trait.
#[derive(Debug)]
pub struct BackendError {
    backend: BackendKind,
    device_lost: bool,
    inner: Box<dyn Error + Send + Sync>,
}

impl BackendError {
    /// Wraps an error of `backend`. `device_lost`: no later call on the device can succeed.
    pub fn new(
        backend: BackendKind,
        device_lost: bool,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { backend, device_lost, inner: error.into() }
    }

    /// Which backend failed.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// Whether the device is lost: open another one.
    pub fn is_device_lost(&self) -> bool {
        self.device_lost
    }

    /// The backend's own error, if it is an `E`: `flashtile_wgpu::Error`, say.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.inner.downcast_ref()
    }

    /// An error about the arguments, of `backend`.
    pub fn of_problem(backend: BackendKind, error: ProblemError) -> Self {
        Self::new(backend, false, error)
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}
