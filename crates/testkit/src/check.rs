use crate::case::Case;
use crate::inputs::{SLACK, Tensors};
use flashtile_core::{
    Backend, BackendError, BackendKind, DType, KernelKind, PlanOptions, ProblemError, Reason,
    TensorView, Verdict,
    bound::{self, RowTerms},
};
use flashtile_reference::{Answer, attention};
use std::fmt;

/// The number with the largest share of its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worst {
    /// |got - expected| / bound: at most 1 where the rule holds.
    pub share: f64,
    /// Batch entry, head, query and column (0 for lse).
    pub at: [usize; 4],
    /// The number that the backend wrote.
    pub got: f64,
    /// The number that the oracle computed.
    pub expected: f64,
    /// The largest difference allowed.
    pub bound: f64,
}

impl Worst {
    fn take(&mut self, other: Worst) {
        if other.share > self.share {
            *self = other;
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share, at: [b, h, i, d], got, expected, bound } = self;
        write!(
            f,
            "{share:.3} of the bound at (b {b}, h {h}, i {i}, d {d}): got {got:e}, \
             expected {expected:e} +- {bound:.2e}"
        )
    }
}

/// The largest errors of a run, as shares of the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The worst number of the output.
    pub out: Worst,
    /// The worst number of lse, if the problem asks for it.
    pub lse: Option<Worst>,
}

/// A case that a backend did not pass, with everything needed to reproduce it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{backend}, {kernel}: {wrong}\n    replay with FLASHTILE_CASE=\"{case}\"")]
pub struct Failure {
    /// The name of the backend.
    pub backend: String,
    /// Which kernel.
    pub kernel: KernelKind,
    /// The case, as it was or minimised.
    pub case: Box<Case>,
    /// What went wrong.
    pub wrong: Wrong,
}

impl Failure {
    /// What went wrong with `case` on a kernel of `backend`.
    pub fn new(backend: &dyn Backend, kernel: KernelKind, case: &Case, wrong: Wrong) -> Self {
        Self { backend: name(backend), kernel, case: Box::new(case.clone()), wrong }
    }
}

/// What can go wrong with a case.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// The case does not describe a valid problem.
    #[error("the case is not valid: {0}")]
    Case(#[from] ProblemError),
    /// The backend refuses such problems.
    #[error("the backend refuses it: {}", join(.0))]
    Refused(Vec<Reason>),
    /// The backend reports an error.
    #[error("the run failed: {0}")]
    Run(String),
    /// An output is farther from the oracle than the bound allows.
    #[error("out is at {0}")]
    Out(Worst),
    /// An lse is farther from the oracle than the bound allows.
    #[error("lse is at {0}")]
    Lse(Worst),
    /// An output was not written.
    #[error("out is not written at (b {}, h {}, i {}, d {})", at[0], at[1], at[2], at[3])]
    OutNotWritten {
        /// Batch entry, head, query and column.
        at: [usize; 4],
    },
    /// An lse was not written.
    #[error("lse is not written at (b {}, h {}, i {})", at[0], at[1], at[2])]
    LseNotWritten {
        /// Batch entry, head and query.
        at: [usize; 3],
    },
    /// Memory outside the result was written.
    #[error(
        "byte {byte} of {buffer} was written, but lies outside the result (between strides, beyond \
         the queries of the call, or after the end)"
    )]
    Touched {
        /// `out` or `lse`.
        buffer: &'static str,
        /// Which byte.
        byte: usize,
    },
    /// Two runs on the same inputs gave different bits.
    #[error(
        "a second run gave different bits at (b {}, h {}, i {}, d {})",
        at[0], at[1], at[2], at[3]
    )]
    NotRepeated {
        /// Batch entry, head, query and column.
        at: [usize; 4],
    },
    /// A batch entry gave different bits alone than in the batch.
    #[error(
        "batch entry {} gave different bits alone at (h {}, i {}, d {})",
        at[0], at[1], at[2], at[3]
    )]
    Neighbours {
        /// Batch entry, head, query and column.
        at: [usize; 4],
    },
    /// Two settings of a backend that have to agree gave different bits.
    #[error(
        "{other} gave different bits at (b {}, h {}, i {}, d {})", at[0], at[1], at[2], at[3]
    )]
    Disagree {
        /// The name of the other setting.
        other: String,
        /// Batch entry, head, query and column.
        at: [usize; 4],
    },
    /// Guarantee 4: the length of a call changed bits of rows that see the same keys.
    #[error(
        "a call with fewer unseen keys gave different bits at (b {}, h {}, i {}, d {})",
        at[0], at[1], at[2], at[3]
    )]
    Lengths {
        /// Batch entry, head, query and column.
        at: [usize; 4],
    },
}

