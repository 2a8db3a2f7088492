use crate::{
    Args, Error, Plan, Region,
    bind::{Bound, Wanted},
    params::Slot as ParamSlot,
    plan::PlanInner,
    schedule::Step,
    scope::catch_now,
    timing::Stopwatch,
};
use flashtile_core::{Argument, ProblemError, ResolvedCall, check_presence, planning::extent};
use flashtile_shaders::{Params, Slot};
use std::sync::Arc;

/// A dispatch that only has to be recorded.
struct Ready {
    step: usize,
    group: wgpu::BindGroup,
    /// Keeps the parameters on the device as they are until the call is done.
    params: Arc<ParamSlot>,
    workgroups: [u32; 2],
}

/// What has to live until the call is done: wgpu itself keeps the bind groups.
fn params_of(ready: Vec<Ready>) -> Vec<Arc<ParamSlot>> {
    ready.into_iter().map(|ready| ready.params).collect()
}

impl Plan {
    /// Records one call into `encoder`, as a compute pass of its own. It does not wait.
    ///
    /// It creates no buffers, except that new parameter values (the length of a decode step) are
    /// written through the queue once; all calls with the same values share them.
    ///
    /// It cannot detect everything. wgpu reports these later: an encoder of another device, when it
    /// is finished; mapped or destroyed buffers, and a device that was lost or destroyed, when the
    /// commands are submitted.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing, unexpected or short arguments and values out of range;
    /// [`Error::Usage`], [`Error::Aliased`], [`Error::Misaligned`] and [`Error::BindingSize`] for
    /// buffers; [`Error::Validation`] for a buffer of another device of the same `wgpu::Instance`.
    ///
    /// # Panics
    /// wgpu itself may panic on a buffer of another `wgpu::Instance`, or confuse it with one of its
    /// own: it finds resources in tables that belong to an instance.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, args: &Args<'_>) -> Result<(), Error> {
        let inner = self.inner.for_call(args)?;
        let ready = inner.prepare(args)?;
        inner.record_pass(encoder, ready, None);
        Ok(())
    }

    /// As [`encode`](Self::encode), into a compute pass that is already open. The pipeline and bind
    /// group 0 of the pass change.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        args: &Args<'_>,
    ) -> Result<(), Error> {
        let inner = self.inner.for_call(args)?;
        let ready = inner.prepare(args)?;
        inner.record(pass, &ready);
        let params = params_of(ready);
        pass.on_submitted_work_done(move || drop(params));
        Ok(())
    }

    /// Records one call and submits it on the context's queue, each part of the plan in a
    /// submission of its own. It does not wait.
    ///
    /// Long work is split into parts so that no dispatch exceeds a display's watchdog. Some drivers
    /// time whole submissions, so there the parts have to be submitted one by one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Validation`] for what only the submission reports.
    pub fn submit(&self, args: &Args<'_>) -> Result<(), Error> {
        self.submit_timed(args, None).map(|_| ())
    }

    /// As [`submit`](Self::submit), with timestamps around it. Returns whether there was any work.
    pub(crate) fn submit_timed(
        &self,
        args: &Args<'_>,
        stopwatch: Option<&Stopwatch>,
    ) -> Result<bool, Error> {
        let inner = self.inner.for_call(args)?;
        let PlanInner { context, schedule, .. } = inner;
        let device = context.device();
        let ready = inner.prepare(args)?;
        let mut parts: Vec<Vec<Ready>> = Vec::new();
        for dispatch in ready {
            let part = |ready: &Ready| schedule.steps[ready.step].part;
            match parts.last_mut() {
                Some(last) if part(&last[0]) == part(&dispatch) => last.push(dispatch),
                _ => parts.push(vec![dispatch]),
            }
        }
        let count = parts.len();
        for (n, part) in parts.into_iter().enumerate() {
            let submit = || {
                let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor {
                    label: Some("flashtile"),
                });
                let (first, last) = (n == 0, n + 1 == count);
                let writes = stopwatch.and_then(|stopwatch| stopwatch.writes(first, last));
                inner.record_pass(&mut encoder, part, writes);
                if let Some(stopwatch) = stopwatch.filter(|_| last) {
                    stopwatch.resolve(&mut encoder);
                }
                context.queue().submit([encoder.finish()]);
            };
            catch_now(device, submit)
                .map_err(|caught| caught.about(device, || "a submission".into()))?;
        }
        Ok(count > 0)
    }
}

