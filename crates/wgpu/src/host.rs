use crate::{
    Args, BufferView, Context, Error, Plan,
    scope::{catch, check_lost},
    timing::Stopwatch,
};
use flashtile_core::{Call, HostArgs, HostStats, Problem, Timing, check_host_args};
use std::sync::{Mutex, PoisonError};
// The standard one panics in a browser; elsewhere this is the standard one.
use web_time::Instant;

/// A call whose tensors were copied from host memory to buffers of its own: upload, run any number of times, read back.
#[derive(Debug)]
pub struct HostRun {
    plan: Plan,
    q: wgpu::Buffer,
    k: wgpu::Buffer,
    v: wgpu::Buffer,
    out: wgpu::Buffer,
    mask: Option<wgpu::Buffer>,
    kv_lens: Option<wgpu::Buffer>,
    lse: Option<wgpu::Buffer>,
    readback: wgpu::Buffer,
    call: Call,
    /// Taken by a run and given back: of two runs at once, one goes by the host's clock. `None` without the feature.
    stopwatch: Mutex<Option<Stopwatch>>,
}

impl Context {
    /// Copies `args` to the device, runs `plan` and copies the results back.
    ///
    /// # Errors
    /// [`Error::Problem`] for arguments, [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn run_host(&self, plan: &Plan, mut args: HostArgs<'_>) -> Result<HostStats, Error> {
        let run = HostRun::upload(plan, &args).await?;
        let took = run.run().await?;
        run.download(&mut args).await?;
        Ok(HostStats { run: took, device_bytes: run.device_bytes() })
    }

    /// As [`run_host`](Self::run_host), blocking.
    ///
    /// # Errors
    /// As [`run_host`](Self::run_host).
    #[cfg(not(target_family = "wasm"))]
    pub fn run_host_blocking(&self, plan: &Plan, args: HostArgs<'_>) -> Result<HostStats, Error> {
        pollster::block_on(self.run_host(plan, args))
    }
}

impl HostRun {
    /// Copies the inputs, and what the output's memory holds, to new buffers.
    ///
    /// # Errors
    /// [`Error::Problem`] for arguments, [`Error::OutOfMemory`].
    pub async fn upload(plan: &Plan, args: &HostArgs<'_>) -> Result<Self, Error> {
        let problem = plan.problem();
        check_host_args(problem, args)?;
        let context = &plan.inner.context;
        let kv_lens = args.kv_lens.map(bytemuck::cast_slice);
        let lse_bytes = lse_bytes(problem);
        let buffers = catch(context.device(), || {
            let upload = |what, bytes: &[u8], span: usize| upload(context, what, &bytes[..span]);
            let span = |view: &flashtile_core::TensorView| view.byte_span().unwrap_or(0);
            let out = upload("out", args.out, span(problem.out()));
            Self {
                plan: plan.clone(),
                q: upload("q", args.q, span(problem.q())),
                k: upload("k", args.k, span(problem.k())),
                v: upload("v", args.v, span(problem.v())),
                mask: args.mask.map(|bytes| {
                    let span = problem.mask().and_then(|mask| mask.byte_span()).unwrap_or(0);
                    upload("attn_mask", bytes, span)
                }),
                kv_lens: kv_lens.map(|bytes: &[u8]| upload("kv_lens", bytes, bytes.len())),
                lse: args.lse.as_deref().map(|lse| {
                    let bytes: &[u8] = bytemuck::cast_slice(lse);
                    upload("lse", bytes, lse_bytes)
                }),
                readback: context.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("flashtile readback"),
                    size: out.size() + lse_bytes as u64,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                }),
                out,
                call: args.call,
                stopwatch: Mutex::new(Stopwatch::new(context.device())),
            }
        });
        let run = buffers
            .await
            .map_err(|caught| caught.about(context.device(), || "the tensors".into()))?;
        check_lost(context.device())?;
        Ok(run)
    }

    /// The buffers, as the arguments of [`Plan::encode`].
    pub fn args(&self) -> Args<'_> {
        Args {
            q: (&self.q).into(),
            k: (&self.k).into(),
            v: (&self.v).into(),
            out: (&self.out).into(),
            mask: self.mask.as_ref().map(BufferView::from),
            kv_lens: self.kv_lens.as_ref().map(BufferView::from),
            lse: self.lse.as_ref().map(BufferView::from),
            call: self.call,
        }
    }

    /// Bytes of device memory: tensors and workspace, without the copy that is read back.
    pub fn device_bytes(&self) -> u64 {
        let optional =
            [&self.mask, &self.kv_lens, &self.lse].into_iter().flatten().map(wgpu::Buffer::size);
        let always = [&self.q, &self.k, &self.v, &self.out].into_iter().map(wgpu::Buffer::size);
        always.chain(optional).sum::<u64>() + self.plan.workspace_bytes()
    }

    /// Runs once, and waits.
    ///
    /// # Errors
    /// Those of [`Plan::encode`], and [`Error::DeviceLost`].
    pub async fn run(&self) -> Result<Timing, Error> {
        let context = &self.plan.inner.context;
        let device = context.device();
        let mut encoder = device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("flashtile") });
        let stopwatch = self.stopwatch.lock().unwrap_or_else(PoisonError::into_inner).take();
        let recorded = self.plan.encode_timed(&mut encoder, &self.args(), stopwatch.as_ref())?;
        let begin = Instant::now();
        catch(device, || context.queue().submit([encoder.finish()]))
            .await
            .map_err(|caught| caught.about(device, || "a submission".into()))?;
        finished(context).await?;
        let host = begin.elapsed();
        let gpu = match &stopwatch {
            Some(stopwatch) if recorded => stopwatch.read(context).await?,
            _ => None,
        };
        *self.stopwatch.lock().unwrap_or_else(PoisonError::into_inner) = stopwatch;
        Ok(Timing { host, gpu })
    }

    /// Copies the results to `args`: `out` between its strides keeps what it held.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub async fn download(&self, args: &mut HostArgs<'_>) -> Result<(), Error> {
        let context = &self.plan.inner.context;
        let device = context.device();
        let lse_bytes = lse_bytes(self.plan.problem());
        let copied = catch(device, || {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("flashtile readback"),
            });
            encoder.copy_buffer_to_buffer(&self.out, 0, &self.readback, 0, self.out.size());
            if let Some(lse) = self.lse.as_ref().filter(|_| lse_bytes > 0) {
                encoder.copy_buffer_to_buffer(
                    lse,
                    0,
                    &self.readback,
                    self.out.size(),
                    lse_bytes as u64,
                );
            }
            context.queue().submit([encoder.finish()]);
        });
        copied.await.map_err(|caught| caught.about(device, || "the results".into()))?;
        let span = self.plan.problem().out().byte_span().unwrap_or(0);
        let lse_begin = self.out.size() as usize;
        read(context, &self.readback, |view| {
            args.out[..span].copy_from_slice(&view[..span]);
            if let Some(lse) = &mut args.lse {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(lse);
                bytes[..lse_bytes].copy_from_slice(&view[lse_begin..lse_begin + lse_bytes]);
            }
        })
        .await
    }
}

