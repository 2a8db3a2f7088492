//! Tests of streams and contexts of the caller, and of the order of calls.

use super::backend::CudaBackend;
use super::{
    AnyError, Check, numbers,
    packed::{Given, Packed, by_themselves, packed_cases, same},
};
use crate::shared::{bytes, cases, dense, floats, hold, run_all};
use flashtile_core::{Align, Call, DType, HostInputs, KernelKind, Layout, Problem, TensorView};
use flashtile_cuda::{
    Args, Context, Plan, PlanOptions,
    cudarc::driver::{
        CudaContext,
        sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
    },
};
use flashtile_testkit::Case;
use std::thread;

pub(super) const CHECKS: [(&str, Check); 6] = [
    ("a context of the caller's own", own_context),
    ("one plan feeds another, on one stream and across two", chained),
    ("threads with streams of their own share a plan", threads),
    ("a decode loop plans once", decode_loop),
    ("lengths on the GPU are clamped", device_kv_lens),
    ("a graph is replayed", graph),
];

fn both_kernels() -> [PlanOptions; 2] {
    [KernelKind::Flash, KernelKind::Unfused].map(|kernel| PlanOptions::new().kernel(kernel))
}

/// A context that is not the primary one, and a stream that is not the default one.
fn own_context(context: &Context) -> Result<(), AnyError> {
    let stream = CudaContext::new_non_primary(context.cuda().ordinal(), 0)?.new_stream()?;
    let gpu = CudaBackend::new(Context::new(stream)?);
    let cases = cases([
        "shape=2x4x39x24 hkv=2 skv=141 causal=yes align=2 mask=f32:b11k:blocks kv_lens=random",
        "shape=1x2x130x64 dtype=f16 causal=yes",
    ]);
    KernelKind::ALL.iter().copied().try_for_each(|kernel| run_all(&gpu, kernel, &cases))?;
    Ok(())
}

/// The output of the first plan is the query of the second, and the host does not wait in between.
/// On one stream the calls run in order; across two streams cudarc's events order them.
fn chained(context: &Context) -> Result<(), AnyError> {
    let view = dense([2, 2, 300, 32]);
    let first = Problem::builder(view, view, view).causal(true).build()?;
    let second = Problem::builder(view, view, view).softcap(10.0).build()?;
    let [x, k, v] = [1, 2, 3].map(|seed| floats(seed, 2 * 2 * 300 * 32));
    let streams = [context.cuda().new_stream()?, context.cuda().new_stream()?];
    for options in both_kernels() {
        let plans = [context.plan(&first, &options)?, context.plan(&second, &options)?];
        for after in [&streams[0], &streams[1]] {
            let stream = &streams[0];
            let (gpu_x, gpu_k, gpu_v) =
                (stream.clone_htod(&x)?, stream.clone_htod(&k)?, stream.clone_htod(&v)?);
            // Each round writes it again while the other stream may still read it.
            let mut between = stream.alloc_zeros::<f32>(x.len())?;
            let mut out = after.alloc_zeros::<f32>(x.len())?;
            for _ in 0..5 {
                plans[0].launch(stream, &mut Args::new(&gpu_x, &gpu_k, &gpu_v, &mut between))?;
                plans[1].launch(after, &mut Args::new(&between, &gpu_v, &gpu_k, &mut out))?;
            }
            let out = after.clone_dtoh(&out)?;
            let between = stream.clone_dtoh(&between)?;
            let [x, k, v, between, out] = [&x, &k, &v, &between, &out].map(|floats| bytes(floats));
            let inputs = |q, k, v| HostInputs::new(q, k, v);
            hold(&first, &inputs(&x, &k, &v), &between)
                .map_err(|e| format!("the first plan: {e}"))?;
            hold(&second, &inputs(&between, &v, &k), &out)
                .map_err(|e| format!("the second plan: {e}"))?;
        }
    }
    Ok(())
}

