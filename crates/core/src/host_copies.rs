use crate::{Call, HostArgs, Problem, ProblemError, check_host_args, check_host_outputs};
use std::sync::{Mutex, PoisonError};

/// Copies of the tensors of one call, in host memory: what
/// [`BackendPlan::upload`](crate::BackendPlan::upload) makes where the device is the host.
#[derive(Debug)]
pub struct HostCopies {
    problem: Problem,
    inputs: [Vec<u8>; 3],
    mask: Option<Vec<u8>>,
    kv_lens: Option<Vec<i32>>,
    call: Call,
    /// out and lse: the caller's contents before the first run, then the results.
    results: Mutex<(Vec<u8>, Option<Vec<f32>>)>,
}

impl HostCopies {
    /// Copies the tensors of a call of `problem`.
    ///
    /// # Errors
    /// Those of [`check_host_args`].
    pub fn new(problem: &Problem, args: &HostArgs<'_>) -> Result<Self, ProblemError> {
        check_host_args(problem, args)?;
        Ok(Self {
            problem: problem.clone(),
            inputs: [args.q, args.k, args.v].map(<[u8]>::to_vec),
            mask: args.mask.map(<[u8]>::to_vec),
            kv_lens: args.kv_lens.map(<[i32]>::to_vec),
            call: args.call,
            results: Mutex::new((args.out.to_vec(), args.lse.as_deref().map(<[f32]>::to_vec))),
        })
    }

    /// Calls `run` with the copies. Calls from several threads take turns.
    pub fn with_args<T>(&self, run: impl FnOnce(HostArgs<'_>) -> T) -> T {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (out, lse) = &mut *results;
        let [q, k, v] = &self.inputs;
        let mut args = HostArgs::new(q, k, v, out).call(self.call);
        args.mask = self.mask.as_deref();
        args.kv_lens = self.kv_lens.as_deref();
        args.lse = lse.as_deref_mut();
        run(args)
    }

    /// Copies the results to `args`.
    ///
    /// # Errors
    /// Those of [`check_host_outputs`].
    pub fn download(&self, args: &mut HostArgs<'_>) -> Result<(), ProblemError> {
        check_host_outputs(&self.problem, args)?;
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

    /// Bytes of the tensors.
    pub fn bytes(&self) -> u64 {
        let (out, lse) = &*self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs = self.inputs.iter().map(Vec::len).sum::<usize>();
        let optional =
            self.mask.as_ref().map_or(0, Vec::len) + lse.as_ref().map_or(0, |lse| 4 * lse.len());
        (inputs + optional + out.len()) as u64
    }
}
