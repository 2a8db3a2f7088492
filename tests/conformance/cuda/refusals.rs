//! Every mistake in a call's memory is a typed error, and nothing is launched.

use super::{AnyError, Check};
use crate::shared::dense;
use flashtile_core::{Argument, Call, KernelKind, Mask, MaskKind, Problem, ProblemError, Reason};
use flashtile_cuda::{
    Args, Context, Error, Input, Output, Plan, PlanOptions,
    cudarc::driver::{CudaContext, DevicePtr},
};

pub(super) const CHECKS: [(&str, Check); 3] = [
    ("bad memory is a typed error", bad_memory),
    ("memory of another CUDA context is an error", foreign_memory),
    ("kernels that do not fit are refused", refused),
];

/// The contents of `out`, which no refused call changes.
const BEFORE: f32 = 9.0;

fn bad_memory(context: &Context) -> Result<(), AnyError> {
    let stream = context.stream();
    let view = dense([1, 1, 8, 8]);
    let plain = Problem::builder(view, view, view).build()?;
    let mask = Mask::contiguous(MaskKind::Bool, &[8, 8])?;
    let full = Problem::builder(view, view, view).mask(mask).lse(true).kv_lens(true).build()?;
    let plan = |problem, kernel| context.plan(problem, &PlanOptions::new().kernel(kernel));
    let (flash, full) = (plan(&plain, KernelKind::Flash)?, plan(&full, KernelKind::Flash)?);
    let unfused = plan(&plain, KernelKind::Unfused)?;
    let (x, lens) = (stream.clone_htod(&[0_f32; 64])?, stream.clone_htod(&[8])?);
    let mut out = stream.clone_htod(&[BEFORE; 64])?;
    let mut scores = stream.clone_htod(&[BEFORE; 68])?;
    let (x_at, out_at) = (x.device_ptr(stream).0, out.device_ptr(stream).0);
    let (lens_at, scores_at) = (lens.device_ptr(stream).0, scores.device_ptr(stream).0);
    stream.synchronize()?;

    // Arguments by address can overlap and start anywhere.
    // SAFETY: every call is refused before anything uses the memory.
    let at = |address, bytes| unsafe { Input::from_raw(address, bytes) };
    // SAFETY: as above.
    let to = |address, bytes| unsafe { Output::from_raw(address, bytes) };
    let args = || Args::new(at(x_at, 256), at(x_at, 256), at(x_at, 256), to(out_at, 256));
    let whole = || args().mask(at(x_at, 64)).kv_lens(at(lens_at, 4)).lse(to(scores_at, 32));
    let aliased = |written, other| Error::Aliased { written, other };
    let misaligned = |argument, address, size| Error::Misaligned { argument, address, size };
    let short = |argument, expected, given| {
        Error::from(ProblemError::TooShort { argument, expected, given })
    };
    let missing = |argument| Error::from(ProblemError::Missing { argument });
    let beyond = Call::new().seq_kv(9);
    use Argument::{AttnMask, K, KvLens, Lse, Out, Q, V, Workspace};
    let cases = [
        (
            &flash,
            {
                let mut args = args();
                args.out = to(x_at, 256);
                args
            },
            aliased(Out, Q),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.v = at(out_at + 252, 256);
                args
            },
            aliased(Out, V),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = Some(to(out_at + 224, 32));
                args
            },
            aliased(Out, Lse),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = Some(to(x_at + 64, 32));
                args
            },
            aliased(Lse, Q),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = Some(to(lens_at, 32));
                args
            },
            aliased(Lse, KvLens),
        ),
        (&unfused, args().workspace(to(x_at, 256)), aliased(Workspace, Q)),
        (&unfused, args().workspace(to(out_at, 256)), aliased(Out, Workspace)),
        (
            &flash,
            {
                let mut args = args();
                args.q = at(x_at + 2, 256);
                args
            },
            misaligned(Q, x_at + 2, 4),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.q = at(x_at, 300).offset(1);
                args
            },
            misaligned(Q, x_at + 1, 4),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.out = to(out_at + 1, 256);
                args
            },
            misaligned(Out, out_at + 1, 4),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.kv_lens = Some(at(lens_at + 2, 4));
                args
            },
            misaligned(KvLens, lens_at + 2, 4),
        ),
        (
            &unfused,
            args().workspace(to(scores_at + 8, 256)),
            misaligned(Workspace, scores_at + 8, 16),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.v = at(x_at, 252);
                args
            },
            short(V, 256, 252),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.k = at(x_at, 256).offset(4);
                args
            },
            short(K, 260, 256),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.k = at(x_at, 256).offset(u64::MAX - 3);
                args
            },
            short(K, usize::MAX, 256),
        ),
        (
            &flash,
            {
                let mut args = args();
                args.out = to(out_at, 256).offset(8);
                args
            },
            short(Out, 264, 256),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.mask = Some(at(x_at, 63));
                args
            },
            short(AttnMask, 64, 63),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.kv_lens = Some(at(lens_at, 3));
                args
            },
            short(KvLens, 4, 3),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = Some(to(scores_at, 28));
                args
            },
            short(Lse, 32, 28),
        ),
        (&unfused, args().workspace(to(scores_at, 252)), short(Workspace, 256, 252)),
        (
            &full,
            {
                let mut args = whole();
                args.mask = None;
                args
            },
            missing(AttnMask),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.kv_lens = None;
                args
            },
            missing(KvLens),
        ),
        (
            &full,
            {
                let mut args = whole();
                args.lse = None;
                args
            },
            missing(Lse),
        ),
        (&flash, args().lse(to(scores_at, 32)), ProblemError::Unexpected { argument: Lse }.into()),
        (
            &flash,
            args().call(beyond),
            ProblemError::BeyondCapacity { axis: "seq_kv", capacity: 8, given: 9 }.into(),
        ),
    ];
    for (n, (plan, mut args, expected)) in cases.into_iter().enumerate() {
        match plan.launch(stream, &mut args) {
            Err(error) if error == expected => {}
            other => return Err(format!("case {n}: expected {expected:?}, got {other:?}").into()),
        }
    }
    let nan = Call::new().scale(f32::NAN);
    match flash.launch(stream, &mut args().call(nan)) {
        Err(Error::Problem(ProblemError::Scale { .. })) => {}
        other => return Err(format!("a NaN scale gave {other:?}").into()),
    }
    // The size of a view counts, not that of its slice.
    let wanted = short(K, 256, 252);
    if flash.launch(stream, &mut Args::new(&x, &x.slice(1..), &x, &mut out)) != Err(wanted) {
        return Err("a short view was taken".into());
    }
    let wanted = short(Workspace, 256, 252);
    let given = unfused.launch(
        stream,
        &mut Args::new(&x, &x, &x, &mut out).workspace(&mut scores.slice_mut(..63)),
    );
    if given != Err(wanted) {
        return Err(format!("a short workspace gave {given:?}").into());
    }
    let untouched = stream
        .clone_dtoh(&out)?
        .into_iter()
        .chain(stream.clone_dtoh(&scores)?)
        .all(|x| x == BEFORE);
    if untouched { Ok(()) } else { Err("a call that was refused wrote".into()) }
}

