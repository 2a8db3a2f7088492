//! flashtile through wgpu, with a plan's own choices.

use super::{Peer, Prepared, adapter};
use crate::case::Inputs;
use anyhow::Result;
use flashtile::{DeviceChoice, HostArgs};
use flashtile_wgpu::{Context, HostRun, Plan, PlanOptions, wgpu};

pub(super) fn open() -> Result<(String, Box<dyn Peer>)> {
    let context = flashtile_wgpu::open_blocking(&DeviceChoice::new())?;
    Ok((adapter::name(context.adapter_info()), Box::new(Flashtile { context })))
}

struct Flashtile {
    context: Context,
}

struct Uploaded {
    context: Context,
    plan: Plan,
    run: HostRun,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
}

impl Peer for Flashtile {
    fn prepare(&self, inputs: &Inputs) -> Result<Box<dyn Prepared>> {
        let Inputs { problem, q, k, v, .. } = inputs;
        let plan = self.context.plan_blocking(problem, &PlanOptions::new())?;
        let mut out = vec![f32::NAN; q.len()];
        let run = HostRun::upload_blocking(&plan, &args(q, k, v, &mut out))?;
        let (context, [q, k, v]) = (self.context.clone(), [q, k, v].map(Clone::clone));
        let mut uploaded = Uploaded { context, plan, run, q, k, v, out };
        uploaded.run(1)?;
        uploaded.output()?;
        Ok(Box::new(uploaded))
    }
}

impl Prepared for Uploaded {
    fn run(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.plan.submit(&self.run.args())?;
        }
        self.context.device().poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let Self { run, q, k, v, out, .. } = self;
        out.fill(f32::NAN);
        run.download_blocking(&mut args(q, k, v, out))?;
        Ok(out.clone())
    }
}

fn args<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32], out: &'a mut [f32]) -> HostArgs<'a> {
    let bytes = bytemuck::cast_slice::<f32, u8>;
    HostArgs::new(bytes(q), bytes(k), bytes(v), bytemuck::cast_slice_mut(out))
}
