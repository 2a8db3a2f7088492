use crate::{
    Args, Context, Error, Plan, Region,
    readback::{finished, read},
    scope::{catch, check_lost},
    timing::Stopwatch,
};
use flashtile_core::{Call, HostArgs, HostStats, Timing, check_host_args, check_host_outputs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
// `std::time::Instant` panics in a browser; elsewhere this is the same type.
use web_time::Instant;

/// A call whose tensors were copied from host memory to buffers of its own: upload once, run any
/// number of times, download.
///
/// It can be shared between threads. Runs write the same output, one after the other.
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
    call: Call,
    /// Buffers to read results through: taken by a download and given back, so that several
    /// downloads at once never map the same one.
    readbacks: Mutex<Vec<wgpu::Buffer>>,
    /// Taken by a run and given back: of two runs at once, one uses the host's clock. `None`
    /// without the feature.
    stopwatch: Mutex<Option<Stopwatch>>,
}

impl Context {
    /// Copies `args` to the device, runs `plan` and copies the results back.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a plan of another context, [`Error::Problem`] for arguments,
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn run_host(&self, plan: &Plan, mut args: HostArgs<'_>) -> Result<HostStats, Error> {
        if !Arc::ptr_eq(&self.inner, &plan.inner.context.inner) {
            return Err(Error::OtherContext);
        }
        let uploaded = HostRun::upload(plan, &args).await?;
        let run = uploaded.run().await?;
        uploaded.download(&mut args).await?;
        Ok(HostStats::new(run, uploaded.device_bytes()))
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
    /// Copies the inputs, and the contents of the output's memory, to new buffers.
    ///
    /// # Errors
    /// [`Error::Problem`] for arguments, [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn upload(plan: &Plan, args: &HostArgs<'_>) -> Result<Self, Error> {
        let problem = plan.problem();
        check_host_args(problem, args)?;
        let context = &plan.inner.context;
        let buffers = catch(context.device(), || {
            let upload = |what, bytes: &[u8], span: Option<usize>| {
                upload(context, what, &bytes[..span.unwrap_or(0)])
            };
            let mask = problem.mask().and_then(|mask| mask.byte_span());
            Self {
                plan: plan.clone(),
                q: upload("q", args.q, problem.q().byte_span()),
                k: upload("k", args.k, problem.k().byte_span()),
                v: upload("v", args.v, problem.v().byte_span()),
                out: upload("out", args.out, problem.out().byte_span()),
                mask: args.mask.map(|bytes| upload("attn_mask", bytes, mask)),
                kv_lens: args.kv_lens.map(|lens| {
                    let bytes: &[u8] = bytemuck::cast_slice(lens);
                    upload("kv_lens", bytes, Some(bytes.len()))
                }),
                lse: args.lse.as_deref().map(|lse| {
                    let bytes: &[u8] = bytemuck::cast_slice(lse);
                    upload("lse", bytes, Some(problem.lse_bytes() as usize))
                }),
                call: args.call,
                readbacks: Mutex::default(),
                stopwatch: Mutex::new(Stopwatch::new(context.device())),
            }
        });
        let what = || "the tensors".into();
        let run = buffers.await.map_err(|caught| caught.about(context.device(), what))?;
        check_lost(context.device())?;
        Ok(run)
    }

    /// As [`upload`](Self::upload), blocking.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    #[cfg(not(target_family = "wasm"))]
    pub fn upload_blocking(plan: &Plan, args: &HostArgs<'_>) -> Result<Self, Error> {
        pollster::block_on(Self::upload(plan, args))
    }

