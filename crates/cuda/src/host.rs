use crate::{Args, Context, Error, Plan};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, sys::CUevent_flags};
use flashtile_core::{
    Call, HostArgs, HostStats, TensorView, Timing, check_host_args, check_host_outputs,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A call whose tensors were copied from host memory to memory of its own: upload once, run any
/// number of times, download.
#[derive(Debug)]
pub struct HostRun {
    plan: Plan,
    q: CudaSlice<u8>,
    k: CudaSlice<u8>,
    v: CudaSlice<u8>,
    out: CudaSlice<u8>,
    mask: Option<CudaSlice<u8>>,
    kv_lens: Option<CudaSlice<u8>>,
    lse: Option<CudaSlice<u8>>,
    call: Call,
}

impl Context {
    /// Copies `args` to the GPU, runs `plan` on the context's stream and copies the results back.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a plan of another context, [`Error::Problem`] for arguments,
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn run_host(&self, plan: &Plan, mut args: HostArgs<'_>) -> Result<HostStats, Error> {
        if plan.context().cuda() != self.cuda() {
            return Err(Error::OtherContext { what: "the plan".to_owned() });
        }
        let mut uploaded = HostRun::upload(plan, &args)?;
        let run = uploaded.run()?;
        uploaded.download(&mut args)?;
        Ok(HostStats::new(run, uploaded.device_bytes()))
    }
}

impl HostRun {
    /// Copies the inputs, and the contents of the output's memory, to new device memory.
    ///
    /// # Errors
    /// [`Error::Problem`] for arguments, [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn upload(plan: &Plan, args: &HostArgs<'_>) -> Result<Self, Error> {
        let problem = plan.problem();
        check_host_args(problem, args)?;
        let stream = plan.context().stream();
        let tensor =
            |what, bytes: &[u8], view: &TensorView| upload(stream, what, &bytes[..span(view)]);
        let lse_bytes = problem.lse_bytes() as usize;
        let mask_span = problem.mask().and_then(|mask| mask.byte_span()).unwrap_or(0);
        let mask = args.mask.map(|bytes| upload(stream, "attn_mask", &bytes[..mask_span]));
        let kv_lens =
            args.kv_lens.map(|lens| upload(stream, "kv_lens", bytemuck::cast_slice(lens)));
        let lse = args
            .lse
            .as_deref()
            .map(|lse| upload(stream, "lse", &bytemuck::cast_slice(lse)[..lse_bytes]));
        let run = Self {
            plan: plan.clone(),
            q: tensor("q", args.q, problem.q())?,
            k: tensor("k", args.k, problem.k())?,
            v: tensor("v", args.v, problem.v())?,
            out: tensor("out", args.out, problem.out())?,
            mask: mask.transpose()?,
            kv_lens: kv_lens.transpose()?,
            lse: lse.transpose()?,
            call: args.call,
        };
        // The copies read the caller's memory, which is only borrowed until this returns.
        synchronize(stream)?;
        Ok(run)
    }

    /// The tensors, as the arguments of [`Plan::launch`].
    pub fn args(&mut self) -> Args<'_> {
        let mut args = Args::new(&self.q, &self.k, &self.v, &mut self.out).call(self.call);
        args.mask = self.mask.as_ref().map(Into::into);
        args.kv_lens = self.kv_lens.as_ref().map(Into::into);
        args.lse = self.lse.as_mut().map(Into::into);
        args
    }

    /// Bytes of device memory: tensors and workspace.
    pub fn device_bytes(&self) -> u64 {
        let optional = [&self.mask, &self.kv_lens, &self.lse].into_iter().flatten();
        let tensors = [&self.q, &self.k, &self.v, &self.out].into_iter().chain(optional);
        tensors.map(|tensor| tensor.num_bytes() as u64).sum::<u64>() + self.plan.workspace_bytes()
    }

    /// Runs once on the context's stream, and waits.
    ///
    /// # Errors
    /// Those of [`Plan::launch`].
    pub fn run(&mut self) -> Result<Timing, Error> {
        Ok(self.run_times(1)?[0])
    }

    /// Runs `count` times on the context's stream, back to back, and then waits. The GPU does not
    /// wait for the host between runs, which would show in the time of a short kernel. The host's
    /// time is divided evenly.
    ///
    /// # Errors
    /// Those of [`Plan::launch`].
    pub fn run_times(&mut self, count: usize) -> Result<Vec<Timing>, Error> {
        let plan = self.plan.clone();
        let stream = plan.context().stream();
        let failed = |e: DriverError| Error::of_driver(e, "the timing of a run");
        let stamp = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed);
        let start = Instant::now();
        let mut launched = 0;
        let mut stamps = vec![stamp()?];
        for _ in 0..count {
            launched += plan.launch_counted(stream, &mut self.args())?;
            stamps.push(stamp()?);
        }
        synchronize(stream)?;
        let host = start.elapsed() / count.max(1) as u32;
        let timing = |pair: &[CudaEvent]| {
            let ms = pair[0].elapsed_ms(&pair[1]).map_err(failed)?;
            let gpu = (launched > 0).then(|| Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3));
            Ok(Timing::new(host, gpu))
        };
        stamps.windows(2).map(timing).collect()
    }

    /// Copies the results to `args`. The memory of `out` between its strides keeps what it held.
    ///
    /// # Errors
    /// [`Error::Problem`] for missing or short slices, [`Error::DeviceLost`].
    pub fn download(&self, args: &mut HostArgs<'_>) -> Result<(), Error> {
        let problem = self.plan.problem();
        check_host_outputs(problem, args)?;
        let stream = self.plan.context().stream();
        download(stream, &self.out, &mut args.out[..span(problem.out())])?;
        if let (Some(from), Some(to)) = (&self.lse, &mut args.lse) {
            download(
                stream,
                from,
                &mut bytemuck::cast_slice_mut(to)[..problem.lse_bytes() as usize],
            )?;
        }
        synchronize(stream)
    }
}

/// Bytes from the first element to the end of the last. `check_host_args` found as many in each
/// argument.
fn span(view: &TensorView) -> usize {
    view.byte_span().unwrap_or(0)
}

/// Waits for the stream, and reports every error since the last wait.
fn synchronize(stream: &CudaStream) -> Result<(), Error> {
    let failed = |e| Error::of_driver(e, "the work on the stream");
    stream.synchronize().map_err(failed)?;
    // cudarc keeps errors of calls that cannot return one.
    stream.context().check_err().map_err(failed)
}

/// New device memory that holds `bytes`; at least one byte, because empty memory cannot be
/// allocated.
fn upload(stream: &Arc<CudaStream>, what: &str, bytes: &[u8]) -> Result<CudaSlice<u8>, Error> {
    let failed = |e| Error::of_driver(e, format!("{} bytes of {what}", bytes.len()));
    // SAFETY: the copy below writes all of it before anything reads it. The one byte of an empty
    // tensor is never read.
    let mut slice = unsafe { stream.alloc::<u8>(bytes.len().max(1)) }.map_err(failed)?;
    if !bytes.is_empty() {
        stream.memcpy_htod(bytes, &mut slice).map_err(failed)?;
    }
    Ok(slice)
}

fn download(stream: &Arc<CudaStream>, from: &CudaSlice<u8>, to: &mut [u8]) -> Result<(), Error> {
    if to.is_empty() {
        return Ok(());
    }
    let copied = stream.memcpy_dtoh(&from.slice(..to.len()), to);
    copied.map_err(|e| Error::of_driver(e, "the copy of the results"))
}
