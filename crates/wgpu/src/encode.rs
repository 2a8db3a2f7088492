use crate::{
    Args, BufferView, Error, Plan, bind::Bound, plan::PlanInner, ring::Slots, schedule::Step,
    timing::Stopwatch,
};
use flashtile_core::{Argument, ProblemError, ResolvedCall, check_presence};
use flashtile_shaders::Slot;

/// A dispatch that only has to be recorded.
struct Ready {
    step: usize,
    group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Plan {
    /// Records one call into `encoder`, as a compute pass of its own. Does not wait, and creates no buffers.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing, unexpected or short arguments and values out of range; [`Error::Usage`], [`Error::Aliased`],
    /// [`Error::Misaligned`] for buffers; [`Error::TooManyCalls`]; [`Error::Validation`] for a buffer of another device of the same
    /// `wgpu::Instance`.
    ///
    /// # Panics
    /// wgpu itself may panic on a buffer of another `wgpu::Instance`, or take it for one of its own: it looks resources up in tables that
    /// belong to an instance, and a buffer does not tell its instance.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, args: &Args<'_>) -> Result<(), Error> {
        self.encode_timed(encoder, args, None).map(|_| ())
    }

    /// As [`encode`](Self::encode), with timestamps. Whether anything was recorded.
    pub(crate) fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        args: &Args<'_>,
        stopwatch: Option<&Stopwatch>,
    ) -> Result<bool, Error> {
        let (ready, slots) = self.inner.prepare(args)?;
        if ready.is_empty() {
            return Ok(false);
        }
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("flashtile"),
                timestamp_writes: stopwatch.map(Stopwatch::writes),
            });
            self.inner.record(&mut pass, &ready, &slots);
        }
        if let Some(stopwatch) = stopwatch {
            stopwatch.resolve(encoder);
        }
        encoder.on_submitted_work_done(move || drop(slots));
        Ok(true)
    }

    /// As [`encode`](Self::encode), into a compute pass that is already open. Pipeline and bind group 0 of the pass change.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        args: &Args<'_>,
    ) -> Result<(), Error> {
        let (ready, slots) = self.inner.prepare(args)?;
        if !ready.is_empty() {
            self.inner.record(pass, &ready, &slots);
            pass.on_submitted_work_done(move || drop(slots));
        }
        Ok(())
    }
}

impl PlanInner {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>, ready: &[Ready], slots: &Slots) {
        for (n, Ready { step, group, workgroups: [x, y] }) in ready.iter().enumerate() {
            pass.set_pipeline(&self.pipelines[*step].pipeline);
            pass.set_bind_group(0, group, &[slots.offset(n)]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }

    /// Checks the call, writes its parameters and finds its bind groups.
    fn prepare(&self, args: &Args<'_>) -> Result<(Vec<Ready>, Slots), Error> {
        let inner = &self.context.inner;
        let call = args.call.resolve(&self.problem)?;
        self.check(args)?;
        let slots = self.ring.take(&inner.device, self.schedule.steps.len())?;
        let mut ready = Vec::with_capacity(self.schedule.steps.len());
        for (n, step) in self.schedule.steps.iter().enumerate() {
            let (bound, offsets) = self.bind(args, n, step);
            let Some((params, workgroups)) = self.dispatch(step, &call, &offsets) else {
                continue;
            };
            self.ring.write(&inner.queue, slots.offset(ready.len()), &params);
            ready.push(Ready { step: n, group: self.bind_cache.get(self, n, bound)?, workgroups });
        }
        Ok((ready, slots))
    }

    fn dispatch(
        &self,
        step: &Step,
        call: &ResolvedCall,
        offsets: &[u32; 9],
    ) -> Option<(flashtile_shaders::Params, [u32; 2])> {
        self.schedule.dispatch(&self.problem, step, call, |slot| offsets[slot as usize])
    }

    /// The buffer ranges of one step, and for each slot how many elements its window begins behind its range.
    fn bind(&self, args: &Args<'_>, n: usize, step: &Step) -> (Vec<Bound>, [u32; 9]) {
        let inner = &self.context.inner;
        let alignment = u64::from(inner.limits.min_storage_buffer_offset_alignment);
        let mut offsets = [0; 9];
        let mut bound = Vec::with_capacity(7);
        for binding in
            self.pipelines[n].bindings.iter().filter(|binding| binding.slot != Slot::Params)
        {
            let slot = binding.slot;
            let window = self.schedule.parts[step.part].window(&self.problem, slot);
            let (buffer, begin) = match self.argument(args, slot) {
                // The workspace is written, so nothing may stand for it.
                Some((_, view)) if window.len > 0 || slot == Slot::Scores => {
                    (view.buffer, view.offset + window.begin * window.size)
                }
                _ => (&inner.nothing, 0),
            };
            let offset = begin / alignment * alignment;
            let size = (begin - offset + window.len * window.size).max(4).next_multiple_of(4);
            offsets[slot as usize] = ((begin - offset) / window.size) as u32;
            bound.push(Bound { slot, buffer: buffer.clone(), offset, size });
        }
        (bound, offsets)
    }

    fn argument<'a>(&'a self, args: &Args<'a>, slot: Slot) -> Option<(Argument, BufferView<'a>)> {
        match slot {
            Slot::Params => None,
            Slot::Q => Some((Argument::Q, args.q)),
            Slot::K => Some((Argument::K, args.k)),
            Slot::V => Some((Argument::V, args.v)),
            Slot::Mask => args.mask.map(|view| (Argument::AttnMask, view)),
            Slot::Aux => args.kv_lens.map(|view| (Argument::KvLens, view)),
            Slot::Out => Some((Argument::Out, args.out)),
            Slot::Lse => args.lse.map(|view| (Argument::Lse, view)),
            Slot::Scores => {
                self.workspace.as_ref().map(|buffer| (Argument::Workspace, buffer.into()))
            }
        }
    }

