use crate::{Argument, Call, Problem, ProblemError, ResolvedCall};

/// The tensors and values of one call in host memory: little-endian bytes that the problem's views
/// describe.
///
/// ```
/// use flashtile_core::{Call, HostArgs};
///
/// let (q, k, v, mut out) = ([0u8; 64], [0u8; 64], [0u8; 64], [0u8; 64]);
/// let args = HostArgs::new(&q, &k, &v, &mut out).call(Call::new().scale(0.5));
/// assert!(args.mask.is_none());
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct HostArgs<'a> {
    /// Queries.
    pub q: &'a [u8],
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// The mask, where the problem has one.
    pub mask: Option<&'a [u8]>,
    /// Valid keys of each batch entry, where the problem has them.
    pub kv_lens: Option<&'a [i32]>,
    /// Receives the output; memory between its strides keeps its contents.
    pub out: &'a mut [u8],
    /// Receives the log-sum-exp (batch, heads, seq_q), where the problem asks for it.
    pub lse: Option<&'a mut [f32]>,
    /// The values that may change from call to call.
    pub call: Call,
}

/// The inputs among [`HostArgs`]: what is read, and the values of the call.
///
/// The oracle needs no more: `HostInputs::new(q, k, v)` with `mask`, `kv_lens` and `call` added.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HostInputs<'a> {
    /// Queries.
    pub q: &'a [u8],
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// The mask, where the problem has one.
    pub mask: Option<&'a [u8]>,
    /// Valid keys of each batch entry, where the problem has them.
    pub kv_lens: Option<&'a [i32]>,
    /// The values that may change from call to call.
    pub call: Call,
}

impl<'a> HostArgs<'a> {
    /// The four tensors that every call has.
    pub fn new(q: &'a [u8], k: &'a [u8], v: &'a [u8], out: &'a mut [u8]) -> Self {
        let call = Call::new();
        Self { q, k, v, mask: None, kv_lens: None, out, lse: None, call }
    }

    /// Adds an attention mask.
    #[must_use]
    pub fn mask(mut self, mask: &'a [u8]) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Adds the counts of valid keys.
    #[must_use]
    pub fn kv_lens(mut self, kv_lens: &'a [i32]) -> Self {
        self.kv_lens = Some(kv_lens);
        self
    }

    /// Adds the memory that receives the log-sum-exp.
    #[must_use]
    pub fn lse(mut self, lse: &'a mut [f32]) -> Self {
        self.lse = Some(lse);
        self
    }

    /// Sets the values that may change from call to call.
    #[must_use]
    pub fn call(mut self, call: Call) -> Self {
        self.call = call;
        self
    }

    /// The inputs alone.
    pub fn inputs(&self) -> HostInputs<'_> {
        let (mask, kv_lens) = (self.mask, self.kv_lens);
        HostInputs { q: self.q, k: self.k, v: self.v, mask, kv_lens, call: self.call }
    }
}

impl<'a> HostInputs<'a> {
    /// The three tensors that every call has.
    pub fn new(q: &'a [u8], k: &'a [u8], v: &'a [u8]) -> Self {
        Self { q, k, v, mask: None, kv_lens: None, call: Call::new() }
    }

