use crate::attention;
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, BackendRun, HostArgs, HostCopies, HostStats,
    KernelKind, KeySplit, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, ProblemError, Reason,
    Timing, Verdict, check_host_args,
};
use std::{fmt, sync::Arc, time::Instant};

/// Computes attention in float64 and rounds the results to nearest even into `out` and `lse`.
///
/// Memory between the strides of `out`, and rows beyond the call's queries, keep their contents.
///
/// # Errors
/// Those of [`check_host_args`]. Nothing is written in that case.
pub fn run(problem: &Problem, args: HostArgs<'_>) -> Result<(), ProblemError> {
    let call = check_host_args(problem, &args)?;
    // A problem without queries may still have 2^40 heads to iterate over, and nothing to write.
    if problem.is_empty() {
        return Ok(());
    }
    let answer = attention(problem, &args.inputs())?;
    let HostArgs { out, mut lse, .. } = args;
    let (heads, width) = (problem.heads(), problem.head_dim_v());
    for b in 0..problem.batch() {
        for h in 0..heads {
            for i in 0..call.seq_q {
                let row = (b * heads + h) * call.seq_q + i;
                for d in 0..width {
                    let index = problem.out().index(b, h, i, d);
                    problem.dtype().write(out, index, answer.out[row * width + d]);
                }
                if let Some(lse) = &mut lse {
                    lse[(b * heads + h) * problem.seq_q() + i] = answer.lse[row] as f32;
                }
            }
        }
    }
    Ok(())
}

/// The oracle as a backend: exact and slow, on one CPU thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn kind(&self) -> BackendKind {
        BackendKind::Reference
    }

    fn device_name(&self) -> String {
        "CPU".to_owned()
    }

    fn verdict(&self, _: &Problem, options: &PlanOptions) -> Verdict {
        if options.matrix_units == MatrixUnits::Require {
            let backend = BackendKind::Reference;
            let reason = Reason::MatrixUnits(NoMatrixUnits::Backend { backend });
            return Verdict::Refused(vec![reason]);
        }
        if let KeySplit::Keys(keys) = options.key_split {
            let because = "the reference backend does not split keys".to_owned();
            return Verdict::Refused(vec![Reason::KeySplit { keys, because }]);
        }
        match options.kernel {
            None | Some(KernelKind::Unfused) => Verdict::Runs(HOW.to_owned()),
            Some(kernel @ KernelKind::Flash) => {
                let backend = BackendKind::Reference;
                Verdict::Refused(vec![Reason::NoSuchKernel { backend, kernel }])
            }
        }
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        match self.verdict(problem, options) {
            Verdict::Runs(_) => Ok(Arc::new(ReferencePlan(problem.clone()))),
            Verdict::Refused(reasons) => {
                let reasons: Vec<_> = reasons.iter().map(Reason::to_string).collect();
                Err(BackendError::new(BackendKind::Reference, false, reasons.join("; ")))
            }
        }
    }
}

const HOW: &str = "one score at a time in float64, on one CPU thread";

#[derive(Debug)]
struct ReferencePlan(Problem);

impl fmt::Display for ReferencePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HOW)
    }
}

impl BackendPlan for ReferencePlan {
    fn problem(&self) -> &Problem {
        &self.0
    }

    fn kernel(&self) -> KernelKind {
        KernelKind::Unfused
    }

    fn dispatch_count(&self) -> usize {
        1
    }

    /// q, k, v and out in float64, and seven numbers per row for the error bound.
    fn workspace_bytes(&self) -> u64 {
        let problem = &self.0;
        let product = |sizes: &[usize]| sizes.iter().fold(1u64, |n, &m| n.saturating_mul(m as u64));
        let tensors = [problem.q(), problem.k(), problem.v(), problem.out()];
        let rows = product(&problem.lse_shape()).saturating_mul(8);
        let numbers = tensors.iter().fold(rows, |n, v| n.saturating_add(product(&v.shape)));
        numbers.saturating_mul(8)
    }

    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError> {
        let tensors = HostCopies::new(&self.0, args).map_err(of_problem)?;
        let (problem, workspace_bytes) = (self.0.clone(), self.workspace_bytes());
        Ok(Box::new(ReferenceRun { problem, workspace_bytes, tensors }))
    }

    fn run(&self, args: HostArgs<'_>) -> Result<HostStats, BackendError> {
        let given = [args.q.len(), args.k.len(), args.v.len(), args.out.len()];
        let optional =
            args.mask.map_or(0, <[u8]>::len) + args.lse.as_ref().map_or(0, |l| 4 * l.len());
        let tensors = (given.iter().sum::<usize>() + optional) as u64;
        let start = Instant::now();
        run(&self.0, args).map_err(of_problem)?;
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, tensors + self.workspace_bytes()))
    }
}

/// A call with its own copies of the tensors.
struct ReferenceRun {
    problem: Problem,
    workspace_bytes: u64,
    tensors: HostCopies,
}

impl BackendRun for ReferenceRun {
    fn run(&self) -> Result<Timing, BackendError> {
        self.tensors.with_args(|args| {
            let start = Instant::now();
            run(&self.problem, args).map_err(of_problem)?;
            Ok(Timing::new(start.elapsed(), None))
        })
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        self.tensors.download(args).map_err(of_problem)
    }

    fn device_bytes(&self) -> u64 {
        self.tensors.bytes() + self.workspace_bytes
    }
}

fn of_problem(error: ProblemError) -> BackendError {
    BackendError::of_problem(BackendKind::Reference, error)
}