fn lse_bytes(problem: &Problem) -> usize {
    if problem.lse() { 4 * problem.lse_shape().iter().product::<usize>() } else { 0 }
}

/// A storage buffer with the first bytes of a tensor, in whole words and never empty.
fn upload(context: &Context, label: &str, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (bytes.len() as u64).max(4).next_multiple_of(4),
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let whole = bytes.len() / 4 * 4;
    if whole > 0 {
        context.queue().write_buffer(&buffer, 0, &bytes[..whole]);
    }
    if whole < bytes.len() {
        let mut last = [0; 4];
        last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        context.queue().write_buffer(&buffer, whole as u64, &last);
    }
    buffer
}

/// Shows `f` what `buffer` holds once all that was submitted before is done.
pub(crate) async fn read(
    context: &Context,
    buffer: &wgpu::Buffer,
    f: impl FnOnce(&[u8]),
) -> Result<(), Error> {
    let device = context.device();
    let (done, mapped) = futures_channel::oneshot::channel();
    let asked = catch(device, || {
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // Nobody listens any more where the caller gave up.
            let _ = done.send(result);
        });
    });
    asked.await.map_err(|caught| caught.about(device, || "a readback".into()))?;
    wait(context)?;
    let lost = |reason: String| Error::DeviceLost(reason);
    mapped.await.map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
    f(&buffer.get_mapped_range(..).map_err(|e| lost(e.to_string()))?);
    buffer.unmap();
    Ok(())
}

async fn finished(context: &Context) -> Result<(), Error> {
    let (done, waiting) = futures_channel::oneshot::channel();
    context.queue().on_submitted_work_done(move || {
        // Nobody listens any more where the caller gave up.
        let _ = done.send(());
    });
    wait(context)?;
    waiting.await.map_err(|e| Error::DeviceLost(e.to_string()))
}

/// Lets the device finish. In a browser it does by itself.
fn wait(context: &Context) -> Result<(), Error> {
    context
        .device()
        .poll(wgpu::PollType::wait_indefinitely())
        .map(|_| ())
        .map_err(|e| Error::DeviceLost(e.to_string()))
}