/// The contents of out and lse before a run: a NaN in every storage type, but not the NaN that
/// arithmetic produces.
const BEFORE: u16 = 0x7FE5;
const LSE_BEFORE: f32 = f32::from_bits(0x7FE5_7FE5);

/// The results of a run.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    pub(crate) out: Vec<u8>,
    pub(crate) lse: Option<Vec<f32>>,
}

/// Runs a backend on poisoned results and checks that it writes the result and nothing else.
pub(crate) fn execute(
    backend: &dyn Backend,
    kernel: KernelKind,
    tensors: &Tensors,
) -> Result<Results, Wrong> {
    let problem = &tensors.problem;
    let options = PlanOptions::new().kernel(kernel);
    if let Verdict::Refused(reasons) = backend.verdict(problem, &options) {
        return Err(Wrong::Refused(reasons));
    }
    let elements = problem.out().span().unwrap_or(0) + SLACK;
    let pattern = BEFORE.to_le_bytes();
    let mut out: Vec<u8> =
        (0..elements * problem.dtype().size()).map(|byte| pattern[byte % 2]).collect();
    let rows: usize = problem.lse_shape().iter().product();
    let mut lse = problem.lse().then(|| vec![LSE_BEFORE; rows + SLACK]);
    backend
        .run(problem, &options, tensors.args(&mut out, lse.as_deref_mut()))
        .map_err(|e| Wrong::Run(chain(&e)))?;

    let call = tensors.call.resolve(problem)?;
    let size = problem.dtype().size();
    let mut belongs = vec![false; out.len()];
    for ([b, h, i, d], at) in elements_of(problem.out(), call.seq_q) {
        let bytes = at * size..(at + 1) * size;
        if out[bytes.clone()].iter().zip(pattern.iter().cycle()).all(|(a, b)| a == b) {
            return Err(Wrong::OutNotWritten { at: [b, h, i, d] });
        }
        belongs[bytes].fill(true);
    }
    if let Some(byte) =
        (0..out.len()).find(|&byte| !belongs[byte] && out[byte] != pattern[byte % 2])
    {
        return Err(Wrong::Touched { buffer: "out", byte });
    }
    if let Some(lse) = &lse {
        let [_, heads, seq_q] = problem.lse_shape();
        for (row, lse) in lse.iter().enumerate() {
            let written = lse.to_bits() != LSE_BEFORE.to_bits();
            match row < rows && row % seq_q < call.seq_q {
                true if !written => {
                    return Err(Wrong::LseNotWritten {
                        at: [row / seq_q / heads, row / seq_q % heads, row % seq_q],
                    });
                }
                false if written => return Err(Wrong::Touched { buffer: "lse", byte: 4 * row }),
                _ => {}
            }
        }
    }
    Ok(Results { out, lse })
}

/// The error of a backend that only runs whole calls: emulators, other processes, test doubles.
pub fn cannot_plan(backend: BackendKind) -> BackendError {
    BackendError::new(backend, false, "this backend runs whole calls and makes no plans")
}

/// The name of a backend in failures: `wgpu full on llvmpipe (Vulkan)`.
pub(crate) fn name(backend: &dyn Backend) -> String {
    format!("{} {}", backend.kind(), backend.device_name())
}

fn join(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Each element of the first `seq` positions, with its index in memory.
pub(crate) fn elements_of(
    view: &TensorView,
    seq: usize,
) -> impl Iterator<Item = ([usize; 4], usize)> + '_ {
    let [batch, heads, _, dim] = view.shape;
    let rows = (0..batch)
        .flat_map(move |b| (0..heads).flat_map(move |h| (0..seq).map(move |i| [b, h, i])));
    rows.flat_map(move |[b, h, i]| (0..dim).map(move |d| ([b, h, i, d], view.index(b, h, i, d))))
}

/// A case with its inputs and the oracle's answer, for any number of backends.
#[derive(Debug)]
pub struct Prepared {
    case: Case,
    tensors: Tensors,
    answer: Answer,
    /// Whether the answer is that of inputs rounded to f16.
    rounded: bool,
}

