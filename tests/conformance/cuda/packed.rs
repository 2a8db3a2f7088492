//! Calls whose tensors share allocations, as those of most programs do.

use super::AnyError;
use crate::shared::cases;
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, Call, DType, HostArgs, HostInputs, HostStats,
    PlanOptions, Problem, Timing, Verdict,
};
use flashtile_cuda::{
    Args, Context, Error, Input, Output, Plan,
    cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut},
};
use flashtile_testkit::{Case, cannot_plan};
use std::time::Instant;
use std::{ops::Range, sync::Arc};

/// The bytes around tensors: a NaN in every storage type.
const AROUND: u8 = 0xFF;

/// How a call gets its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// As slices, with an offset into them.
    Offsets,
    /// As views.
    Views,
    /// As addresses.
    Addresses,
}

/// The tensors of a call in two allocations, one that is read and one that is written. Each tensor
/// starts one element after a multiple of 256 bytes, because element alignment is all that a call
/// requires.
pub(super) struct Packed {
    stream: Arc<CudaStream>,
    read: CudaSlice<u8>,
    written: CudaSlice<u8>,
    /// The initial contents of `written`.
    before: Vec<u8>,
    places: Places,
    /// The addresses of both allocations.
    addresses: [u64; 2],
    /// A workspace of the caller's own, and its address.
    scores: Option<(CudaSlice<u8>, u64)>,
    call: Call,
}

/// Byte ranges: of the inputs in `read`, of out and lse in `written`.
#[derive(Clone, PartialEq, Eq)]
struct Places {
    q: Range<usize>,
    k: Range<usize>,
    v: Range<usize>,
    mask: Option<Range<usize>>,
    kv_lens: Option<Range<usize>>,
    out: Range<usize>,
    lse: Option<Range<usize>>,
}

/// Appends `bytes` to `memory`, one element of `size` bytes after a multiple of 256.
fn put(memory: &mut Vec<u8>, bytes: &[u8], size: usize) -> Range<usize> {
    let begin = memory.len().next_multiple_of(256) + size;
    memory.resize(begin, AROUND);
    memory.extend_from_slice(bytes);
    begin..memory.len()
}

/// The contents of both allocations.
fn pack(problem: &Problem, args: &HostArgs<'_>) -> (Vec<u8>, Vec<u8>, Places) {
    let HostInputs { q, k, v, mask, kv_lens, .. } = args.inputs();
    let size = problem.dtype().size();
    let (mut read, mut written) = (Vec::new(), Vec::new());
    let mask_size = problem.mask().map_or(1, |mask| mask.kind.size());
    let places = Places {
        q: put(&mut read, q, size),
        k: put(&mut read, k, size),
        v: put(&mut read, v, size),
        mask: mask.map(|mask| put(&mut read, mask, mask_size)),
        kv_lens: kv_lens.map(|lens| put(&mut read, bytemuck::cast_slice(lens), 4)),
        out: put(&mut written, args.out, size),
        lse: args.lse.as_deref().map(|lse| put(&mut written, bytemuck::cast_slice(lse), 4)),
    };
    written.extend([AROUND; 256]);
    (read, written, places)
}

impl Packed {
    pub(super) fn upload(
        plan: &Plan,
        stream: &Arc<CudaStream>,
        args: &HostArgs<'_>,
    ) -> Result<Self, AnyError> {
        let (read, before, places) = pack(plan.problem(), args);
        let (read, mut written) = (stream.clone_htod(&read)?, stream.clone_htod(&before)?);
        let addresses = [read.device_ptr(stream).0, written.device_ptr_mut(stream).0];
        let (stream, scores, call) = (stream.clone(), None, args.call);
        Ok(Self { stream, read, written, before, places, addresses, scores, call })
    }

    /// Adds a workspace of the caller's own, full of NaN.
    pub(super) fn bring_workspace(&mut self, plan: &Plan) -> Result<(), AnyError> {
        let bytes = usize::try_from(plan.workspace_bytes())?;
        if bytes > 0 {
            let mut scores = self.stream.clone_htod(&vec![AROUND; bytes])?;
            let address = scores.device_ptr_mut(&self.stream).0;
            self.scores = Some((scores, address));
        }
        Ok(())
    }

