use crate::machine::Machine;
use crate::schedule::schedule;
use flashtile_core::{Call, KernelKind, KeyChunks, PlanOptions, Problem};
use flashtile_shaders::{Access, Slot, Tiles, Variant};

/// A call prepared for another WebGPU implementation: kernel sources, parameters and bindings. No
/// device is involved.
///
/// Every tensor is one buffer, bound whole, whose first element is the tensor's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExportedCall {
    /// In order.
    pub dispatches: Vec<ExportedDispatch>,
    /// The kernel variant of each dispatch.
    pub variants: Vec<Variant>,
    /// Bytes of the workspace buffer; 0 for none.
    pub workspace_bytes: u64,
    /// The chunks of keys, where the keys of a row are split.
    pub chunks: Option<KeyChunks>,
}

/// One dispatch of an [`ExportedCall`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExportedDispatch {
    /// Name of the variant.
    pub variant: String,
    /// The complete kernel source.
    pub wgsl: String,
    /// Its entry point.
    pub entry_point: &'static str,
    /// Pipeline-overridable constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Bindings of group 0.
    pub bindings: Vec<ExportedBinding>,
    /// Contents of the uniform buffer at binding 0, as little-endian words.
    pub params: Vec<u32>,
    /// Workgroups along x and y.
    pub workgroups: [u32; 2],
}

/// One storage binding of an [`ExportedDispatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedBinding {
    /// Its number.
    pub binding: u32,
    /// What is bound.
    pub slot: Slot,
    /// Whether the kernel writes it.
    pub written: bool,
}

/// Prepares `call` for a device with WebGPU's default limits and no features, as a browser grants
/// it.
///
/// # Errors
/// [`Error::Refused`](crate::Error::Refused), and [`Error::Problem`](crate::Error::Problem) for the
/// call's values.
pub fn export_baseline(
    problem: &Problem,
    kernel: KernelKind,
    call: &Call,
) -> Result<ExportedCall, crate::Error> {
    let call = call.resolve(problem)?;
    let schedule = schedule(problem, kernel, &PlanOptions::<Tiles>::new(), &Machine::baseline())
        .map_err(|reasons| crate::Error::Refused { kernel, reasons })?;
    let (mut dispatches, mut variants) = (Vec::new(), Vec::new());
    for step in &schedule.steps {
        let offset = |slot| schedule.window(problem, step.part, slot).start as u32;
        let Some((params, workgroups)) = schedule.dispatch(problem, step, &call, offset) else {
            continue;
        };
        let bindings =
            step.variant.bindings().into_iter().filter(|binding| binding.slot != Slot::Params);
        variants.push(step.variant);
        dispatches.push(ExportedDispatch {
            variant: step.variant.to_string(),
            wgsl: step.variant.wgsl(),
            entry_point: step.variant.entry_point(),
            constants: schedule.constants.entries().to_vec(),
            bindings: bindings
                .map(|binding| ExportedBinding {
                    binding: binding.slot as u32,
                    slot: binding.slot,
                    written: binding.access == Access::ReadWrite,
                })
                .collect(),
            params: bytemuck::cast_slice(bytemuck::bytes_of(&params)).to_vec(),
            workgroups,
        });
    }
    let (workspace_bytes, chunks) = (schedule.workspace_bytes, schedule.chunks);
    Ok(ExportedCall { dispatches, variants, workspace_bytes, chunks })
}
