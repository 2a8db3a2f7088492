use crate::{Args, Error, Launch, Plan, Pointers, args::Input, plan::PlanInner};
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys::CUstreamCaptureStatus};
use flashtile_core::{
    Argument, Mask, Problem, ProblemError, ResolvedCall, TensorView, check_presence,
};
use std::sync::Arc;

/// The workspace begins at a multiple of this.
const WORKSPACE_ALIGNMENT: u64 = 16;

/// What one argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    argument: Argument,
    /// From the first element to the end of the last.
    bytes: u64,
    /// Bytes that its address is a multiple of.
    alignment: u64,
    written: bool,
}

impl Plan {
    /// Enqueues one call on `stream`, which is of the plan's CUDA context. Does not wait, allocates nothing on the card, and may be captured into a
    /// CUDA graph.
    ///
    /// Slices and views keep cudarc's order of reads and writes across streams. While `stream` is captured they do not: no order reaches across the
    /// border of a graph, and whoever launches the graph orders it among what else reads and writes the tensors. A captured graph refers to them, to
    /// the plan's kernels and to its workspace, so all of these have to outlive it; a graph that uses the plan's own workspace must not run beside
    /// other calls of the plan. The last handle to a plan or context is not to be dropped during a capture: that waits for the card, which spoils it.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing, unexpected or short arguments and values out of range; [`Error::Aliased`], [`Error::Misaligned`],
    /// [`Error::OtherContext`] for memory; [`Error::DeviceLost`] where an earlier kernel failed.
    pub fn launch(&self, stream: &CudaStream, args: &mut Args<'_>) -> Result<(), Error> {
        self.launch_counted(stream, args).map(|_| ())
    }

    /// As [`launch`](Self::launch): how many kernels were enqueued.
    pub(crate) fn launch_counted(
        &self,
        stream: &CudaStream,
        args: &mut Args<'_>,
    ) -> Result<usize, Error> {
        let inner = &*self.inner;
        let cuda = inner.context.cuda();
        let call = args.call.resolve(&inner.problem)?;
        if stream.context() != cuda {
            return Err(Error::OtherContext { what: "the stream".to_owned() });
        }
        let needs = needs(&inner.problem, inner.schedule.workspace_bytes);
        inner.check(args, &needs)?;
        cuda.bind_to_thread().map_err(|e| Error::of_driver(e, "the CUDA context"))?;

        // cudarc makes a stream wait for the events of slices, and records others on it. Within a capture the one is an error, and the other makes
        // events of the graph that nobody outside can wait for. There a stream apart waits, and nothing is recorded.
        let captured = is_captured(stream)?;
        let apart = if captured { Some(inner.context.take_apart()?) } else { None };
        let ordered = apart.as_deref().unwrap_or(stream);

        // What was begun is ended, and with it cudarc's record of reads and writes, when these are dropped: after the launches.
        let Args { q, k, v, out, mask, kv_lens, lse, workspace, .. } = args;
        let (q, q_use) = q.begin(ordered);
        let (k, k_use) = k.begin(ordered);
        let (v, v_use) = v.begin(ordered);
        let (mask, mask_use) = mask.as_ref().map_or((0, None), |mask| mask.begin(ordered));
        let (kv_lens, lens_use) =
            kv_lens.as_ref().map_or((0, None), |kv_lens| kv_lens.begin(ordered));
        let (out, out_use) = out.begin(ordered);
        let (lse, lse_use) = lse.as_mut().map_or((0, None), |lse| lse.begin(ordered));
        let own = workspace.is_none();
        let (scores, scores_use) =
            workspace.as_mut().map_or((0, None), |workspace| workspace.begin(ordered));
        let uses = [q_use, k_use, v_use, mask_use, lens_use, out_use, lse_use, scores_use];
        let _uses = if let Some(apart) = apart.clone() {
            // What was recorded before stays as it was: others still wait for it.
            uses.into_iter().for_each(std::mem::forget);
            let joined = rejoin(stream, &apart);
            inner.context.give_apart(apart);
            joined?;
            None
        } else {
            Some(uses)
        };
        // An order that cudarc could not establish is kept as an error in its context.
        cuda.check_err()
            .map_err(|e| Error::of_driver(e, "the order of reads and writes across streams"))?;
        let pointers = Pointers { q, k, v, mask, kv_lens, out, lse, scores };
        check_addresses(&needs, &pointers)?;
        match &inner.workspace {
            Some(workspace) if own => {
                let launch =
                    |scores| inner.enqueue(stream, &call, &Pointers { scores, ..pointers });
                workspace.with(stream, captured, launch)
            }
            _ => inner.enqueue(stream, &call, &pointers),
        }
    }
}

