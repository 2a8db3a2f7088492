//! What calls accept and refuse (pieces of buffers, workspaces, foreign objects), and what a plan
//! keeps of the buffers that it was called with.

use super::{
    Check,
    devices::{device, same_adapter},
    embedding::{buffer, read},
};
use crate::shared::{bytes, dense, floats, hold, text};
use flashtile_core::{Argument, HostArgs, HostInputs, KernelKind, Problem, ProblemError};
use flashtile_wgpu::{
    Args, Context, Error, HostRun, Plan, PlanOptions, Region, device_descriptor, wgpu,
};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 9] = [
    ("buffers, slices and bindings are regions", regions),
    ("a slice that is too short is an error", short_slice),
    ("a tensor fills a binding where its offset is aligned", exact_binding),
    ("a workspace of the caller's own", own_workspace),
    ("parts are submitted one by one", submitted_parts),
    ("a queue of another device is an error", foreign_queue),
    ("a plan of another context is an error", foreign_plan),
    ("bind groups are kept by use", bind_groups),
    ("the recommended device has subgroups", recommended_device),
];

/// One query tile over two key tiles, in f32.
fn problem() -> Result<(Problem, Vec<u8>), String> {
    let view = dense([1, 2, 40, 16]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    Ok((problem, bytes(&floats(11, 2 * 40 * 16))))
}

fn run(context: &Context, plan: &Plan, args: &Args<'_>) -> Result<(), String> {
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.encode(&mut encoder, args).map_err(text)?;
    context.queue().submit([encoder.finish()]);
    Ok(())
}

fn regions(context: &Context) -> Result<(), String> {
    let (problem, host) = problem()?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let lead = [0xFF; 12];
    let padded = buffer(context, &[&lead[..], &host].concat(), Usage::STORAGE);
    let binding = wgpu::BufferBinding { buffer: &padded, offset: 12, size: None };
    let out = buffer(context, &vec![0; host.len()], Usage::STORAGE);
    let args = Args::new(
        Region::from(&padded).offset(12),
        padded.slice(12..12 + host.len() as u64),
        binding,
        &out,
    );
    run(context, &plan, &args)?;
    hold(&problem, &HostInputs::new(&host, &host, &host), &read(context, &out)?)
}

fn short_slice(context: &Context) -> Result<(), String> {
    let (problem, host) = problem()?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let x = buffer(context, &host, Usage::STORAGE);
    let out = buffer(context, &host, Usage::STORAGE);
    let bytes = host.len();
    let args = Args::new(&x, x.slice(..bytes as u64 - 4), &x, &out);
    let (argument, expected, given) = (Argument::K, bytes, bytes - 4);
    let error = Error::from(ProblemError::TooShort { argument, expected, given });
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let refused = plan.encode(&mut encoder, &args);
    if refused != Err(error) {
        return Err(format!("a short slice gave {refused:?}"));
    }
    // The same for slices on the host: outputs are checked when they are written.
    let mut full = vec![0; bytes];
    let uploaded = HostRun::upload_blocking(&plan, &HostArgs::new(&host, &host, &host, &mut full));
    let uploaded = uploaded.map_err(text)?;
    uploaded.run_blocking().map_err(text)?;
    let mut short = vec![0; bytes - 1];
    let mut args = HostArgs::new(&host, &host, &host, &mut short);
    match uploaded.download_blocking(&mut args) {
        Err(Error::Problem(ProblemError::TooShort { argument: Argument::Out, .. })) => Ok(()),
        other => Err(format!("a download into a short slice gave {other:?}")),
    }
}

fn exact_binding(context: &Context) -> Result<(), String> {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 64 << 10, ..wgpu::Limits::default() };
    let context = device(&same_adapter(context)?, limits)?;
    // K and V take 64 KiB.
    let (q, kv) = (dense([1, 1, 3, 16]), dense([1, 1, 1024, 16]));
    let problem = Problem::builder(q, kv, kv).build().map_err(text)?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let [q, k] = [bytes(&floats(12, 3 * 16)), bytes(&floats(13, 1024 * 16))];
    let gpu_q = buffer(&context, &q, Usage::STORAGE);
    let gpu_k = buffer(&context, &[&k[..], &[0; 4]].concat(), Usage::STORAGE);
    let out = buffer(&context, &vec![0; q.len()], Usage::STORAGE);
    run(&context, &plan, &Args::new(&gpu_q, &gpu_k, &gpu_k, &out))?;
    hold(&problem, &HostInputs::new(&q, &k, &k), &read(&context, &out)?)?;
    let args = Args::new(&gpu_q, gpu_k.slice(4..), &gpu_k, &out);
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    match plan.encode(&mut encoder, &args) {
        Err(Error::BindingSize { argument: Argument::K, needed: 65540, limit: 65536, .. }) => {
            Ok(())
        }
        other => Err(format!("an offset of 4 gave {other:?}")),
    }
}

