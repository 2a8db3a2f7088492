//! What an application that owns its device relies on: its own buffers and offsets, encoders and
//! passes, and threads, and errors instead of panics.

use super::backend::WgpuBackend;
use super::{
    Check,
    devices::{device, same_adapter},
};
use crate::shared::{bytes, dense, floats, hold, text};
use flashtile_core::{
    Argument, Call, DType, HostArgs, HostInputs, KernelKind, Mask, MaskKind, Problem, ProblemError,
    Reason, TensorView,
};
use flashtile_wgpu::{Args, Context, Error, PlanOptions, Region, wgpu};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 11] = [
    ("a call of very many dispatches", many_dispatches),
    ("a masked NaN changes no bit", masked_nan_bits),
    ("packed q, k and v in one buffer, two plans in one pass", packed_in_one_pass),
    ("a decode loop plans once", decode_loop),
    ("a plan outlives released pipelines", released_pipelines),
    ("threads share a plan", threads),
    ("lengths on the device are clamped", device_kv_lens),
    ("bad buffers are typed errors", bad_buffers),
    ("thousands of calls are recorded at once", many_recorded_calls),
    ("kernels that do not fit are refused", refused),
    ("small bindings and grids split the work", small_limits),
];

pub(super) fn buffer(context: &Context, contents: &[u8], usage: Usage) -> wgpu::Buffer {
    let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("test"),
        size: contents.len().max(4).next_multiple_of(4) as u64,
        usage: usage | Usage::COPY_DST | Usage::COPY_SRC,
        mapped_at_creation: false,
    });
    context.queue().write_buffer(&buffer, 0, contents);
    buffer
}

pub(super) fn read(context: &Context, source: &wgpu::Buffer) -> Result<Vec<u8>, String> {
    let copy = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("test readback"),
        size: source.size(),
        usage: Usage::MAP_READ | Usage::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(source, 0, &copy, 0, source.size());
    context.queue().submit([encoder.finish()]);
    copy.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapping what was just made"));
    context.device().poll(wgpu::PollType::wait_indefinitely()).map_err(text)?;
    let view = copy.get_mapped_range(..).map_err(text)?;
    Ok(view.to_vec())
}

/// One buffer (S, 3, H, D) at an odd offset, as a fused projection writes it. Two problems are
/// recorded into one pass.
fn packed_in_one_pass(context: &Context) -> Result<(), String> {
    let (heads, seq, dim, lead) = (3, 37, 12, 5);
    let packed = floats(1, lead + seq * 3 * heads * dim);
    let view = TensorView::strided(
        DType::F32,
        [1, heads, seq, dim],
        [seq * 3 * heads * dim, dim, 3 * heads * dim, 1],
    );
    let host = bytes(&packed);
    let gpu = buffer(context, &host, Usage::STORAGE);
    let at = |n: usize| Region::from(&gpu).offset(4 * (lead + n * heads * dim) as u64);
    let mut runs = Vec::new();
    for causal in [false, true] {
        let problem = Problem::builder(view, view, view)
            .causal(causal)
            .out(dense(view.shape))
            .build()
            .map_err(text)?;
        let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
        let out = buffer(context, &vec![0xAA; 4 * heads * seq * dim], Usage::STORAGE);
        runs.push((problem, plan, out));
    }
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for (_, plan, out) in &runs {
            plan.encode_in_pass(&mut pass, &Args::new(at(0), at(1), at(2), out)).map_err(text)?;
        }
    }
    context.queue().submit([encoder.finish()]);
    for (problem, _, out) in &runs {
        let from = |n: usize| &host[4 * (lead + n * heads * dim)..];
        let inputs = HostInputs::new(from(0), from(1), from(2));
        hold(problem, &inputs, &read(context, out)?)?;
    }
    Ok(())
}

/// A cache of fixed capacity fills token by token. One plan suffices, and no call compiles a
/// pipeline. The device is the test's own, because other tests compile on the shared one.
fn decode_loop(context: &Context) -> Result<(), String> {
    let context = &device(&same_adapter(context)?, wgpu::Limits::default())?;
    let (heads, capacity, dim) = (2, 70, 16);
    let kv = dense([1, heads, capacity, dim]);
    let q = dense([1, heads, 1, dim]);
    let problem =
        Problem::builder(q, kv, kv).causal(true).align(flashtile_core::Align::BottomRight).build();
    let problem = problem.map_err(text)?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let pipelines = context.pipeline_count();
    let [q, k, v] = [1, 2, 3].map(|seed| bytes(&floats(seed, heads * capacity * dim)));
    let [gpu_q, gpu_k, gpu_v] = [&q, &k, &v].map(|host| buffer(context, host, Usage::STORAGE));
    let out = buffer(context, &vec![0; 4 * heads * dim], Usage::STORAGE);
    for filled in [1, 2, 31, 32, 33, 64, 70] {
        let call = Call::new().seq_kv(filled);
        let mut encoder =
            context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode(&mut encoder, &Args::new(&gpu_q, &gpu_k, &gpu_v, &out).call(call))
            .map_err(text)?;
        context.queue().submit([encoder.finish()]);
        let inputs = HostInputs::new(&q, &k, &v).call(call);
        hold(&problem, &inputs, &read(context, &out)?)
            .map_err(|e| format!("{filled} keys: {e}"))?;
    }
    if context.pipeline_count() == pipelines {
        Ok(())
    } else {
        Err("the loop compiled again".into())
    }
}

