use flashtile_core::{BackendError, BackendKind, KernelKind, ProblemError, Reason};

/// Why attention could not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments do not fit the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The kernel cannot run the problem.
    #[error("the {kernel} kernel cannot run this: {}", join(.reasons))]
    Refused {
        /// Which kernel.
        kernel: KernelKind,
        /// Why not.
        reasons: Vec<Reason>,
    },
    /// Memory for the workspace cannot be allocated.
    #[error("the workspace needs {bytes} bytes, which cannot be allocated")]
    HostMemory {
        /// Bytes it takes.
        bytes: usize,
    },
    /// The threads cannot be started.
    #[error("{threads} threads cannot be started: {because}")]
    Threads {
        /// How many.
        threads: usize,
        /// Why not.
        because: String,
    },
}

fn join(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

impl From<Error> for BackendError {
    fn from(error: Error) -> Self {
        match error {
            Error::Problem(error) => BackendError::of_problem(BackendKind::Cpu, error),
            error => BackendError::new(BackendKind::Cpu, false, error),
        }
    }
}