fn own_workspace(context: &Context) -> Result<(), String> {
    let (problem, host) = problem()?;
    let options = PlanOptions::new().kernel(KernelKind::Unfused);
    let plan = context.plan_blocking(&problem, &options).map_err(text)?;
    let x = buffer(context, &host, Usage::STORAGE);
    let out = buffer(context, &vec![0; host.len()], Usage::STORAGE);
    let workspace = buffer(context, &vec![0; plan.workspace_bytes() as usize], Usage::STORAGE);
    run(context, &plan, &Args::new(&x, &x, &x, &out).workspace(&workspace))?;
    hold(&problem, &HostInputs::new(&host, &host, &host), &read(context, &out)?)?;
    if read(context, &workspace)?.iter().all(|&byte| byte == 0) {
        return Err("the caller's workspace was not used".into());
    }
    let short = workspace.slice(..plan.workspace_bytes() - 4);
    let args = Args::new(&x, &x, &x, &out).workspace(short);
    let mut encoder =
        context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    match plan.encode(&mut encoder, &args) {
        Err(Error::Problem(ProblemError::TooShort { argument: Argument::Workspace, .. })) => Ok(()),
        other => Err(format!("a short workspace gave {other:?}")),
    }
}

fn submitted_parts(context: &Context) -> Result<(), String> {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 6 << 10, ..wgpu::Limits::default() };
    let context = device(&same_adapter(context)?, limits)?;
    let view = dense([2, 2, 40, 16]);
    let problem = Problem::builder(view, view, view).causal(true).build().map_err(text)?;
    let host = bytes(&floats(14, 2 * 2 * 40 * 16));
    let x = buffer(&context, &host, Usage::STORAGE);
    for &kernel in KernelKind::ALL {
        let plan = context.plan_blocking(&problem, &PlanOptions::new().kernel(kernel));
        let plan = plan.map_err(text)?;
        if plan.dispatches().len() < 2 {
            return Err(format!("{kernel}: 6 KiB bindings did not split the problem"));
        }
        let out = buffer(&context, &vec![0; host.len()], Usage::STORAGE);
        plan.submit(&Args::new(&x, &x, &x, &out)).map_err(text)?;
        hold(&problem, &HostInputs::new(&host, &host, &host), &read(&context, &out)?)?;
    }
    Ok(())
}

fn foreign_queue(context: &Context) -> Result<(), String> {
    let adapter = same_adapter(context)?;
    let open = || pollster::block_on(adapter.request_device(&Default::default())).map_err(text);
    let ((device, queue), (_other_device, other_queue)) = (open()?, open()?);
    match Context::new_blocking(device.clone(), other_queue) {
        Err(Error::ForeignQueue) => {}
        other => return Err(format!("a queue of another device gave {other:?}")),
    }
    Context::new_blocking(device, queue).map(|_| ()).map_err(text)
}

fn foreign_plan(context: &Context) -> Result<(), String> {
    let other = device(&same_adapter(context)?, wgpu::Limits::default())?;
    let (problem, host) = problem()?;
    let plan = other.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let mut out = vec![0; host.len()];
    match context.run_host_blocking(&plan, HostArgs::new(&host, &host, &host, &mut out)) {
        Err(Error::OtherContext) => Ok(()),
        other => Err(format!("a plan of another context gave {other:?}")),
    }
}

/// Buffer sets that come back are all kept, however many there are; sets that do not are dropped,
/// so that the plan does not keep dropped buffers alive.
fn bind_groups(context: &Context) -> Result<(), String> {
    let (problem, host) = problem()?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let x = buffer(context, &host, Usage::STORAGE);
    let set = || buffer(context, &vec![0; host.len()], Usage::STORAGE);
    let call = |out: &wgpu::Buffer| {
        let mut encoder =
            context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode(&mut encoder, &Args::new(&x, &x, &x, out)).map_err(text)
    };
    let expect = |what: &str, allowed: std::ops::RangeInclusive<usize>| {
        let count = plan.binding_count();
        if allowed.contains(&count) { Ok(()) } else { Err(format!("{what}: {count} bind groups")) }
    };
    for _ in 0..200 {
        call(&set())?;
    }
    expect("buffers that are used once", 1..=8)?;
    for sets in [16, 128] {
        plan.release_bindings();
        expect("after a release", 0..=0)?;
        let layers: Vec<_> = (0..sets).map(|_| set()).collect();
        for _ in 0..3 {
            layers.iter().try_for_each(call)?;
        }
        expect("layers in rotation", sets..=sets)?;
    }
    // The layers are gone. Other calls go on, and after a while nothing of them is kept.
    let out = set();
    for _ in 0..3000 {
        call(&out)?;
    }
    expect("layers that are gone", 1..=8)
}

fn recommended_device(context: &Context) -> Result<(), String> {
    let adapter = same_adapter(context)?;
    let descriptor = device_descriptor(&adapter);
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(text)?;
    let subgroup = wgpu::Features::SUBGROUP;
    if adapter.features().contains(subgroup) != device.features().contains(subgroup) {
        return Err("subgroups are not requested".into());
    }
    if device.limits().max_compute_workgroup_storage_size
        != adapter.limits().max_compute_workgroup_storage_size
    {
        return Err("the adapter's limits are not requested".into());
    }
    Context::new_blocking(device, queue).map(|_| ()).map_err(text)
}
