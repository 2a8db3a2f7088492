//! Results over as many keys as real models have.

use super::{
    backend::WgpuBackend,
    devices::{device, same_adapter},
};
use crate::shared::{cases, text};
use flashtile_core::KernelKind;
use flashtile_testkit::{Case, Failure, Wrong, run_case};
use flashtile_wgpu::{Context, PlanOptions, wgpu};

/// Runs long cases with each kernel forced, and plans them with the planner's choice. A driver that
/// ends loops early must be refused for that reason and no other, and no result may be wrong.
pub(super) fn long_keys(backend: &WgpuBackend, cases: &[Case]) -> Result<(), String> {
    let mut failures = Vec::new();
    for case in cases {
        for &kernel in KernelKind::ALL {
            match run_case(backend, kernel, case) {
                Ok(_) => {}
                Err(Failure { wrong: Wrong::Refused(reasons), .. })
                    if reasons.iter().all(|r| r.to_string().contains("ends loops silently")) =>
                {
                    println!("refused: {kernel}, {case}");
                }
                Err(failure) => failures.push(failure.to_string()),
            }
        }
        // Without a forced kernel, one of them must run.
        let problem = case.problem().map_err(text)?;
        if let Err(error) = backend.context().plan_blocking(&problem, &Default::default()) {
            failures.push(format!("no kernel for {case}: {error}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// A device that binds at most 64 KiB. K and V of one head of the cases then take several bindings,
/// so plans have several parts.
pub(super) fn short_bindings(context: &Context) -> Result<(WgpuBackend, Vec<Case>), String> {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 64 << 10, ..wgpu::Limits::default() };
    let short = WgpuBackend::new(device(&same_adapter(context)?, limits)?, "short bindings");
    let cases = cases([
        "shape=2x4x3x16 hkv=2 skv=1800 kv_lens=1800:700 causal=yes align=bottom-right \
         poison=unseen",
        "shape=1x2x70x32 skv=900 mask=bool:qk:blocks causal=yes align=800 dropout=0.2",
        "shape=1x4x2x32 hkv=2 skv=900 k=bhsd v=bhsd mask=f32:qk:blocks window_left=600 \
         align=bottom-right",
        "shape=1x2x1x32 skv=2100 dtype=f16 softcap=5.0 call_kv=1500",
    ]);
    Ok((short, cases))
}

/// Where a binding is shorter than the keys of a head, plans split them.
pub(super) fn split_by_bindings(context: &Context) -> Result<(), String> {
    let (short, cases) = short_bindings(context)?;
    let mut failures = Vec::new();
    for case in cases {
        let problem = case.problem().map_err(text)?;
        let plan = short.context().plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
        if plan.dispatches().iter().all(|dispatch| dispatch.keys == (0..problem.seq_kv())) {
            failures.push(format!("64 KiB bindings did not split the keys of {case}"));
        }
        failures.extend(run_case(&short, KernelKind::Flash, &case).err().map(|e| e.to_string()));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}
