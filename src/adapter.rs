//! wgpu as a session's device.

use crate::session::{Device, Ran};
use flashtile_core::{BackendKind, HostArgs, KernelKind, Problem, Reason, Verdict};
use flashtile_wgpu::{AdapterChoice, Context, Error, Plan, PlanOptions};

/// An adapter that wgpu finds.
pub(crate) struct Adapter;

impl Device for Adapter {
    const BACKEND: BackendKind = BackendKind::Wgpu;
    type Choice = AdapterChoice;
    type Context = Context;
    type Options = PlanOptions;
    type Plan = Plan;
    type Error = Error;

    fn open(choice: &AdapterChoice) -> Result<Context, Reason> {
        flashtile_wgpu::open_blocking(choice).map_err(|error| Reason::NoDevice(error.to_string()))
    }

    /// The adapter's name and graphics API.
    fn name(context: &Context) -> String {
        let info = context.adapter_info();
        format!("{} ({:?})", info.name, info.backend)
    }

    fn verdict(context: &Context, problem: &Problem, kernel: KernelKind) -> Verdict {
        context.verdict(problem, kernel)
    }

    fn options(kernel: Option<KernelKind>) -> PlanOptions {
        kernel.map_or_else(PlanOptions::default, PlanOptions::kernel)
    }

    fn plan(context: &Context, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        context.plan_blocking(problem, options)
    }

    fn run(context: &Context, plan: &Plan, args: HostArgs<'_>) -> Result<Ran, Error> {
        let stats = context.run_host_blocking(plan, args)?;
        Ok(Ran {
            run_ms: stats.run.host.as_secs_f64() * 1e3,
            gpu_ms: stats.run.gpu.map(|time| time.as_secs_f64() * 1e3),
            device_bytes: stats.device_bytes,
        })
    }

    fn problem(plan: &Plan) -> &Problem {
        plan.problem()
    }

    fn kernel(plan: &Plan) -> KernelKind {
        plan.kernel()
    }

    fn workspace_bytes(plan: &Plan) -> u64 {
        plan.workspace_bytes()
    }

    fn is_lost(error: &Error) -> bool {
        matches!(error, Error::DeviceLost(_))
    }
}