    /// Adds an attention mask.
    #[must_use]
    pub fn mask(mut self, mask: &'a [u8]) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Adds the counts of valid keys.
    #[must_use]
    pub fn kv_lens(mut self, kv_lens: &'a [i32]) -> Self {
        self.kv_lens = Some(kv_lens);
        self
    }

    /// Sets the values that may change from call to call.
    #[must_use]
    pub fn call(mut self, call: Call) -> Self {
        self.call = call;
        self
    }
}

/// Checks `args` against `problem`: what is present, how long it is, and the values in `kv_lens`.
///
/// # Errors
/// [`ProblemError::Missing`], [`Unexpected`](ProblemError::Unexpected),
/// [`TooShort`](ProblemError::TooShort), [`KvLensCount`](ProblemError::KvLensCount),
/// [`KvLen`](ProblemError::KvLen) and those of [`Call::resolve`].
pub fn check_host_args(
    problem: &Problem,
    args: &HostArgs<'_>,
) -> Result<ResolvedCall, ProblemError> {
    let call = check_host_inputs(problem, &args.inputs())?;
    check_host_outputs(problem, args)?;
    Ok(call)
}

/// As [`check_host_args`], of the outputs alone.
///
/// # Errors
/// Those of [`check_host_args`].
pub fn check_host_outputs(problem: &Problem, args: &HostArgs<'_>) -> Result<(), ProblemError> {
    long_enough(Argument::Out, problem.out().byte_span(), args.out.len())?;
    present(Argument::Lse, problem.lse(), args.lse.is_some())?;
    if let Some(lse) = &args.lse {
        let bytes = usize::try_from(problem.lse_bytes()).ok();
        long_enough(Argument::Lse, bytes, lse.len().saturating_mul(4))?;
    }
    Ok(())
}

/// As [`check_host_args`], of the inputs alone.
///
/// # Errors
/// Those of [`check_host_args`].
pub fn check_host_inputs(
    problem: &Problem,
    inputs: &HostInputs<'_>,
) -> Result<ResolvedCall, ProblemError> {
    let call = inputs.call.resolve(problem)?;
    long_enough(Argument::Q, problem.q().byte_span(), inputs.q.len())?;
    long_enough(Argument::K, problem.k().byte_span(), inputs.k.len())?;
    long_enough(Argument::V, problem.v().byte_span(), inputs.v.len())?;
    present(Argument::AttnMask, problem.mask().is_some(), inputs.mask.is_some())?;
    present(Argument::KvLens, problem.kv_lens(), inputs.kv_lens.is_some())?;
    if let (Some(mask), Some(bytes)) = (problem.mask(), inputs.mask) {
        long_enough(Argument::AttnMask, mask.byte_span(), bytes.len())?;
    }
    if let Some(lens) = inputs.kv_lens {
        check_kv_lens(lens, problem.batch(), call.seq_kv)?;
    }
    Ok(call)
}

fn long_enough(
    argument: Argument,
    expected: Option<usize>,
    given: usize,
) -> Result<(), ProblemError> {
    match expected {
        None => Err(ProblemError::Overflow { argument }),
        Some(expected) if given < expected => {
            Err(ProblemError::TooShort { argument, expected, given })
        }
        Some(_) => Ok(()),
    }
}

fn present(argument: Argument, wanted: bool, given: bool) -> Result<(), ProblemError> {
    match (wanted, given) {
        (true, false) => Err(ProblemError::Missing { argument }),
        (false, true) => Err(ProblemError::Unexpected { argument }),
        _ => Ok(()),
    }
}

/// Checks that a call has the optional tensors that `problem` has, and no others.
///
/// # Errors
/// [`ProblemError::Missing`], [`Unexpected`](ProblemError::Unexpected).
pub fn check_presence(
    problem: &Problem,
    mask: bool,
    kv_lens: bool,
    lse: bool,
) -> Result<(), ProblemError> {
    present(Argument::AttnMask, problem.mask().is_some(), mask)?;
    present(Argument::KvLens, problem.kv_lens(), kv_lens)?;
    present(Argument::Lse, problem.lse(), lse)
}

fn check_kv_lens(lens: &[i32], batch: usize, seq_kv: usize) -> Result<(), ProblemError> {
    if lens.len() != batch {
        return Err(ProblemError::KvLensCount { expected: batch, given: lens.len() });
    }
    for (batch, &len) in lens.iter().enumerate() {
        if len < 0 || len as usize > seq_kv {
            return Err(ProblemError::KvLen { batch, seq_kv, given: len.into() });
        }
    }
    Ok(())
}
