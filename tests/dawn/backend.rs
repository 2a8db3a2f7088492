//! Dawn as a [`Backend`]: calls are exported for it, as they would be for a page in a browser.

use crate::node::Session;
use base64::{Engine, prelude::BASE64_STANDARD};
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, Call, HostArgs, HostStats, KernelKind,
    PlanOptions, Problem, Timing, Verdict,
};
use flashtile_shaders::{Access, Constants, Slot, Variant};
use flashtile_testkit::cannot_plan;
use flashtile_wgpu::{Error, ExportedCall, ExportedDispatch, export_baseline};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, fmt, sync::Arc, time::Instant};

/// Kernels on Dawn, on a device with WebGPU's default limits and no features.
pub(crate) struct DawnBackend<'a>(pub(crate) &'a Session<'a>);

impl fmt::Debug for DawnBackend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device_name())
    }
}

impl Backend for DawnBackend<'_> {
    fn kind(&self) -> BackendKind {
        BackendKind::Wgpu
    }

    fn device_name(&self) -> String {
        format!("kernels in Dawn on {}", self.0.dawn.adapter)
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        match export_baseline(problem, wanted(options), &Call::new()) {
            Err(Error::Refused { reasons, .. }) => Verdict::Refused(reasons),
            // The run reports everything else that is wrong.
            _ => Verdict::Runs(self.device_name()),
        }
    }

    fn plan(&self, _: &Problem, _: &PlanOptions) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Err(cannot_plan(BackendKind::Wgpu))
    }

    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let start = Instant::now();
        self.run_call(problem, wanted(options), args)
            .map_err(|e| BackendError::new(BackendKind::Wgpu, false, e))?;
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, 0))
    }
}

fn wanted(options: &PlanOptions) -> KernelKind {
    options.kernel.unwrap_or(KernelKind::Flash)
}

impl DawnBackend<'_> {
    fn run_call(
        &self,
        problem: &Problem,
        kernel: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let call = export_baseline(problem, kernel, &args.call)?;
        let answer = self.0.ask(&request(&call, &args))?;
        read_back(&answer, Slot::Out, args.out)?;
        if let Some(lse) = args.lse {
            read_back(&answer, Slot::Lse, bytemuck::cast_slice_mut(lse))?;
        }
        Ok(())
    }
}

/// A request that `run.mjs` runs: whole buffers, including the memory after the tensors.
pub(crate) fn request(call: &ExportedCall, args: &HostArgs<'_>) -> Value {
    let tensors = [
        (Slot::Q, Some(args.q), false),
        (Slot::K, Some(args.k), false),
        (Slot::V, Some(args.v), false),
        (Slot::Mask, args.mask, false),
        (Slot::Aux, args.kv_lens.map(bytemuck::cast_slice), false),
        (Slot::Out, Some(&*args.out), true),
        (Slot::Lse, args.lse.as_deref().map(bytemuck::cast_slice), true),
    ];
    let mut buffers = Map::new();
    for (slot, bytes, read) in tensors {
        if let Some(bytes) = bytes {
            buffers.insert(
                name(slot),
                json!({ "bytes": BASE64_STANDARD.encode(whole_words(bytes)), "read": read }),
            );
        }
    }
    if call.workspace_bytes > 0 {
        buffers.insert(
            name(Slot::Workspace),
            json!({ "size": call.workspace_bytes.next_multiple_of(4) }),
        );
    }
    let dispatches: Vec<_> = call.dispatches.iter().map(dispatch).collect();
    json!({ "buffers": buffers, "dispatches": dispatches })
}

fn dispatch(dispatch: &ExportedDispatch) -> Value {
    let ExportedDispatch {
        variant,
        wgsl,
        entry_point,
        constants,
        bindings,
        params,
        workgroups,
        ..
    } = dispatch;
    json!({
        "name": variant,
        "wgsl": wgsl,
        "entryPoint": entry_point,
        "constants": object(constants),
        "bindings": bindings.iter().map(|b| binding(b.slot, b.written)).collect::<Vec<_>>(),
        "params": params,
        "workgroups": workgroups,
    })
}

/// A kernel that `run.mjs` compiles: only the source, or, with `constants`, a whole pipeline.
pub(crate) fn kernel(variant: &Variant, constants: Option<Constants>) -> Value {
    let bindings = variant.bindings().into_iter().filter(|b| b.slot != Slot::Params);
    let bindings: Vec<_> =
        bindings.map(|b| binding(b.slot, b.access == Access::ReadWrite)).collect();
    json!({
        "name": variant.to_string(),
        "wgsl": variant.wgsl(),
        "entryPoint": variant.entry_point(),
        "constants": constants.map(|constants| object(&constants.entries())),
        "bindings": bindings,
    })
}

fn object(constants: &[(&str, f64)]) -> Map<String, Value> {
    constants.iter().map(|&(name, value)| (name.to_owned(), json!(value))).collect()
}

fn binding(slot: Slot, written: bool) -> Value {
    let kind = if written { "storage" } else { "read-only-storage" };
    json!({ "binding": slot as u32, "type": kind, "buffer": name(slot) })
}

/// The name of a slot's buffer.
pub(crate) fn name(slot: Slot) -> String {
    format!("{slot:?}")
}

/// WebGPU copies and binds whole words, and binds even an empty tensor.
fn whole_words(bytes: &[u8]) -> Cow<'_, [u8]> {
    let words = bytes.len().max(1).next_multiple_of(4);
    if words == bytes.len() {
        return bytes.into();
    }
    let mut padded = bytes.to_vec();
    // NaN in every storage type.
    padded.resize(words, 0xFF);
    padded.into()
}

fn read_back(answer: &Value, slot: Slot, to: &mut [u8]) -> Result<(), String> {
    let text = answer["buffers"][name(slot)]
        .as_str()
        .ok_or_else(|| format!("Dawn returned no {slot:?}"))?;
    let bytes = BASE64_STANDARD.decode(text).map_err(|e| e.to_string())?;
    let bytes = bytes
        .get(..to.len())
        .ok_or_else(|| format!("Dawn returned {} bytes of {slot:?}", bytes.len()))?;
    to.copy_from_slice(bytes);
    Ok(())
}