    /// The buffers, as the arguments of [`Plan::encode`].
    pub fn args(&self) -> Args<'_> {
        let mut args = Args::new(&self.q, &self.k, &self.v, &self.out).call(self.call);
        args.mask = self.mask.as_ref().map(Region::from);
        args.kv_lens = self.kv_lens.as_ref().map(Region::from);
        args.lse = self.lse.as_ref().map(Region::from);
        args
    }

    /// Bytes of device memory: tensors and workspace, without the buffers for reading back.
    pub fn device_bytes(&self) -> u64 {
        let optional = [&self.mask, &self.kv_lens, &self.lse].into_iter().flatten();
        let buffers = [&self.q, &self.k, &self.v, &self.out].into_iter().chain(optional);
        buffers.map(wgpu::Buffer::size).sum::<u64>() + self.plan.workspace_bytes()
    }

    /// Runs once, and waits.
    ///
    /// # Errors
    /// Those of [`Plan::submit`], and [`Error::DeviceLost`].
    pub async fn run(&self) -> Result<Timing, Error> {
        self.run_plan(&self.plan).await
    }

    /// As [`run`](Self::run), by another plan of the same problem and context.
    pub(crate) async fn run_plan(&self, plan: &Plan) -> Result<Timing, Error> {
        let context = &plan.inner.context;
        let stopwatch = lock(&self.stopwatch).take();
        let start = Instant::now();
        let any = plan.submit_timed(&self.args(), stopwatch.as_ref())?;
        finished(context).await?;
        let host = start.elapsed();
        let gpu = match &stopwatch {
            Some(stopwatch) if any => stopwatch.read(context).await?,
            _ => None,
        };
        if stopwatch.is_some() {
            *lock(&self.stopwatch) = stopwatch;
        }
        Ok(Timing::new(host, gpu))
    }

    /// Sets every byte of the output to 0xFF, which is NaN in every storage type: rows that no run
    /// writes are then wrong.
    pub(crate) async fn clear_output(&self) -> Result<(), Error> {
        let context = &self.plan.inner.context;
        let bytes = vec![0xFF; self.out.size() as usize];
        let written =
            catch(context.device(), || context.queue().write_buffer(&self.out, 0, &bytes));
        written.await.map_err(|caught| caught.about(context.device(), || "the output".into()))
    }

    /// As [`run`](Self::run), blocking.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    #[cfg(not(target_family = "wasm"))]
    pub fn run_blocking(&self) -> Result<Timing, Error> {
        pollster::block_on(self.run())
    }

    /// Copies the results to `args`. The memory of `out` between its strides keeps what it held.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing or short slices, [`Error::DeviceLost`].
    pub async fn download(&self, args: &mut HostArgs<'_>) -> Result<(), Error> {
        let problem = self.plan.problem();
        check_host_outputs(problem, args)?;
        let context = &self.plan.inner.context;
        let device = context.device();
        let lse_bytes = problem.lse_bytes();
        let free = lock(&self.readbacks).pop();
        let copied = catch(device, || {
            let readback = free.unwrap_or_else(|| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("flashtile readback"),
                    size: self.out.size() + lse_bytes,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            });
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("flashtile readback"),
            });
            encoder.copy_buffer_to_buffer(&self.out, 0, &readback, 0, self.out.size());
            if let Some(lse) = self.lse.as_ref().filter(|_| lse_bytes > 0) {
                encoder.copy_buffer_to_buffer(lse, 0, &readback, self.out.size(), lse_bytes);
            }
            context.queue().submit([encoder.finish()]);
            readback
        });
        let what = || "the results".into();
        let readback = copied.await.map_err(|caught| caught.about(device, what))?;
        let span = problem.out().byte_span().unwrap_or(0);
        let lse_start = self.out.size() as usize;
        read(context, &readback, |view| {
            args.out[..span].copy_from_slice(&view[..span]);
            if let Some(lse) = &mut args.lse {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(lse);
                let results = &view[lse_start..lse_start + lse_bytes as usize];
                bytes[..results.len()].copy_from_slice(results);
            }
        })
        .await?;
        lock(&self.readbacks).push(readback);
        Ok(())
    }

    /// As [`download`](Self::download), blocking.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    #[cfg(not(target_family = "wasm"))]
    pub fn download_blocking(&self, args: &mut HostArgs<'_>) -> Result<(), Error> {
        pollster::block_on(self.download(args))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The contents are whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A storage buffer with the first bytes of a tensor, in whole words and never empty.
fn upload(context: &Context, label: &str, bytes: &[u8]) -> wgpu::Buffer {
    use wgpu::BufferUsages as Usage;
    let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: (bytes.len() as u64).max(4).next_multiple_of(4),
        usage: Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
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
