//! Dawn accepts every kernel, and it rejects what it should.

use crate::{Test, backend, node::Session};
use flashtile_core::{Call, DType, KernelKind, MaskKind};
use flashtile_shaders::{BASELINE_WORKGROUP_BYTES, Constants, Operation, Slot, Tiles, Variant};
use flashtile_testkit::Case;
use flashtile_wgpu::export_baseline;
use serde_json::{Value, json};

pub(crate) fn trials() -> Vec<(String, Test)> {
    let mut shapes: Vec<(Operation, Tiles)> =
        baseline().map(|variant| (variant.operation, variant.tiles)).collect();
    shapes.dedup();
    let mut trials: Vec<(String, Test)> = Vec::new();
    for (number, (operation, tiles)) in shapes.into_iter().enumerate() {
        let plain = Variant::new(operation, DType::F32, None, false, false, tiles).to_string();
        let name = format!("compiles: {}", plain.replace(" f32", ""));
        trials.push((
            name,
            Box::new(move |session| compile_shape(session, number, operation, tiles)),
        ));
    }
    trials.push((
        "source that breaks WebGPU's rules is refused".into(),
        Box::new(wrong_source_is_refused),
    ));
    trials.push(("a missing binding is refused".into(), Box::new(wrong_bindings_are_refused)));
    trials
}

/// The variants that every WebGPU device can run.
fn baseline() -> impl Iterator<Item = Variant> {
    let fits = |tiles: &Tiles| {
        // Browsers do not say enough of a GPU for the kernels of one width.
        tiles.exact_width().is_none()
            && !tiles.uses_subgroups()
            && !tiles.uses_matrix_units()
            && tiles.flash_workgroup_bytes() <= BASELINE_WORKGROUP_BYTES
    };
    Variant::all().filter(move |variant| {
        let flash = matches!(variant.operation, Operation::FlashForward | Operation::FlashSplit);
        !flash || fits(&variant.tiles)
    })
}

/// Dawn parses and validates every kernel source. Compiling in the driver takes long, so only five
/// variants per tile shape get there; every storage type, mask and flag occurs among them.
fn compile_shape(
    session: &Session<'_>,
    number: usize,
    operation: Operation,
    tiles: Tiles,
) -> Result<(), String> {
    let masks = [None].into_iter().chain(MaskKind::ALL.iter().copied().map(Some));
    let whole: Vec<(Variant, Constants)> = masks
        .zip(number..)
        .map(|(mask, n)| {
            let (kv_lens, lse) = (n % 2 == 1, n / 2 % 2 == 1);
            let variant = Variant::new(operation, DType::ALL[n % 3], mask, kv_lens, lse, tiles);
            (
                variant,
                Constants {
                    softcap: n % 3 != 0,
                    dropout: n % 4 < 2,
                    by_four: n % 2 == 0,
                    folded: n % 5 == 0,
                },
            )
        })
        .collect();
    let constants = |variant: &Variant| {
        whole.iter().find(|(other, _)| other == variant).map(|(_, constants)| *constants)
    };
    let of_shape =
        baseline().filter(|variant| (variant.operation, variant.tiles) == (operation, tiles));
    let kernels: Vec<Value> =
        of_shape.map(|variant| backend::kernel(&variant, constants(&variant))).collect();
    match &refused(session, kernels)?[..] {
        [] => Ok(()),
        refused => Err(format!("{} refused\n{}", refused.len(), refused.join("\n"))),
    }
}

fn refused(session: &Session<'_>, kernels: Vec<Value>) -> Result<Vec<String>, String> {
    let answer = session.ask(&json!({ "compile": kernels }))?;
    let refused = answer["refused"].as_array().ok_or("Dawn does not report what it refused")?;
    Ok(refused.iter().map(|message| message.as_str().unwrap_or_default().to_owned()).collect())
}

/// A barrier that not all threads reach: naga accepts it, and Dawn does not.
fn wrong_source_is_refused(session: &Session<'_>) -> Result<(), String> {
    let source = "@compute @workgroup_size(8)
    fn main(@builtin(local_invocation_index) thread: u32) {
        if (thread == 0u) { workgroupBarrier(); }
    }";
    match &refused(session, vec![json!({ "name": "wrong", "wgsl": source })])?[..] {
        [one] if one.contains("uniform") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn wrong_bindings_are_refused(session: &Session<'_>) -> Result<(), String> {
    let case = Case::new([1, 1, 4, 4]);
    let tensors = case.build().map_err(|e| e.to_string())?;
    let mut call = export_baseline(&tensors.problem, KernelKind::Unfused, &Call::default())
        .map_err(|e| e.to_string())?;
    call.dispatches[0].bindings.retain(|binding| binding.slot != Slot::K);
    let (mut out, mut lse) = (tensors.q.clone(), [0.0; 4]);
    let request = backend::request(&call, &tensors.args(&mut out, Some(&mut lse)));
    match session.ask(&request) {
        Err(error) if error.contains("binding") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
