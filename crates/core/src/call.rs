use crate::{Problem, ProblemError};

/// What may change from call to call without planning again.
///
/// ```
/// let call = flashtile_core::Call { seq_kv: Some(17), ..Default::default() };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Call {
    /// Multiplies q.k; any finite number. Default: 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Key of the dropout generator. The same seed and offset give the same mask on every backend.
    pub seed: u64,
    /// Counter of the dropout generator: a training step, say.
    pub offset: u32,
    /// Queries in this call, at most the planned capacity (the default).
    pub seq_q: Option<usize>,
    /// Keys in this call, at most the planned capacity (the default): a decode loop's cache as far as it is filled.
    pub seq_kv: Option<usize>,
}

/// A [`Call`] with its defaults filled in, checked against its problem.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// [`ProblemError::Scale`] for a scale that is not finite, [`ProblemError::BeyondCapacity`] for lengths over those planned for.
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