/// A context can drop its pipelines. An old plan keeps its own and still runs, and a new plan
/// compiles again. The device is the test's own, because other tests compile on the shared one.
fn released_pipelines(context: &Context) -> Result<(), String> {
    let context = &device(&same_adapter(context)?, wgpu::Limits::default())?;
    let view = dense([1, 2, 33, 8]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    let host = bytes(&floats(12, 2 * 33 * 8));
    let inputs = HostInputs::new(&host, &host, &host);
    let old = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let compiled = context.pipeline_count();
    context.release_pipelines();
    let released = context.pipeline_count();
    if compiled == 0 || released != 0 {
        return Err(format!("{compiled} pipelines before the release, {released} after it"));
    }
    let new = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    if context.pipeline_count() != compiled {
        return Err(format!("a new plan compiled {} pipelines", context.pipeline_count()));
    }
    for plan in [&old, &new] {
        let mut out = vec![0; host.len()];
        let args = HostArgs::new(&host, &host, &host, &mut out);
        context.run_host_blocking(plan, args).map_err(text)?;
        hold(&problem, &inputs, &out)?;
    }
    Ok(())
}

fn threads(context: &Context) -> Result<(), String> {
    let view = dense([1, 2, 33, 8]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let host = bytes(&floats(4, 2 * 33 * 8));
    let input = buffer(context, &host, Usage::STORAGE);
    let results: Vec<Result<Vec<u8>, String>> = std::thread::scope(|scope| {
        let run = || {
            let out = buffer(context, &vec![0; host.len()], Usage::STORAGE);
            let mut encoder =
                context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.encode(&mut encoder, &Args::new(&input, &input, &input, &out)).map_err(text)?;
            context.queue().submit([encoder.finish()]);
            read(context, &out)
        };
        let running: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let inputs = HostInputs::new(&host, &host, &host);
    for result in &results {
        let result = result.as_ref().map_err(Clone::clone)?;
        hold(&problem, &inputs, result)?;
        if Some(result) != results[0].as_ref().ok() {
            return Err("two threads got different bits".into());
        }
    }
    Ok(())
}

/// The host cannot check lengths that only the device knows: -3 counts as 0, and 1000 as all keys.
fn device_kv_lens(context: &Context) -> Result<(), String> {
    let view = dense([3, 1, 9, 8]);
    let problem = Problem::builder(view, view, view).kv_lens(true).build().map_err(text)?;
    let host = bytes(&floats(5, 3 * 9 * 8));
    let lens = |lens: [i32; 3]| lens.into_iter().flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    let (input, gpu_lens) = (
        buffer(context, &host, Usage::STORAGE),
        buffer(context, &lens([-3, 1000, 5]), Usage::STORAGE),
    );
    for &kernel in KernelKind::ALL {
        let plan =
            context.plan_blocking(&problem, &PlanOptions::new().kernel(kernel)).map_err(text)?;
        let out = buffer(context, &vec![0xAA; host.len()], Usage::STORAGE);
        let mut encoder =
            context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode(&mut encoder, &Args::new(&input, &input, &input, &out).kv_lens(&gpu_lens))
            .map_err(text)?;
        context.queue().submit([encoder.finish()]);
        let inputs = HostInputs::new(&host, &host, &host).kv_lens(&[0, 9, 5]);
        hold(&problem, &inputs, &read(context, &out)?)?;
    }
    Ok(())
}

fn bad_buffers(context: &Context) -> Result<(), String> {
    let view = dense([1, 1, 8, 8]);
    let mask = Mask::contiguous(MaskKind::Bool, &[8, 8]).map_err(text)?;
    let plain = Problem::builder(view, view, view).build().map_err(text)?;
    let full = Problem::builder(view, view, view)
        .mask(mask)
        .lse(true)
        .kv_lens(true)
        .build()
        .map_err(text)?;
    let [plain, full] = [plain, full]
        .map(|problem| context.plan_blocking(&problem, &PlanOptions::new()).map_err(text));
    let (plain, full) = (plain?, full?);
    let make = |size: usize, usage| buffer(context, &vec![0; size], usage);
    let (x, out, short) =
        (make(256, Usage::STORAGE), make(256, Usage::STORAGE), make(252, Usage::STORAGE));
    let uniform = make(256, Usage::UNIFORM);
    let (lse, lens) = (make(32, Usage::STORAGE), make(4, Usage::STORAGE));
    let args = || Args::new(&x, &x, &x, &out);
    let whole = || args().mask(&x).lse(&lse).kv_lens(&lens);
    let missing = |argument| Error::Problem(ProblemError::Missing { argument });
    let cases = [
        (
            &plain,
            {
                let mut args = args();
                args.q = (&out).into();
                args
            },
            Error::Aliased { written: Argument::Out, other: Argument::Q },
        ),
        (&full, whole().lse(&out), Error::Aliased { written: Argument::Out, other: Argument::Lse }),
        (&full, whole().lse(&x), Error::Aliased { written: Argument::Lse, other: Argument::Q }),
        (
            &plain,
            {
                let mut args = args();
                args.v = (&short).into();
                args
            },
            ProblemError::TooShort { argument: Argument::V, expected: 256, given: 252 }.into(),
        ),
        (
            &plain,
            {
                let mut args = args();
                args.k = Region::from(&x).offset(4);
                args
            },
            ProblemError::TooShort { argument: Argument::K, expected: 260, given: 256 }.into(),
        ),
        (
            &plain,
            {
                let mut args = args();
                args.k = Region::from(&x).offset(u64::MAX - 3);
                args
            },
            ProblemError::TooShort { argument: Argument::K, expected: usize::MAX, given: 256 }
                .into(),
        ),
        (
            &plain,
            {
                let mut args = args();
                args.q = Region::from(&x).offset(2);
                args
            },
            Error::Misaligned { argument: Argument::Q, offset: 2, size: 4 },
        ),
        (
            &plain,
            {
                let mut args = args();
                args.k = (&uniform).into();
                args
            },
            Error::Usage { argument: Argument::K, expected: "STORAGE", given: uniform.usage() },
        ),
        (&plain, args().lse(&lse), ProblemError::Unexpected { argument: Argument::Lse }.into()),
        (
            &full,
            {
                let mut args = whole();
                args.mask = None;
                args
            },
            missing(Argument::AttnMask),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.kv_lens = None;
                args
            },
            missing(Argument::KvLens),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = None;
                args
            },
            missing(Argument::Lse),
        ),
        (
            &plain,
            args().call(Call::new().seq_kv(9)),
            ProblemError::BeyondCapacity { axis: "seq_kv", capacity: 8, given: 9 }.into(),
        ),
    ];
    for (plan, args, expected) in cases {
        let mut encoder =
            context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        match plan.encode(&mut encoder, &args) {
            Err(error) if error == expected => {}
            other => return Err(format!("expected {expected:?}, got {other:?}")),
        }
    }
    let nan = args().call(Call::new().scale(f32::NAN));
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    match plain.encode(&mut encoder, &nan) {
        Err(Error::Problem(ProblemError::Scale { .. })) => Ok(()),
        other => Err(format!("a NaN scale gave {other:?}")),
    }
}

/// The number of calls that wait for their submission is not limited. Every call of a long
/// recording has its own parameters here; the last one is checked, because they share an output.
fn many_recorded_calls(context: &Context) -> Result<(), String> {
    let (rows, dim) = (5000, 4);
    let view = dense([1, 1, 1, dim]);
    let kv = dense([1, 1, rows, dim]);
    let problem = Problem::builder(view, kv, kv).build().map_err(text)?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let (q, k) = (bytes(&floats(9, dim)), bytes(&floats(10, rows * dim)));
    let [gpu_q, gpu_k] = [&q, &k].map(|host| buffer(context, host, Usage::STORAGE));
    let out = buffer(context, &vec![0; 4 * dim], Usage::STORAGE);
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for keys in 1..=rows {
            let call = Call::new().seq_kv(keys);
            let args = Args::new(&gpu_q, &gpu_k, &gpu_k, &out).call(call);
            plan.encode_in_pass(&mut pass, &args).map_err(text)?;
        }
    }
    context.queue().submit([encoder.finish()]);
    let inputs = HostInputs::new(&q, &k, &k);
    hold(&problem, &inputs, &read(context, &out)?)?;
    // An encoder that is dropped without a submission releases everything.
    for _ in 0..3 {
        let mut encoder =
            context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for keys in 1..=rows {
            let args = Args::new(&gpu_q, &gpu_k, &gpu_k, &out).call(Call::new().seq_kv(keys));
            plan.encode(&mut encoder, &args).map_err(text)?;
        }
    }
    Ok(())
}

fn refused(context: &Context) -> Result<(), String> {
    let view = dense([1, 1, 2, 600]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    match context.plan_blocking(&problem, &PlanOptions::new().kernel(KernelKind::Flash)) {
        Err(Error::Refused { reasons, .. })
            if matches!(reasons[..], [Reason::Axis { given: 600, .. }]) => {}
        other => return Err(format!("head_dim_v 600 gave {other:?}")),
    }
    // If no kernel is forced, the plan takes the one that runs, and says why.
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    match plan.rationale().first() {
        Some(reason)
            if plan.kernel() == KernelKind::Unfused && reason.contains("head_dim_v is 600") =>
        {
            Ok(())
        }
        other => Err(format!("{:?} because {other:?}", plan.kernel())),
    }
}

/// A device that binds at most 64 KiB and dispatches at most 16 workgroups per axis: the plan
/// splits the problem, and the results stay within the bound.
fn small_limits(context: &Context) -> Result<(), String> {
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 64 << 10,
        max_compute_workgroups_per_dimension: 16,
        ..wgpu::Limits::default()
    };
    let small = WgpuBackend::new(device(&same_adapter(context)?, limits)?, "small");
    for line in [
        "shape=3x4x90x32 hkv=2 skv=200 causal=yes mask=f32:bhqk:blocks kv_lens=random",
        "shape=3x4x90x32 hkv=2 skv=200 q=bsd k=hbsd dtype=f16",
    ] {
        let case: flashtile_testkit::Case = line.parse().map_err(text)?;
        for &kernel in KernelKind::ALL {
            flashtile_testkit::run_case(&small, kernel, &case).map_err(text)?;
            let plan = small
                .context()
                .plan_blocking(&case.problem().map_err(text)?, &PlanOptions::new().kernel(kernel));
            if plan.map_err(text)?.dispatches().len() < 2 {
                return Err("64 KiB bindings did not split the problem".into());
            }
        }
    }
    Ok(())
}

/// More dispatches than the slots that plans share: bindings of 6 KiB split a small problem into
/// thousands.
fn many_dispatches(context: &Context) -> Result<(), String> {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 6 << 10, ..wgpu::Limits::default() };
    let context = device(&same_adapter(context)?, limits)?;
    let view = dense([700, 2, 40, 1]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let plan = context
        .plan_blocking(&problem, &PlanOptions::new().kernel(KernelKind::Unfused))
        .map_err(text)?;
    if plan.dispatches().len() < 2096 {
        return Err(format!("only {} dispatches", plan.dispatches().len()));
    }
    let host = bytes(&floats(6, 700 * 2 * 40));
    let mut out = vec![0; host.len()];
    let inputs = HostInputs::new(&host, &host, &host);
    let args = HostArgs::new(&host, &host, &host, &mut out);
    context.run_host_blocking(&plan, args).map_err(text)?;
    hold(&problem, &inputs, &out)
}

/// Guarantee 3 to the bit: the values of a masked V have no effect, neither in the quick sums nor
/// in the careful ones.
fn masked_nan_bits(context: &Context) -> Result<(), String> {
    let view = dense([1, 1, 40, 8]);
    let mask = Mask::contiguous(MaskKind::Bool, &[40]).map_err(text)?;
    let problem = Problem::builder(view, view, view).mask(mask).build().map_err(text)?;
    let qk = bytes(&floats(7, 40 * 8));
    let allowed: Vec<u8> = (0..40).map(|j| u8::from(j % 3 != 1)).collect();
    for &kernel in KernelKind::ALL {
        let plan =
            context.plan_blocking(&problem, &PlanOptions::new().kernel(kernel)).map_err(text)?;
        let results: Vec<Vec<u8>> = [7.0, f32::NAN]
            .into_iter()
            .map(|masked| {
                let mut v = floats(8, 40 * 8);
                for (n, x) in v.iter_mut().enumerate().filter(|(n, _)| n / 8 % 3 == 1) {
                    *x = masked * (1 + n) as f32;
                }
                let (v, mut out) = (bytes(&v), vec![0; qk.len()]);
                let args = HostArgs::new(&qk, &qk, &v, &mut out).mask(&allowed);
                context.run_host_blocking(&plan, args).map_err(text).map(|_| out)
            })
            .collect::<Result<_, _>>()?;
        if results[0] != results[1] {
            return Err(format!("{kernel}: different bits"));
        }
    }
    Ok(())
}