impl PlanInner {
    fn record_pass(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        ready: Vec<Ready>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        if ready.is_empty() {
            return;
        }
        let label = Some("flashtile");
        let descriptor = wgpu::ComputePassDescriptor { label, timestamp_writes };
        self.record(&mut encoder.begin_compute_pass(&descriptor), &ready);
        let params = params_of(ready);
        encoder.on_submitted_work_done(move || drop(params));
    }

    fn record(&self, pass: &mut wgpu::ComputePass<'_>, ready: &[Ready]) {
        for Ready { step, group, params, workgroups: [x, y] } in ready {
            pass.set_pipeline(&self.pipelines[*step].pipeline);
            pass.set_bind_group(0, group, &[params.offset]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }

    /// Checks the call, and finds the parameters and bind groups of its dispatches.
    fn prepare(&self, args: &Args<'_>) -> Result<Vec<Ready>, Error> {
        let inner = &self.context.inner;
        let call = args.call.resolve(&self.problem)?;
        self.check(args)?;
        let mut ready = Vec::with_capacity(self.schedule.steps.len());
        let mut bound = Vec::with_capacity(Slot::ALL.len());
        for (n, step) in self.schedule.steps.iter().enumerate() {
            bound.clear();
            let Some((params, workgroups)) = self.bind(args, &call, n, step, &mut bound)? else {
                continue;
            };
            let params = inner.params.get(&inner.queue, &params)?;
            let wanted = Wanted {
                step: n,
                params: &inner.params,
                params_buffer: params.buffer,
                bound: &bound,
            };
            let group = self.bind_cache.get(&inner.device, &self.pipelines[n].layout, &wanted)?;
            ready.push(Ready { step: n, group, params, workgroups });
        }
        Ok(ready)
    }

    /// The buffer ranges of one step, its parameters and its workgroups; `None` where the call
    /// leaves nothing to do for it.
    fn bind<'a>(
        &'a self,
        args: &Args<'a>,
        call: &ResolvedCall,
        n: usize,
        step: &Step,
        bound: &mut Vec<Bound<&'a wgpu::Buffer>>,
    ) -> Result<Option<(Params, [u32; 2])>, Error> {
        let inner = &self.context.inner;
        let alignment = inner.machine.offset_alignment;
        // Elements from the start of each binding to the tensor's part.
        let mut offsets: [(Slot, u32); Slot::ALL.len()] = [(Slot::Params, 0); Slot::ALL.len()];
        for binding in self.pipelines[n].bindings.iter().filter(|b| b.slot != Slot::Params) {
            let slot = binding.slot;
            let window = self.schedule.window(&self.problem, step.part, slot);
            let (buffer, start) = match self.argument(args, slot) {
                // The workspace is written, so nothing may stand in for it.
                Some((_, region)) if window.len > 0 || slot == Slot::Workspace => {
                    (region.buffer, region.offset + window.start * window.size)
                }
                _ => (&inner.empty, 0),
            };
            let offset = start / alignment * alignment;
            let size = (start - offset + window.len * window.size).max(4).next_multiple_of(4);
            let limit = inner.machine.binding_size;
            if let Some((argument, _)) = self.argument(args, slot).filter(|_| size > limit) {
                return Err(Error::BindingSize { argument, needed: size, limit, alignment });
            }
            offsets[bound.len()] = (slot, ((start - offset) / window.size) as u32);
            bound.push(Bound { slot, buffer, offset, size });
        }
        let offset = |slot| offsets.iter().find(|(s, _)| *s == slot).map_or(0, |&(_, n)| n);
        Ok(self.schedule.dispatch(&self.problem, step, call, offset))
    }

    fn argument<'a>(&'a self, args: &Args<'a>, slot: Slot) -> Option<(Argument, Region<'a>)> {
        let own = || self.workspace.as_ref().map(Region::from);
        match slot {
            Slot::Params => None,
            Slot::Q => Some((Argument::Q, args.q)),
            Slot::K => Some((Argument::K, args.k)),
            Slot::V => Some((Argument::V, args.v)),
            Slot::Mask => args.mask.map(|region| (Argument::AttnMask, region)),
            Slot::Aux => args.kv_lens.map(|region| (Argument::KvLens, region)),
            Slot::Out => Some((Argument::Out, args.out)),
            Slot::Lse => args.lse.map(|region| (Argument::Lse, region)),
            Slot::Workspace => args.workspace.or_else(own).map(|r| (Argument::Workspace, r)),
        }
    }

