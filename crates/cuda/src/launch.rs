use crate::{
    Args, Error, Launch, Plan, Pointers,
    args::{Input, Memory, Output},
    capture::is_captured,
    plan::PlanInner,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, SyncOnDrop};
use flashtile_core::{
    Argument, Mask, Problem, ProblemError, ResolvedCall, TensorView, check_presence,
};

/// The workspace starts at a multiple of this.
const WORKSPACE_ALIGNMENT: u64 = 16;

/// One value for each of q, k, v, out, mask, kv_lens, lse and workspace, in this order.
type PerArgument<T> = [T; 8];

/// What one argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    argument: Argument,
    /// From the first element to the end of the last; 0 if the problem lacks the argument.
    bytes: u64,
    /// Bytes that its address has to be a multiple of.
    alignment: u64,
    written: bool,
}

impl Plan {
    /// Enqueues one call on `stream`, which belongs to the plan's CUDA context. Does not wait and
    /// allocates no device memory. May be captured into a CUDA graph.
    ///
    /// Slices and views keep cudarc's order of reads and writes across streams. During a capture
    /// they do not, because ordering does not extend across a graph boundary: order the graph's
    /// launches yourself among everything else that reads or writes the tensors. A captured graph
    /// refers to the tensors, to the plan's kernels and to its workspace, so all of them have to
    /// outlive the graph. A graph that uses the plan's own workspace must not run at the same time
    /// as another call of the plan. Do not drop the last handle to a plan or a context during a
    /// capture: that waits for the GPU, which invalidates the capture.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing, unexpected or short arguments and for values out of range;
    /// [`Error::Aliased`], [`Error::Misaligned`] and [`Error::OtherContext`] for memory;
    /// [`Error::DeviceLost`] if an earlier kernel failed.
    pub fn launch(&self, stream: &CudaStream, args: &mut Args<'_>) -> Result<(), Error> {
        self.launch_counted(stream, args).map(|_| ())
    }

    /// As [`launch`](Self::launch). Returns how many kernels it enqueued.
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

        let captured = is_captured(stream)?;
        let own_workspace = args.workspace.is_none();
        // Dropping `_uses` records the reads and writes in cudarc's events: after the launches.
        let (pointers, _uses) = if captured {
            let addresses = |side: &CudaStream| {
                let (pointers, uses) = addresses(args, side);
                // The events keep what they recorded before the capture: others still wait for it.
                uses.into_iter().for_each(std::mem::forget);
                pointers
            };
            (inner.context.inner.side_streams.with(stream, addresses)?, None)
        } else {
            let (pointers, uses) = addresses(args, stream);
            (pointers, Some(uses))
        };
        // cudarc keeps the error if it fails to make the stream wait.
        cuda.check_err()
            .map_err(|e| Error::of_driver(e, "the order of reads and writes across streams"))?;
        check_addresses(&needs, &pointers)?;
        match &inner.workspace {
            Some(workspace) if own_workspace => {
                let launch =
                    |scores| inner.enqueue(stream, &call, &Pointers { scores, ..pointers });
                workspace.with(stream, captured, launch)
            }
            Some(_) | None => inner.enqueue(stream, &call, &pointers),
        }
    }
}

/// The addresses of a call's tensors for work on `stream`, 0 where there is none, and cudarc's
/// records of their use: the caller drops these after the work is enqueued.
fn addresses<'b>(
    args: &'b mut Args<'_>,
    stream: &'b CudaStream,
) -> (Pointers, PerArgument<Option<SyncOnDrop<'b>>>) {
    const ABSENT: (u64, Option<SyncOnDrop<'_>>) = (0, None);
    let Args { q, k, v, out, mask, kv_lens, lse, workspace, .. } = args;
    let (q, q_use) = q.address(stream);
    let (k, k_use) = k.address(stream);
    let (v, v_use) = v.address(stream);
    let (out, out_use) = out.address(stream);
    let (mask, mask_use) = mask.as_ref().map_or(ABSENT, |mask| mask.address(stream));
    let (kv_lens, lens_use) = kv_lens.as_ref().map_or(ABSENT, |lens| lens.address(stream));
    let (lse, lse_use) = lse.as_mut().map_or(ABSENT, |lse| lse.address(stream));
    let (scores, scores_use) = workspace.as_mut().map_or(ABSENT, |memory| memory.address(stream));
    let pointers = Pointers { q, k, v, mask, kv_lens, out, lse, scores };
    (pointers, [q_use, k_use, v_use, out_use, mask_use, lens_use, lse_use, scores_use])
}

impl PlanInner {
    fn enqueue(
        &self,
        stream: &CudaStream,
        call: &ResolvedCall,
        pointers: &Pointers,
    ) -> Result<usize, Error> {
        let mut count = 0;
        for (dispatch, function) in self.schedule.dispatches.iter().zip(&self.functions) {
            let Some(launch) = self.schedule.launch(&self.problem, dispatch, call, pointers) else {
                continue;
            };
            // SAFETY: the caller made the context current and checked that the stream belongs to
            // it. Every tensor is as long as the problem's views reach, and kernels access nothing
            // beyond: they clamp the lengths in kv_lens. cudarc keeps the memory alive, or whoever
            // made a raw argument does.
            unsafe { function.launch(stream.cu_stream(), &launch) }
                .map_err(|e| refused(e, &launch))?;
            count += 1;
        }
        Ok(count)
    }

    /// Checks what needs no address: presence, context and size.
    fn check(&self, args: &Args<'_>, needs: &PerArgument<Need>) -> Result<(), Error> {
        check_presence(
            &self.problem,
            args.mask.is_some(),
            args.kv_lens.is_some(),
            args.lse.is_some(),
        )?;
        let memories: PerArgument<Option<Memory<'_>>> = [
            Some(args.q.memory()),
            Some(args.k.memory()),
            Some(args.v.memory()),
            Some(args.out.memory()),
            args.mask.as_ref().map(Input::memory),
            args.kv_lens.as_ref().map(Input::memory),
            args.lse.as_ref().map(Output::memory),
            args.workspace.as_ref().map(Output::memory),
        ];
        for (need, memory) in needs.iter().zip(memories) {
            if let Some(memory) = memory {
                check_context(need.argument, &memory, self.context.cuda())?;
                check_size(need, &memory)?;
            }
        }
        Ok(())
    }
}

