use flashtile_core::{Argument, Explanation, ProblemError};

/// Why attention could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The problem or its arguments break a rule.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// Nothing of what was asked for can run; each entry holds all its reasons.
    #[error("refused: {}", one_line(.0))]
    Refused(Explanation),
    /// A slice holds another number of elements than its shape says.
    #[error("{argument} of shape {shape:?} has {expected} elements, but its slice holds {given}")]
    Elements {
        /// Which tensor.
        argument: Argument,
        /// The shape given with it.
        shape: Vec<usize>,
        /// Elements that the shape calls for.
        expected: usize,
        /// Elements in the slice.
        given: usize,
    },
    /// q has more heads than k, without `enable_gqa`.
    #[error(
        "q has {heads} heads and k has {kv_heads}: set enable_gqa to let groups of query heads share a key head"
    )]
    GqaDisabled {
        /// Heads of q.
        heads: usize,
        /// Heads of k.
        kv_heads: usize,
    },
    /// Host memory for a result cannot be had.
    #[error("{argument} needs {bytes} bytes of host memory, which cannot be had")]
    HostMemory {
        /// Which tensor.
        argument: Argument,
        /// Bytes it takes.
        bytes: usize,
    },
    /// The wgpu backend failed while it ran.
    #[cfg(feature = "wgpu")]
    #[error(transparent)]
    Wgpu(#[from] flashtile_wgpu::Error),
    /// The CUDA backend failed while it ran.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] flashtile_cuda::Error),
}

/// An explanation without line breaks.
fn one_line(explanation: &Explanation) -> String {
    explanation.to_string().replace('\n', "; ").replace(": refused: ", ": ")
}