    /// Writes other inputs of the same sizes to the same places, and resets the outputs.
    pub(super) fn refill(&mut self, plan: &Plan, args: &HostArgs<'_>) -> Result<(), AnyError> {
        let (read, written, places) = pack(plan.problem(), args);
        if places != self.places {
            return Err("the tensors have other sizes".into());
        }
        self.stream.memcpy_htod(&read, &mut self.read)?;
        self.stream.memcpy_htod(&written, &mut self.written)?;
        self.before = written;
        Ok(())
    }

    /// Enqueues one call on the stream of the upload.
    pub(super) fn launch(&mut self, plan: &Plan, given: Given) -> Result<(), Error> {
        let Self {
            stream,
            read,
            written,
            places,
            addresses: [read_at, written_at],
            scores,
            call,
            ..
        } = self;
        let bytes = |place: &Range<usize>| place.len() as u64;
        // SAFETY: this value owns the memory and waits for its stream when it is dropped. All work
        // on the memory is enqueued on that stream.
        let input = |place: &Range<usize>| unsafe {
            Input::from_raw(*read_at + place.start as u64, bytes(place))
        };
        // SAFETY: as above.
        let output = |place: &Range<usize>| unsafe {
            Output::from_raw(*written_at + place.start as u64, bytes(place))
        };
        let own = scores.as_mut();
        let (mut first, mut second) = written.split_at_mut(places.out.end);
        let lse =
            places.lse.clone().map(|lse| lse.start - places.out.end..lse.end - places.out.end);
        match given {
            Given::Offsets => {
                let at = |place: &Range<usize>| Input::from(&*read).offset(place.start as u64);
                let out = Output::from(&mut first).offset(places.out.start as u64);
                let mut args =
                    Args::new(at(&places.q), at(&places.k), at(&places.v), out).call(*call);
                args.mask = places.mask.as_ref().map(at);
                args.kv_lens = places.kv_lens.as_ref().map(at);
                args.lse = lse.map(|lse| Output::from(&mut second).offset(lse.start as u64));
                args.workspace = own.map(|(scores, _)| scores.into());
                plan.launch(stream, &mut args)
            }
            Given::Views => {
                let view = |place: &Range<usize>| read.slice(place.clone());
                let (q, k, v) = (view(&places.q), view(&places.k), view(&places.v));
                let (mask, kv_lens) =
                    (places.mask.as_ref().map(view), places.kv_lens.as_ref().map(view));
                let mut out = first.slice_mut(places.out.clone());
                let mut lse = lse.map(|lse| second.slice_mut(lse));
                let mut args = Args::new(&q, &k, &v, &mut out).call(*call);
                args.mask = mask.as_ref().map(Into::into);
                args.kv_lens = kv_lens.as_ref().map(Into::into);
                args.lse = lse.as_mut().map(Into::into);
                args.workspace = own.map(|(scores, _)| scores.into());
                plan.launch(stream, &mut args)
            }
            Given::Addresses => {
                let mut args = Args::new(
                    input(&places.q),
                    input(&places.k),
                    input(&places.v),
                    output(&places.out),
                )
                .call(*call);
                args.mask = places.mask.as_ref().map(input);
                args.kv_lens = places.kv_lens.as_ref().map(input);
                args.lse = places.lse.as_ref().map(output);
                // SAFETY: as above.
                args.workspace = own.map(|(scores, at)| unsafe {
                    Output::from_raw(*at, scores.num_bytes() as u64)
                });
                plan.launch(stream, &mut args)
            }
        }
    }

    /// Copies the results to `args`. Fails if any other byte of `written` changed, or if the
    /// caller's workspace was not used.
    pub(super) fn download(&self, args: &mut HostArgs<'_>) -> Result<(), AnyError> {
        self.stream.synchronize()?;
        let written = self.stream.clone_dtoh(&self.written)?;
        let Places { out, lse, .. } = &self.places;
        let belongs = |byte: usize| {
            out.contains(&byte) || lse.as_ref().is_some_and(|lse| lse.contains(&byte))
        };
        if let Some(byte) =
            (0..written.len()).find(|&byte| !belongs(byte) && written[byte] != self.before[byte])
        {
            return Err(format!("byte {byte} is of no tensor, and was written").into());
        }
        args.out.copy_from_slice(&written[out.clone()]);
        if let (Some(from), Some(to)) = (lse, &mut args.lse) {
            bytemuck::cast_slice_mut(to).copy_from_slice(&written[from.clone()]);
        }
        let unused = |(scores, _): &(CudaSlice<u8>, u64)| {
            Ok::<_, AnyError>(self.stream.clone_dtoh(scores)?.iter().all(|&byte| byte == AROUND))
        };
        if self.scores.as_ref().map(unused).transpose()? == Some(true) {
            return Err("the caller's workspace was not used".into());
        }
        Ok(())
    }
}