/// Each thread has inputs of its own, so that interleaved calls would show, also those that share
/// the plan's one workspace.
fn threads(context: &Context) -> Result<(), AnyError> {
    let view = dense([1, 2, 150, 24]);
    let problem = Problem::builder(view, view, view).causal(true).build()?;
    for options in both_kernels() {
        let plan = context.plan(&problem, &options)?;
        thread::scope(|scope| {
            let begin = |seed| {
                let plan = &plan;
                scope.spawn(move || in_a_thread(plan, seed))
            };
            let running = [10, 20, 30, 40].map(begin);
            running.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}

/// Ten calls in a row, without waiting in between.
fn in_a_thread(plan: &Plan, seed: u64) -> Result<(), AnyError> {
    let problem = plan.problem();
    let stream = plan.context().cuda().new_stream()?;
    let count = problem.q().shape.iter().product();
    let host = [0, 1, 2].map(|n| floats(seed + n, count));
    let [q, k, v] = [&host[0], &host[1], &host[2]].map(|floats| stream.clone_htod(floats));
    let (q, k, v) = (q?, k?, v?);
    let mut outs =
        (0..10).map(|_| stream.alloc_zeros::<f32>(count)).collect::<Result<Vec<_>, _>>()?;
    for out in &mut outs {
        plan.launch(&stream, &mut Args::new(&q, &k, &v, out))?;
    }
    let outs = outs
        .iter()
        .map(|out| stream.clone_dtoh(out).map(|out| bytes(&out)))
        .collect::<Result<Vec<_>, _>>()?;
    let [q, k, v] = host.map(|floats| bytes(&floats));
    let inputs = HostInputs::new(&q, &k, &v);
    hold(problem, &inputs, &outs[0])?;
    if outs.iter().any(|out| *out != outs[0]) {
        return Err("calls in threads gave other bits".into());
    }
    Ok(())
}

/// A key-value cache of fixed capacity fills token by token. One plan serves all tokens, nothing is
/// compiled after it, and the memory after the last token is NaN. All tokens together are causal
/// attention.
fn decode_loop(context: &Context) -> Result<(), AnyError> {
    // A context of its own counts its own kernels.
    let context = &Context::new(context.stream().clone())?;
    let stream = context.stream();
    let (heads, kv_heads, capacity, dim) = (4, 2, 70, 64);
    for &dtype in DType::ALL {
        let view =
            |heads, seq| TensorView::from_bhsd_sizes(dtype, Layout::Bshd, [1, heads, seq, dim]);
        let (one, all, cache) =
            (view(heads, 1)?, view(heads, capacity)?, view(kv_heads, capacity)?);
        let step = Problem::builder(one, cache, cache)
            .out(one)
            .causal(true)
            .align(Align::BottomRight)
            .build()?;
        let together = Problem::builder(all, cache, cache).out(all).causal(true).build()?;
        let [q, k, v] = [(1, heads), (2, kv_heads), (3, kv_heads)]
            .map(|(seed, n)| numbers(dtype, seed, capacity * n * dim));
        let (row, kv_row) = (heads * dim * dtype.size(), kv_heads * dim * dtype.size());
        let inputs = HostInputs::new(&q, &k, &v);
        for options in both_kernels() {
            let plan = context.plan(&step, &options)?;
            let kernels = context.kernel_count();
            let gpu_q = stream.clone_htod(&q)?;
            let nan = vec![0xFF_u8; k.len()];
            let (mut gpu_k, mut gpu_v) = (stream.clone_htod(&nan)?, stream.clone_htod(&nan)?);
            let mut out = stream.clone_htod(&vec![0xFF_u8; q.len()])?;
            for token in 0..capacity {
                let (at, kv_at) =
                    (token * row..(token + 1) * row, token * kv_row..(token + 1) * kv_row);
                stream.memcpy_htod(&k[kv_at.clone()], &mut gpu_k.slice_mut(kv_at.clone()))?;
                stream.memcpy_htod(&v[kv_at.clone()], &mut gpu_v.slice_mut(kv_at))?;
                let call = Call::new().seq_kv(token + 1);
                let (of_token, mut place) = (gpu_q.slice(at.clone()), out.slice_mut(at));
                plan.launch(
                    stream,
                    &mut Args::new(&of_token, &gpu_k, &gpu_v, &mut place).call(call),
                )?;
            }
            hold(&together, &inputs, &stream.clone_dtoh(&out)?)
                .map_err(|e| format!("{plan}: {e}"))?;
            if context.kernel_count() != kernels {
                return Err("the loop compiled again".into());
            }
        }
    }
    Ok(())
}

/// The host cannot check lengths in device memory: kernels use 0 for a negative length, and all
/// keys of the call for a length that is too large.
fn device_kv_lens(context: &Context) -> Result<(), AnyError> {
    let stream = context.stream();
    let (lens, capacity) = ([-3, 1000, 5, i32::MIN, i32::MAX, 33], 75);
    for &dtype in DType::ALL {
        let view = |seq| TensorView::from_bhsd_sizes(dtype, Layout::Bhsd, [lens.len(), 2, seq, 24]);
        let (q, kv) = (view(19)?, view(capacity)?);
        let problem = Problem::builder(q, kv, kv)
            .causal(true)
            .align(Align::BottomRight)
            .kv_lens(true)
            .build()?;
        let [q, k, v] = [(1, 19), (2, capacity), (3, capacity)]
            .map(|(seed, seq)| numbers(dtype, seed, lens.len() * 2 * seq * 24));
        let [gpu_q, gpu_k, gpu_v] = [&q, &k, &v].map(|host| stream.clone_htod(host));
        let (gpu_q, gpu_k, gpu_v, gpu_lens) = (gpu_q?, gpu_k?, gpu_v?, stream.clone_htod(&lens)?);
        for options in both_kernels() {
            let plan = context.plan(&problem, &options)?;
            for filled in [1, 20, capacity] {
                let call = Call::new().seq_kv(filled);
                let mut out = stream.clone_htod(&vec![0xFF_u8; q.len()])?;
                plan.launch(
                    stream,
                    &mut Args::new(&gpu_q, &gpu_k, &gpu_v, &mut out).kv_lens(&gpu_lens).call(call),
                )?;
                let clamped = lens.map(|len| len.clamp(0, filled as i32));
                let inputs = HostInputs::new(&q, &k, &v).kv_lens(&clamped).call(call);
                hold(&problem, &inputs, &stream.clone_dtoh(&out)?)
                    .map_err(|e| format!("{filled} keys, {plan}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// A call is captured once and replayed with other contents in the same memory, including lengths
/// and masks. It gives the same bits as separate launches.
fn graph(context: &Context) -> Result<(), AnyError> {
    for &kernel in KernelKind::ALL {
        for case in packed_cases() {
            for given in [Given::Addresses, Given::Views, Given::Offsets] {
                let replayed = replay(context, kernel, &case, given, false).and_then(|()| {
                    if kernel == KernelKind::Unfused {
                        replay(context, kernel, &case, given, true)
                    } else {
                        Ok(())
                    }
                });
                replayed.map_err(|e| format!("{kernel}, {given:?}, {case}: {e}"))?;
            }
        }
    }
    Ok(())
}

fn replay(
    context: &Context,
    kernel: KernelKind,
    case: &Case,
    given: Given,
    own_workspace: bool,
) -> Result<(), AnyError> {
    let stream = context.cuda().new_stream()?;
    let problem = case.problem()?;
    let plan = context.plan(&problem, &PlanOptions::new().kernel(kernel))?;
    let mut out = vec![0xFF; problem.out().byte_span().ok_or("too large")?];
    let before = out.clone();
    let mut lse = problem.lse().then(|| vec![f32::NAN; problem.lse_shape().iter().product()]);
    let mut packed =
        Packed::upload(&plan, &stream, &case.build()?.args(&mut out, lse.as_deref_mut()))?;
    if own_workspace {
        packed.bring_workspace(&plan)?;
    }
    stream.synchronize()?;
    // End the capture after an error too: otherwise the stream could not be used any more.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let launched = packed.launch(&plan, given);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched?;
    let graph = graph?.ok_or("nothing was captured")?;
    for seed in 1..4 {
        let tensors = Case { seed, ..case.clone() }.build()?;
        out.copy_from_slice(&before);
        let mut args = tensors.args(&mut out, lse.as_deref_mut());
        let expected = by_themselves(context, &plan, &args)?;
        packed.refill(&plan, &args)?;
        graph.launch()?;
        packed.download(&mut args)?;
        same(&expected, &args)?;
    }
    Ok(())
}