    /// What buffers add to the checks of the problem: presence, usage, size, alignment of offsets, aliasing.
    fn check(&self, args: &Args<'_>) -> Result<(), Error> {
        let problem = &self.problem;
        check_presence(problem, args.mask.is_some(), args.kv_lens.is_some(), args.lse.is_some())?;

        let span = |view: &flashtile_core::TensorView| {
            (view.byte_span().unwrap_or(usize::MAX), view.dtype.size())
        };
        let lse_bytes = 4 * problem.lse_shape().iter().product::<usize>();
        let mask =
            problem.mask().map(|mask| (mask.byte_span().unwrap_or(usize::MAX), mask.kind.size()));
        let tensors = [
            (Slot::Q, span(problem.q())),
            (Slot::K, span(problem.k())),
            (Slot::V, span(problem.v())),
            (Slot::Out, span(problem.out())),
            (Slot::Mask, mask.unwrap_or((0, 1))),
            (Slot::Aux, (4 * problem.batch(), 4)),
            (Slot::Lse, (lse_bytes, 4)),
        ];
        for (slot, (bytes, size)) in tensors {
            let Some((argument, view)) = self.argument(args, slot) else {
                continue;
            };
            check_buffer(argument, view, bytes as u64, size as u64)?;
        }
        for written in [Slot::Out, Slot::Lse] {
            let Some((argument, view)) = self.argument(args, written) else {
                continue;
            };
            for (slot, _) in tensors.iter().filter(|(slot, _)| *slot != written) {
                if let Some((other, buffer)) = self.argument(args, *slot)
                    && buffer.buffer == view.buffer
                {
                    return Err(Error::Aliased { written: argument, other });
                }
            }
        }
        Ok(())
    }
}

fn check_buffer(
    argument: Argument,
    view: BufferView<'_>,
    bytes: u64,
    size: u64,
) -> Result<(), Error> {
    if !view.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::Usage { argument, expected: "STORAGE", given: view.buffer.usage() });
    }
    if !view.offset.is_multiple_of(size) {
        return Err(Error::Misaligned { argument, offset: view.offset, size });
    }
    // Bindings are whole words.
    let end = view
        .offset
        .checked_add(bytes)
        .and_then(|end| end.checked_next_multiple_of(4))
        .unwrap_or(u64::MAX);
    if bytes > 0 && view.buffer.size() < end {
        let (expected, given) = (end as usize, view.buffer.size() as usize);
        return Err(ProblemError::TooShort { argument, expected, given }.into());
    }
    Ok(())
}
