use crate::{Problem, ProblemError};

/// The values that may change from call to call without planning again.
///
/// Lengths are what a decode loop changes: it plans once for the capacity of its key-value cache
/// and passes the number of keys that are filled so far.
///
/// ```
/// let call = flashtile_core::Call::new().seq_kv(17).scale(0.125);
/// assert_eq!(call.seq_kv, Some(17));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Call {
    /// Multiplies q.k; any finite number. Default: 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Key of the dropout generator. The same seed and offset drop the same weights on every
    /// backend.
    pub seed: u64,
    /// Counter of the dropout generator: a training step, say.
    pub offset: u32,
    /// Queries in this call, at most the planned capacity (the default).
    pub seq_q: Option<usize>,
    /// Keys in this call, at most the planned capacity (the default).
    pub seq_kv: Option<usize>,
}

impl Call {
    /// All defaults: scale 1/sqrt(head_dim), seed 0, offset 0, lengths at capacity.
    pub const fn new() -> Self {
        Self { scale: None, seed: 0, offset: 0, seq_q: None, seq_kv: None }
    }

    /// Sets the factor of q.k; `None` for 1/sqrt(head_dim).
    #[must_use]
    pub fn scale(mut self, scale: impl Into<Option<f32>>) -> Self {
        self.scale = scale.into();
        self
    }

    /// Sets the key of the dropout generator.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the counter of the dropout generator.
    #[must_use]
    pub fn offset(mut self, offset: u32) -> Self {
        self.offset = offset;
        self
    }

    /// Sets the number of queries; `None` for the planned capacity.
    #[must_use]
    pub fn seq_q(mut self, queries: impl Into<Option<usize>>) -> Self {
        self.seq_q = queries.into();
        self
    }

    /// Sets the number of keys; `None` for the planned capacity.
    #[must_use]
    pub fn seq_kv(mut self, keys: impl Into<Option<usize>>) -> Self {
        self.seq_kv = keys.into();
        self
    }
}

/// A [`Call`] with its defaults filled in, checked against its problem.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResolvedCall {
    /// Multiplies q.k.
    pub scale: f32,
    /// Key of the dropout generator.
    pub seed: u64,
    /// Counter of the dropout generator.
    pub offset: u32,
    /// Queries in this call.
    pub seq_q: usize,
    /// Keys in this call.
    pub seq_kv: usize,
}

impl Call {
    /// Fills in the defaults of `problem`.
    ///
    /// # Errors
    /// [`ProblemError::Scale`] for a scale that is not finite, [`ProblemError::BeyondCapacity`] for
    /// lengths over those planned for.
    pub fn resolve(&self, problem: &Problem) -> Result<ResolvedCall, ProblemError> {
        let scale = self.scale.unwrap_or_else(|| (1.0 / (problem.head_dim() as f64).sqrt()) as f32);
        if !scale.is_finite() {
            return Err(ProblemError::Scale { given: scale });
        }
        let within = |axis, given: Option<usize>, capacity| match given {
            Some(given) if given > capacity => {
                Err(ProblemError::BeyondCapacity { axis, capacity, given })
            }
            given => Ok(given.unwrap_or(capacity)),
        };
        Ok(ResolvedCall {
            scale,
            seed: self.seed,
            offset: self.offset,
            seq_q: within("seq_q", self.seq_q, problem.seq_q())?,
            seq_kv: within("seq_kv", self.seq_kv, problem.seq_kv())?,
        })
    }
}
