use crate::attention;
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, BackendRun, HostArgs, HostStats, KernelKind,
    KeySplit, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, ProblemError, Reason, Timing,
    Verdict, check_host_args, check_host_outputs,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

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
        check_host_args(&self.0, args).map_err(of_problem)?;
        Ok(Box::new(ReferenceRun {
            problem: self.0.clone(),
            workspace_bytes: self.workspace_bytes(),
            inputs: [args.q, args.k, args.v].map(<[u8]>::to_vec),
            mask: args.mask.map(<[u8]>::to_vec),
            kv_lens: args.kv_lens.map(<[i32]>::to_vec),
            call: args.call,
            results: Mutex::new((args.out.to_vec(), args.lse.as_deref().map(<[f32]>::to_vec))),
        }))
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
    inputs: [Vec<u8>; 3],
    mask: Option<Vec<u8>>,
    kv_lens: Option<Vec<i32>>,
    call: flashtile_core::Call,
    /// The contents of out and lse: the caller's before the first run, then the results.
    results: Mutex<(Vec<u8>, Option<Vec<f32>>)>,
}

impl BackendRun for ReferenceRun {
    fn run(&self) -> Result<Timing, BackendError> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (out, lse) = &mut *results;
        let [q, k, v] = &self.inputs;
        let mut args = HostArgs::new(q, k, v, out).call(self.call);
        args.mask = self.mask.as_deref();
        args.kv_lens = self.kv_lens.as_deref();
        args.lse = lse.as_deref_mut();
        let start = Instant::now();
        run(&self.problem, args).map_err(of_problem)?;
        Ok(Timing::new(start.elapsed(), None))
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        check_host_outputs(&self.problem, args).map_err(of_problem)?;
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (out, lse) = &*results;
        let bytes = self.problem.out().byte_span().unwrap_or(0);
        args.out[..bytes].copy_from_slice(&out[..bytes]);
        if let (Some(to), Some(from)) = (&mut args.lse, lse) {
            let rows = self.problem.lse_shape().iter().product();
            to[..rows].copy_from_slice(&from[..rows]);
        }
        Ok(())
    }

    fn device_bytes(&self) -> u64 {
        let (out, lse) = &*self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs = self.inputs.iter().map(Vec::len).sum::<usize>();
        let optional =
            self.mask.as_ref().map_or(0, Vec::len) + lse.as_ref().map_or(0, |l| 4 * l.len());
        (inputs + optional + out.len()) as u64 + self.workspace_bytes
    }
}

fn of_problem(error: ProblemError) -> BackendError {
    BackendError::of_problem(BackendKind::Reference, error)
}
