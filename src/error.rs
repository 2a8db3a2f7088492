use flashtile_core::{Argument, BackendError, Explanation, ProblemError};

/// Why attention could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The problem or its arguments break a rule.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// No backend and kernel within the choice can run; each entry holds all its reasons.
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
        "q has {heads} heads and k has {kv_heads}: set enable_gqa to let groups of query heads \
         share a key head"
    )]
    GqaDisabled {
        /// Heads of q.
        heads: usize,
        /// Heads of k.
        kv_heads: usize,
    },
    /// Host memory for a result cannot be allocated.
    #[error("{argument} needs {bytes} bytes of host memory, which cannot be allocated")]
    HostMemory {
        /// Which tensor.
        argument: Argument,
        /// Bytes it takes.
        bytes: usize,
    },
    /// A backend failed while it planned or ran. Its own error is behind
    /// [`BackendError::downcast_ref`].
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// An explanation without line breaks.
fn one_line(explanation: &Explanation) -> String {
    explanation.to_string().replace('\n', "; ").replace(": refused: ", ": ")
}