impl Prepared {
    /// Builds the inputs and runs the oracle.
    ///
    /// # Errors
    /// If the case breaks a rule of [`Problem`](flashtile_core::Problem) or its call.
    pub fn new(case: &Case) -> Result<Self, ProblemError> {
        let tensors = case.build()?;
        let answer = attention(&tensors.problem, &tensors.inputs())?;
        Ok(Self { case: case.clone(), tensors, answer, rounded: false })
    }

    /// As [`new`](Self::new), for kernels that round q, k and v to f16
    /// ([`PlanOptions::reduced_precision`]): the oracle sees them as rounded, and the bound is that
    /// of f16 or of the storage type, whichever is larger.
    ///
    /// # Errors
    /// As for `new`.
    pub fn rounded_to_f16(case: &Case) -> Result<Self, ProblemError> {
        let tensors = case.build()?;
        let answer = attention(&tensors.problem, &tensors.rounded_to_f16().inputs())?;
        Ok(Self { case: case.clone(), tensors, answer, rounded: true })
    }

    /// The case.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// The problem and its inputs.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The oracle's answer.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Runs the case and measures how far the results are from the oracle, within the bound or not.
    ///
    /// # Errors
    /// A [`Failure`] if there are no results to measure, or if memory outside them was written.
    pub fn measure(&self, backend: &dyn Backend, kernel: KernelKind) -> Result<Outcome, Failure> {
        let results = execute(backend, kernel, &self.tensors)
            .map_err(|wrong| self.failure(backend, kernel, wrong))?;
        Ok(self.compare(&results))
    }

    /// As [`measure`](Self::measure), and requires the results to be within the bound.
    ///
    /// # Errors
    /// A [`Failure`] that says what is wrong and how to reproduce it.
    pub fn check(&self, backend: &dyn Backend, kernel: KernelKind) -> Result<Outcome, Failure> {
        let outcome = self.measure(backend, kernel)?;
        if outcome.out.share > 1.0 {
            return Err(self.failure(backend, kernel, Wrong::Out(outcome.out)));
        }
        match outcome.lse {
            Some(lse) if lse.share > 1.0 => Err(self.failure(backend, kernel, Wrong::Lse(lse))),
            _ => Ok(outcome),
        }
    }

    fn failure(&self, backend: &dyn Backend, kernel: KernelKind, wrong: Wrong) -> Failure {
        Failure::new(backend, kernel, &self.case, wrong)
    }

    fn compare(&self, results: &Results) -> Outcome {
        let problem = &self.tensors.problem;
        let (dtype, dim) = (problem.dtype(), problem.head_dim());
        let seq_q = self.case.call_q.unwrap_or(problem.seq_q());
        let heads = problem.heads();
        let bound = |row: &RowTerms| {
            let of_f16 = if self.rounded { row.out_bound(DType::F16, dim) } else { 0.0 };
            row.out_bound(dtype, dim).max(of_f16)
        };
        let bounds: Vec<f64> = self.answer.rows.iter().map(bound).collect();
        let mut outcome = Outcome::default();
        for (n, (at, place)) in elements_of(problem.out(), seq_q).enumerate() {
            let (got, expected) = (dtype.read(&results.out, place), self.answer.out[n]);
            let bound = bounds[n / problem.head_dim_v()];
            let share = bound::share(got, expected, bound, dtype);
            outcome.out.take(Worst { share, at, got, expected, bound });
        }
        outcome.lse = results.lse.as_ref().map(|lse| {
            let mut worst = Worst::default();
            for (n, (row, &expected)) in self.answer.rows.iter().zip(&self.answer.lse).enumerate() {
                let (b, h, i) = (n / seq_q / heads, n / seq_q % heads, n % seq_q);
                let got = f64::from(lse[(b * heads + h) * problem.seq_q() + i]);
                let bound = row.lse_bound(dim);
                let share = bound::share(got, expected, bound, DType::F32);
                worst.take(Worst { share, at: [b, h, i, 0], got, expected, bound });
            }
            worst
        });
        outcome
    }
}

/// Runs one case on one kernel of a backend and compares it with the oracle by the error rule.
///
/// Outputs start as NaN. Each of them must be written, and no byte between strides, beyond the
/// call's queries or after the end may change.
///
/// # Errors
/// A [`Failure`] that says what is wrong and how to reproduce it.
pub fn run_case(
    backend: &dyn Backend,
    kernel: KernelKind,
    case: &Case,
) -> Result<Outcome, Failure> {
    let prepared =
        Prepared::new(case).map_err(|error| Failure::new(backend, kernel, case, error.into()))?;
    prepared.check(backend, kernel)
}