    /// What buffers add to the checks of the problem: presence, usage, size, alignment of offsets,
    /// aliasing.
    fn check(&self, args: &Args<'_>) -> Result<(), Error> {
        let problem = &self.problem;
        let (mask, kv_lens) = (args.mask.is_some(), args.kv_lens.is_some());
        check_presence(problem, mask, kv_lens, args.lse.is_some())?;
        for &slot in Slot::ALL {
            if let Some((argument, region)) = self.argument(args, slot) {
                let (bytes, size) = self.extent(slot);
                check_region(argument, region, bytes, size)?;
            }
        }
        let used = || Slot::ALL.iter().filter_map(|&slot| self.argument(args, slot));
        let is_written =
            |argument| matches!(argument, Argument::Out | Argument::Lse | Argument::Workspace);
        for (written, region) in used().filter(|(argument, _)| is_written(*argument)) {
            let shared = |(argument, other): &(Argument, Region<'_>)| {
                *argument != written && other.buffer == region.buffer
            };
            if let Some((other, _)) = used().find(shared) {
                return Err(Error::Aliased { written, other });
            }
        }
        Ok(())
    }

    /// Bytes that the problem needs of an argument, and of one element.
    fn extent(&self, slot: Slot) -> (u64, u64) {
        let problem = &self.problem;
        match slot {
            Slot::Params => (0, 1),
            Slot::Q => extent(problem.q()),
            Slot::K => extent(problem.k()),
            Slot::V => extent(problem.v()),
            Slot::Out => extent(problem.out()),
            Slot::Mask => problem.mask().map_or((0, 1), |mask| {
                (mask.byte_span().map_or(u64::MAX, |n| n as u64), mask.kind.size() as u64)
            }),
            Slot::Aux => (4 * problem.batch() as u64, 4),
            Slot::Lse => (problem.lse_bytes(), 4),
            Slot::Workspace => (self.schedule.workspace_bytes, 4),
        }
    }
}

fn check_region(
    argument: Argument,
    region: Region<'_>,
    bytes: u64,
    size: u64,
) -> Result<(), Error> {
    let Region { buffer, offset, end } = region;
    if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::Usage { argument, expected: "STORAGE", given: buffer.usage() });
    }
    if !offset.is_multiple_of(size) {
        return Err(Error::Misaligned { argument, offset, size });
    }
    let needed = offset.saturating_add(bytes);
    // Bindings are whole words, which may reach beyond the region but not beyond the buffer.
    let word_end = needed.checked_next_multiple_of(4).unwrap_or(u64::MAX);
    let (expected, given) = if needed > end { (needed, end) } else { (word_end, buffer.size()) };
    if bytes > 0 && given < expected {
        let (expected, given) = (expected as usize, given as usize);
        return Err(ProblemError::TooShort { argument, expected, given }.into());
    }
    Ok(())
}
