use flashtile_core::{BackendKind, HostArgs, KernelKind, Problem, Reason, Verdict};
use std::error::Error;

/// Something that computes attention over host memory, to be held to the oracle.
pub trait Backend: Send + Sync {
    /// What failures call it: `wgpu llvmpipe (LLVM 15)`, say.
    fn name(&self) -> String;

    /// Whether it will run `problem` with `kernel`, and if not, why.
    fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict;

    /// Runs `problem` with `kernel`.
    ///
    /// # Errors
    /// The backend's own.
    fn run(
        &self,
        problem: &Problem,
        kernel: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The float64 oracle as a backend: what it rounds must pass its own rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

impl Backend for ReferenceBackend {
    fn name(&self) -> String {
        BackendKind::Reference.to_string()
    }

    fn verdict(&self, _: &Problem, kernel: KernelKind) -> Verdict {
        match kernel {
            KernelKind::Unfused => Verdict::Runs("float64, one score at a time".to_owned()),
            kernel => Verdict::Refused(vec![Reason::NoSuchKernel {
                backend: BackendKind::Reference,
                kernel,
            }]),
        }
    }

    fn run(
        &self,
        problem: &Problem,
        _: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(flashtile_reference::run(problem, args)?)
    }
}