/// A second context on the same GPU. Without the check, a program that confuses the two would read
/// invalid addresses.
fn foreign_memory(context: &Context) -> Result<(), AnyError> {
    let view = dense([1, 1, 8, 8]);
    let problem = Problem::builder(view, view, view).kv_lens(true).lse(true).build()?;
    let plan = context.plan(&problem, &PlanOptions::new().kernel(KernelKind::Unfused))?;
    let result = with_foreign_memory(&plan);
    // The thread's current context was the foreign one, which no longer exists.
    context.cuda().bind_to_thread()?;
    result
}

fn with_foreign_memory(plan: &Plan) -> Result<(), AnyError> {
    let stream = plan.context().stream();
    let elsewhere = CudaContext::new_non_primary(stream.context().ordinal(), 0)?.new_stream()?;
    let (there, lens_there) = (elsewhere.clone_htod(&[0_f32; 64])?, elsewhere.clone_htod(&[8])?);
    let mut out_there = elsewhere.clone_htod(&[BEFORE; 64])?;
    let mut lse_there = elsewhere.clone_htod(&[BEFORE; 8])?;
    let mut scores_there = elsewhere.clone_htod(&[BEFORE; 64])?;
    elsewhere.synchronize()?;
    let (x, lens) = (stream.clone_htod(&[0_f32; 64])?, stream.clone_htod(&[8])?);
    let mut out = stream.clone_htod(&[BEFORE; 64])?;
    let mut lse = stream.clone_htod(&[BEFORE; 8])?;

    let refuse = |what, args: &mut Args<'_>| expect_foreign(what, plan.launch(stream, args));
    refuse("q", &mut Args::new(&there, &x, &x, &mut out).kv_lens(&lens).lse(&mut lse))?;
    refuse("v", &mut Args::new(&x, &x, &there, &mut out).kv_lens(&lens).lse(&mut lse))?;
    refuse("out", &mut Args::new(&x, &x, &x, &mut out_there).kv_lens(&lens).lse(&mut lse))?;
    refuse("kv_lens", &mut Args::new(&x, &x, &x, &mut out).kv_lens(&lens_there).lse(&mut lse))?;
    refuse("lse", &mut Args::new(&x, &x, &x, &mut out).kv_lens(&lens).lse(&mut lse_there))?;
    let mut args =
        Args::new(&x, &x, &x, &mut out).kv_lens(&lens).lse(&mut lse).workspace(&mut scores_there);
    refuse("workspace", &mut args)?;
    let mut args = Args::new(&x, &x, &x, &mut out).kv_lens(&lens).lse(&mut lse);
    expect_foreign("the stream", plan.launch(&elsewhere, &mut args))?;

    // The refused calls do not harm the plan.
    plan.launch(stream, &mut Args::new(&x, &x, &x, &mut out).kv_lens(&lens).lse(&mut lse))?;
    let (mean, there) = (stream.clone_dtoh(&out)?, elsewhere.clone_dtoh(&out_there)?);
    // Memory is freed in the current context of the thread: first here, then elsewhere.
    stream.context().bind_to_thread()?;
    drop((x, lens, out, lse));
    elsewhere.context().bind_to_thread()?;
    if mean.iter().any(|&x| x != 0.0) || there.iter().any(|&x| x != BEFORE) {
        return Err("a call that was refused wrote, or the one after it did not".into());
    }
    Ok(())
}

fn expect_foreign(what: &str, launched: Result<(), Error>) -> Result<(), String> {
    match launched {
        Err(Error::OtherContext { what: named }) if named == what => Ok(()),
        other => Err(format!("{what} of another context gave {other:?}")),
    }
}

fn refused(context: &Context) -> Result<(), AnyError> {
    let view = dense([1, 1, 2, 600]);
    let problem = Problem::builder(view, view, view).build()?;
    match context.plan(&problem, &PlanOptions::new().kernel(KernelKind::Flash)) {
        Err(Error::Refused { reasons, .. })
            if matches!(reasons[..], [Reason::Axis { given: 600, .. }]) => {}
        other => return Err(format!("head_dim_v 600 gave {other:?}").into()),
    }
    // Without a forced kernel, the plan uses the one that runs, and states the reason.
    let plan = context.plan(&problem, &PlanOptions::new())?;
    match plan.rationale().first() {
        Some(reason)
            if plan.kernel() == KernelKind::Unfused && reason.contains("head_dim_v is 600") =>
        {
            Ok(())
        }
        other => Err(format!("{:?} because {other:?}", plan.kernel()).into()),
    }
}