impl PlanInner {
    fn enqueue(
        &self,
        stream: &CudaStream,
        call: &ResolvedCall,
        pointers: &Pointers,
    ) -> Result<usize, Error> {
        let mut count = 0;
        for (step, function) in self.schedule.dispatches.iter().zip(&self.functions) {
            let Some(launch) = self.schedule.launch(&self.problem, step, call, pointers) else {
                continue;
            };
            // SAFETY: the caller bound the context and compared the stream's with it. Every tensor was seen to be as long as the problem's views
            // reach, and kernels go no further: lengths in kv_lens are clamped. cudarc, or who made a raw argument, keeps the memory there.
            unsafe { function.launch(stream.cu_stream(), &launch) }
                .map_err(|e| refused(e, &launch))?;
            count += 1;
        }
        Ok(count)
    }

    /// What can be told before addresses are asked for: presence, context and size.
    fn check(&self, args: &Args<'_>, needs: &[Need; 8]) -> Result<(), Error> {
        let problem = &self.problem;
        check_presence(problem, args.mask.is_some(), args.kv_lens.is_some(), args.lse.is_some())?;
        for need in needs {
            let place = match need.argument {
                Argument::Q => Some(args.q.place()),
                Argument::K => Some(args.k.place()),
                Argument::V => Some(args.v.place()),
                Argument::Out => Some(args.out.place()),
                Argument::AttnMask => args.mask.as_ref().map(Input::place),
                Argument::KvLens => args.kv_lens.as_ref().map(Input::place),
                Argument::Lse => args.lse.as_ref().map(|lse| lse.place()),
                _ => args.workspace.as_ref().map(|workspace| workspace.place()),
            };
            if let Some((context, bytes, offset)) = place {
                check_context(need.argument, context, self.context.cuda())?;
                check_size(need, bytes, offset)?;
            }
        }
        Ok(())
    }
}

/// A tensor that something wrote within the capture makes whoever waits for it part of the capture, and all parts have to come together again.
fn rejoin(captured: &CudaStream, apart: &CudaStream) -> Result<(), Error> {
    if !is_captured(apart)? {
        return Ok(());
    }
    captured.join(apart).map_err(|e| Error::of_driver(e, "the capture"))
}