fn refused(error: DriverError, launch: &Launch) -> Error {
    Error::of_driver(error, format!("the launch of {} in {} blocks", launch.variant, launch.grid))
}

fn check_context(argument: Argument, memory: &Memory<'_>, plan: &CudaContext) -> Result<(), Error> {
    if memory.context.is_some_and(|context| **context != *plan) {
        return Err(Error::OtherContext { what: argument.to_string() });
    }
    Ok(())
}

fn check_size(need: &Need, memory: &Memory<'_>) -> Result<(), Error> {
    let end = memory.offset.saturating_add(need.bytes);
    if need.bytes > 0 && memory.bytes < end {
        let (argument, expected, given) = (need.argument, end as usize, memory.bytes as usize);
        return Err(ProblemError::TooShort { argument, expected, given }.into());
    }
    Ok(())
}

/// What a problem needs of each argument.
fn needs(problem: &Problem, workspace_bytes: u64) -> PerArgument<Need> {
    let need = |argument, bytes, alignment, written| Need { argument, bytes, alignment, written };
    let view = |argument, view: &TensorView, written| {
        let bytes = view.byte_span().map_or(u64::MAX, |bytes| bytes as u64);
        need(argument, bytes, view.dtype.size() as u64, written)
    };
    let mask = |mask: &Mask| {
        (mask.byte_span().map_or(u64::MAX, |bytes| bytes as u64), mask.kind.size() as u64)
    };
    let (mask_bytes, mask_alignment) = problem.mask().map_or((0, 1), mask);
    let lse_bytes = problem.lse_bytes();
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

/// Checks that each address is aligned, and that no output overlaps another argument.
fn check_addresses(needs: &PerArgument<Need>, pointers: &Pointers) -> Result<(), Error> {
    let Pointers { q, k, v, mask, kv_lens, out, lse, scores } = *pointers;
    let addresses: PerArgument<u64> = [q, k, v, out, mask, kv_lens, lse, scores];
    // The plan's own workspace has no address yet. It shares its memory with no argument.
    let used =
        || needs.iter().zip(addresses).filter(|(need, address)| need.bytes > 0 && *address != 0);
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

    /// Four tensors of 128 bytes, 8 bytes of kv_lens and 32 of lse; no two overlap.
    const DISJOINT: Pointers = Pointers {
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
    fn outputs_overlap_nothing() {
        assert_eq!(check(DISJOINT), Ok(()));
        assert_eq!(
            check(Pointers { k: 0x1000, v: 0x1040, ..DISJOINT }),
            Ok(()),
            "inputs may share"
        );
        assert_eq!(check(Pointers { out: 0x1000 + 128, ..DISJOINT }), Ok(()), "adjacent");
        let aliased = |written, other| Err(Error::Aliased { written, other });
        assert_eq!(
            check(Pointers { out: 0x1000 + 126, ..DISJOINT }),
            aliased(Argument::Out, Argument::Q)
        );
        assert_eq!(
            check(Pointers { out: 0x4000 - 126, ..DISJOINT }),
            aliased(Argument::Out, Argument::KvLens)
        );
        assert_eq!(
            check(Pointers { lse: 0x5000, ..DISJOINT }),
            aliased(Argument::Out, Argument::Lse)
        );
        assert_eq!(
            check(Pointers { scores: 0x3000, ..DISJOINT }),
            aliased(Argument::Workspace, Argument::V)
        );
        assert_eq!(check(Pointers { scores: 0, ..DISJOINT }), Ok(()), "the plan's own workspace");
    }

    #[test]
    fn addresses_are_multiples_of_the_element_size() {
        let misaligned =
            |argument, address, size| Err(Error::Misaligned { argument, address, size });
        assert_eq!(check(Pointers { v: 0x3002, ..DISJOINT }), Ok(()));
        assert_eq!(check(Pointers { v: 0x3001, ..DISJOINT }), misaligned(Argument::V, 0x3001, 2));
        assert_eq!(
            check(Pointers { lse: 0x6002, ..DISJOINT }),
            misaligned(Argument::Lse, 0x6002, 4)
        );
        assert_eq!(
            check(Pointers { scores: 0x7008, ..DISJOINT }),
            misaligned(Argument::Workspace, 0x7008, 16)
        );
    }

    #[test]
    fn the_size_of_memory_counts_its_offset() {
        let [q, ..] = needs(&problem(), 0);
        let memory = |bytes, offset| Memory { context: None, bytes, offset };
        assert_eq!(check_size(&q, &memory(128, 0)), Ok(()));
        let expected = ProblemError::TooShort { argument: Argument::Q, expected: 130, given: 128 };
        assert_eq!(check_size(&q, &memory(128, 2)), Err(expected.into()));
        assert!(check_size(&q, &memory(128, u64::MAX)).is_err());
        assert_eq!(check_size(&Need { bytes: 0, ..q }, &memory(0, 4)), Ok(()), "nothing is read");
    }
}
