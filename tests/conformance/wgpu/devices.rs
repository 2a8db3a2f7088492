//! Behaviour of devices: with and without features, several alike, foreign and lost.

use super::{Check, embedding::buffer};
use crate::shared::{bytes, dense, floats, hold, text};
use flashtile_core::{Call, HostArgs, HostInputs, Problem};
use flashtile_wgpu::{
    Args, Context, DeviceChoice, Error, HostRun, PlanOptions, adapters_blocking, open_blocking,
    wgpu,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 4] = [
    ("a buffer of another device is an error", foreign_buffer),
    ("a lost device is reported as lost", lost_device),
    ("timestamps measure time if available", timestamps),
    ("a number selects among equal adapters", adapter_by_index),
];

/// A buffer of another device of the same instance. (wgpu panics on a buffer of another instance.)
fn foreign_buffer(context: &Context) -> Result<(), String> {
    let [one, other] = two_devices(context)?;
    let view = dense([1, 1, 2, 4]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let plan = one.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let (x, out) =
        (buffer(&other, &[0; 32], Usage::STORAGE), buffer(&one, &[0; 32], Usage::STORAGE));
    let mut encoder =
        one.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    match plan.encode(&mut encoder, &Args::new(&x, &x, &x, &out)) {
        Err(Error::Validation(_)) => Ok(()),
        other => Err(format!("got {other:?}")),
    }
}

/// The adapter of `context`, in an instance of its own.
pub(super) fn same_adapter(context: &Context) -> Result<wgpu::Adapter, String> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let same =
        adapters.into_iter().find(|adapter| adapter.get_info().name == context.adapter_info().name);
    same.ok_or("the adapter is gone".into())
}

pub(super) fn device(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Result<Context, String> {
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(text)?;
    Context::new_blocking(device, queue).map_err(text)
}

fn two_devices(context: &Context) -> Result<[Context; 2], String> {
    let adapter = same_adapter(context)?;
    Ok([device(&adapter, wgpu::Limits::default())?, device(&adapter, wgpu::Limits::default())?])
}

/// Destroys a device of its own. Everything started on it afterwards reports a lost device, and
/// nothing panics.
fn lost_device(_: &Context) -> Result<(), String> {
    let context = open_blocking(&DeviceChoice::default()).map_err(text)?;
    let view = dense([1, 1, 2, 4]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let host = [0; 32];
    let [mut out, mut late] = [[0; 32]; 2];
    let call = Call::default();
    let mut args = HostArgs::new(&host, &host, &host, &mut out).call(call);
    let uploaded = pollster::block_on(HostRun::upload(&plan, &args)).map_err(text)?;
    let called = Arc::new(AtomicBool::new(false));
    let callback = called.clone();
    context.device().set_device_lost_callback(move |_, _| callback.store(true, Ordering::Relaxed));
    context.device().destroy();

    let wider = Problem::builder(view, view, view).softcap(2.0).build().map_err(text)?;
    let late = HostArgs::new(&host, &host, &host, &mut late).call(call);
    let results = [
        ("a new plan", context.plan_blocking(&wider, &PlanOptions::new()).map(|_| ())),
        (
            "a new context",
            Context::new_blocking(context.device().clone(), context.queue().clone()).map(|_| ()),
        ),
        ("a run that was uploaded", pollster::block_on(uploaded.run()).map(|_| ())),
        ("reading back", pollster::block_on(uploaded.download(&mut args))),
        ("a whole run", context.run_host_blocking(&plan, late).map(|_| ())),
    ];
    for (what, result) in results {
        if !matches!(result, Err(Error::DeviceLost(_))) {
            return Err(format!("{what} on a lost device gave {result:?}"));
        }
    }
    if called.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err("the caller's own callback was not called".into())
    }
}

/// A device with timestamps measures with them. A device without them measures with the host's
/// clock, and nothing fails.
fn timestamps(context: &Context) -> Result<(), String> {
    let view = dense([1, 2, 64, 16]);
    let problem = Problem::builder(view, view, view).build().map_err(text)?;
    let without = device(&same_adapter(context)?, wgpu::Limits::default())?;
    for context in [context, &without] {
        let has = context.device().features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let plan = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
        let host = bytes(&floats(9, 2 * 64 * 16));
        let mut out = vec![0; host.len()];
        let inputs = HostInputs::new(&host, &host, &host);
        let mut args = HostArgs::new(&host, &host, &host, &mut out);
        let run = pollster::block_on(HostRun::upload(&plan, &args)).map_err(text)?;
        for _ in 0..3 {
            let timing = pollster::block_on(run.run()).map_err(text)?;
            let sane = timing.gpu.is_none_or(|gpu| gpu <= timing.host && !gpu.is_zero());
            if timing.gpu.is_some() != has || !sane {
                return Err(format!("timestamps {has}, and {timing:?}"));
            }
        }
        pollster::block_on(run.download(&mut args)).map_err(text)?;
        hold(&problem, &inputs, &out)?;
    }
    Ok(())
}

/// Selects an adapter by its number in the list. A name that is given too must match.
fn adapter_by_index(_: &Context) -> Result<(), String> {
    let listed = adapters_blocking();
    for (index, entry) in listed.iter().enumerate() {
        let choice = DeviceChoice::new().index(index);
        let opened = open_blocking(&choice).map_err(text)?;
        if *opened.adapter_info() != entry.info {
            return Err(format!("number {index} opened {:?}", opened.adapter_info()));
        }
    }
    let beyond = DeviceChoice::new().index(listed.len());
    let other = DeviceChoice::new().index(0).name("no such GPU");
    for (choice, expected) in
        [(beyond, " number "), (other, " number 0 with a name like `no such GPU`: found 0: ")]
    {
        match open_blocking(&choice) {
            Err(e @ Error::NoAdapter { .. }) if e.to_string().contains(expected) => {}
            got => return Err(format!("{choice:?} gave {got:?}")),
        }
    }
    Ok(())
}