/// Whether work on the stream becomes part of a graph.
pub(crate) fn is_captured(stream: &CudaStream) -> Result<bool, Error> {
    let status = stream
        .capture_status()
        .map_err(|e| Error::of_driver(e, "whether the stream is captured"))?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

fn refused(error: DriverError, launch: &Launch) -> Error {
    Error::of_driver(error, format!("the launch of {} in {} blocks", launch.variant, launch.grid))
}

fn check_context(
    argument: Argument,
    given: Option<&Arc<CudaContext>>,
    plan: &CudaContext,
) -> Result<(), Error> {
    match given {
        Some(context) if **context != *plan => {
            Err(Error::OtherContext { what: argument.to_string() })
        }
        _ => Ok(()),
    }
}

fn check_size(need: &Need, given: u64, offset: u64) -> Result<(), Error> {
    let end = offset.saturating_add(need.bytes);
    if need.bytes > 0 && given < end {
        let (argument, expected, given) = (need.argument, end as usize, given as usize);
        return Err(ProblemError::TooShort { argument, expected, given }.into());
    }
    Ok(())
}

/// What a problem needs of each argument that it can have.
fn needs(problem: &Problem, workspace_bytes: u64) -> [Need; 8] {
    let need = |argument, bytes, alignment, written| Need { argument, bytes, alignment, written };
    let view = |argument, view: &TensorView, written| {
        let bytes = view.byte_span().map_or(u64::MAX, |bytes| bytes as u64);
        need(argument, bytes, view.dtype.size() as u64, written)
    };
    let mask = |mask: &Mask| {
        (mask.byte_span().map_or(u64::MAX, |bytes| bytes as u64), mask.kind.size() as u64)
    };
    let (mask_bytes, mask_alignment) = problem.mask().map_or((0, 1), mask);
    let lse_bytes = if problem.lse() {
        4 * problem.lse_shape().iter().map(|&n| n as u64).product::<u64>()
    } else {
        0
    };
    let kv_lens_bytes = if problem.kv_lens() { 4 * problem.batch() as u64 } else { 0 };
    [
        view(Argument::Q, problem.q(), false),
        view(Argument::K, problem.k(), false),
        view(Argument::V, problem.v(), false),
        view(Argument::Out, problem.out(), true),
        need(Argument::AttnMask, mask_bytes, mask_alignment, false),
        need(Argument::KvLens, kv_lens_bytes, 4, false),
        need(Argument::Lse, lse_bytes, 4, true),
        need(Argument::Workspace, workspace_bytes, WORKSPACE_ALIGNMENT, true),
    ]
}

/// Alignment, and that nothing that is written overlaps anything else.
fn check_addresses(needs: &[Need; 8], pointers: &Pointers) -> Result<(), Error> {
    let address = |argument| match argument {
        Argument::Q => pointers.q,
        Argument::K => pointers.k,
        Argument::V => pointers.v,
        Argument::Out => pointers.out,
        Argument::AttnMask => pointers.mask,
        Argument::KvLens => pointers.kv_lens,
        Argument::Lse => pointers.lse,
        _ => pointers.scores,
    };
    // The plan's own workspace has no address yet, and shares its memory with nobody.
    let used = || {
        needs
            .iter()
            .map(|need| (need, address(need.argument)))
            .filter(|(need, at)| need.bytes > 0 && *at != 0)
    };
    for (need, address) in used() {
        if !address.is_multiple_of(need.alignment) {
            return Err(Error::Misaligned {
                argument: need.argument,
                address,
                size: need.alignment,
            });
        }
    }
    let overlap = |(a, a_at): (&Need, u64), (b, b_at): (&Need, u64)| {
        a_at < b_at.saturating_add(b.bytes) && b_at < a_at.saturating_add(a.bytes)
    };
    for written in used().filter(|(need, _)| need.written) {
        let other = used().find(|&other| other.0 != written.0 && overlap(written, other));
        if let Some((other, _)) = other {
            return Err(Error::Aliased { written: written.0.argument, other: other.argument });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{DType, Layout};

    fn problem() -> Problem {
        let view =
            TensorView::from_bhsd_sizes(DType::F16, Layout::Bhsd, [2, 1, 4, 8]).expect("small");
        Problem::builder(view, view, view).kv_lens(true).lse(true).build().expect("valid")
    }

    /// Four tensors of 128 bytes, eight of kv_lens and 32 of lse, apart.
    const APART: Pointers = Pointers {
        q: 0x1000,
        k: 0x2000,
        v: 0x3000,
        mask: 0,
        kv_lens: 0x4000,
        out: 0x5000,
        lse: 0x6000,
        scores: 0x7000,
    };

    fn check(pointers: Pointers) -> Result<(), Error> {
        check_addresses(&needs(&problem(), 64), &pointers)
    }

    #[test]
    fn what_is_written_shares_nothing() {
        assert_eq!(check(APART), Ok(()));
        assert_eq!(check(Pointers { k: 0x1000, v: 0x1040, ..APART }), Ok(()), "inputs may share");
        assert_eq!(check(Pointers { out: 0x1000 + 128, ..APART }), Ok(()), "side by side");
        let aliased = |written, other| Err(Error::Aliased { written, other });
        assert_eq!(
            check(Pointers { out: 0x1000 + 126, ..APART }),
            aliased(Argument::Out, Argument::Q)
        );
        assert_eq!(
            check(Pointers { out: 0x4000 - 126, ..APART }),
            aliased(Argument::Out, Argument::KvLens)
        );
        assert_eq!(check(Pointers { lse: 0x5000, ..APART }), aliased(Argument::Out, Argument::Lse));
        assert_eq!(
            check(Pointers { scores: 0x3000, ..APART }),
            aliased(Argument::Workspace, Argument::V)
        );
        assert_eq!(check(Pointers { scores: 0, ..APART }), Ok(()), "the plan's own");
    }

    #[test]
    fn addresses_are_multiples_of_elements() {
        let misaligned =
            |argument, address, size| Err(Error::Misaligned { argument, address, size });
        assert_eq!(check(Pointers { v: 0x3002, ..APART }), Ok(()));
        assert_eq!(check(Pointers { v: 0x3001, ..APART }), misaligned(Argument::V, 0x3001, 2));
        assert_eq!(check(Pointers { lse: 0x6002, ..APART }), misaligned(Argument::Lse, 0x6002, 4));
        assert_eq!(
            check(Pointers { scores: 0x7008, ..APART }),
            misaligned(Argument::Workspace, 0x7008, 16)
        );
    }

    #[test]
    fn short_memory_is_told_with_its_offset() {
        let [q, ..] = needs(&problem(), 0);
        assert_eq!(check_size(&q, 128, 0), Ok(()));
        let expected = ProblemError::TooShort { argument: Argument::Q, expected: 130, given: 128 };
        assert_eq!(check_size(&q, 128, 2), Err(expected.into()));
        assert!(check_size(&q, 128, u64::MAX).is_err());
        assert_eq!(check_size(&Need { bytes: 0, ..q }, 0, 4), Ok(()), "nothing is read");
    }
}