/// cudarc does not know of work that was enqueued by address.
impl Drop for Packed {
    fn drop(&mut self) {
        // An error shows when the results are read.
        let _ = self.stream.synchronize();
    }
}

/// The cases, each in every storage type.
pub(super) fn packed_cases() -> Vec<Case> {
    let lines = DType::ALL.iter().copied().map(|dtype| {
        [
            // Rows whose size is a multiple of 16 bytes and whose addresses are not.
            format!("shape=1x2x70x64 skv=130 dtype={dtype} causal=yes"),
            // q, k and v as the output of one projection, (B, S, 3, H, D); out with gaps.
            format!(
                "shape=2x3x37x24 dtype={dtype} q=7992:24:216:1 k=7992:24:216:1 v=7992:24:216:1 \
                 out=3900:33:105:1"
            ),
            format!(
                "shape=2x4x37x33 hkv=2 skv=77 dv=20 dtype={dtype} out=bsd causal=yes \
                 align=bottom-right softcap=9.0 mask=f32:b1qk+3:blocks kv_lens=random dropout=0.2 \
                 dropout_seed=5 poison=unseen"
            ),
        ]
    });
    cases(lines.into_iter().flatten())
}

/// A backend that packs the tensors, and expects the same bits as from separate allocations.
#[derive(Debug)]
pub(super) struct PackedBackend<'a> {
    pub(super) context: &'a Context,
    pub(super) stream: Arc<CudaStream>,
    pub(super) given: Given,
    pub(super) own_workspace: bool,
}

impl Backend for PackedBackend<'_> {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn device_name(&self) -> String {
        format!("{}, {:?}", self.context.name(), self.given)
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        self.context.verdict(problem, &options.for_tiles())
    }

    fn plan(&self, _: &Problem, _: &PlanOptions) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Err(cannot_plan(BackendKind::Cuda))
    }

    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let start = Instant::now();
        self.run_packed(problem, options, args)
            .map_err(|e| BackendError::new(BackendKind::Cuda, false, e))?;
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, 0))
    }
}

impl PackedBackend<'_> {
    fn run_packed(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        mut args: HostArgs<'_>,
    ) -> Result<(), AnyError> {
        let plan = self.context.plan(problem, &options.for_tiles())?;
        let expected = by_themselves(self.context, &plan, &args)?;
        let mut packed = Packed::upload(&plan, &self.stream, &args)?;
        if self.own_workspace {
            packed.bring_workspace(&plan)?;
        }
        packed.launch(&plan, self.given)?;
        packed.download(&mut args)?;
        same(&expected, &args)
    }
}

/// out and lse of a call with each tensor in an allocation of its own. Does not change `args`.
pub(super) fn by_themselves(
    context: &Context,
    plan: &Plan,
    args: &HostArgs<'_>,
) -> Result<(Vec<u8>, Option<Vec<f32>>), AnyError> {
    let inputs = args.inputs();
    let (mut out, mut lse) = (args.out.to_vec(), args.lse.as_deref().map(<[f32]>::to_vec));
    let mut own = HostArgs::new(inputs.q, inputs.k, inputs.v, &mut out).call(inputs.call);
    own.mask = inputs.mask;
    own.kv_lens = inputs.kv_lens;
    own.lse = lse.as_deref_mut();
    context.run_host(plan, own)?;
    Ok((out, lse))
}

pub(super) fn same(
    expected: &(Vec<u8>, Option<Vec<f32>>),
    args: &HostArgs<'_>,
) -> Result<(), AnyError> {
    let bits =
        |lse: Option<&[f32]>| lse.map(|lse| lse.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    if expected.0 != args.out || bits(expected.1.as_deref()) != bits(args.lse.as_deref()) {
        return Err("other bits than from tensors in memory of their own".into());
    }
    Ok(())
}
