//! CUDA as a session's device.

use crate::session::{Device, Ran};
use flashtile_core::{BackendKind, HostArgs, KernelKind, Problem, Reason, Verdict};
use flashtile_cuda::{Context, DeviceChoice, Error, Plan, PlanOptions};

/// An NVIDIA card.
pub(crate) struct Card;

impl Device for Card {
    const BACKEND: BackendKind = BackendKind::Cuda;
    type Choice = DeviceChoice;
    type Context = Context;
    type Options = PlanOptions;
    type Plan = Plan;
    type Error = Error;

    fn open(choice: &DeviceChoice) -> Result<Context, Reason> {
        flashtile_cuda::open(choice).map_err(|error| match error {
            Error::NoDriver(_) | Error::OldDriver(_) => Reason::NoDriver(error.to_string()),
            other => Reason::NoDevice(other.to_string()),
        })
    }

    /// The card's name and compute capability.
    fn name(context: &Context) -> String {
        let arch = context.machine().arch;
        format!("{} (CUDA {}.{})", context.name(), arch / 10, arch % 10)
    }

    fn verdict(context: &Context, problem: &Problem, kernel: KernelKind) -> Verdict {
        context.verdict(problem, kernel)
    }

    fn options(kernel: Option<KernelKind>) -> PlanOptions {
        kernel.map_or_else(PlanOptions::default, PlanOptions::kernel)
    }

    fn plan(context: &Context, problem: &Problem, options: &PlanOptions) -> Result<Plan, Error> {
        context.plan(problem, options)
    }

    fn run(context: &Context, plan: &Plan, args: HostArgs<'_>) -> Result<Ran, Error> {
        let stats = context.run_host(plan, args)?;
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
