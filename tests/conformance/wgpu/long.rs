//! Results over as many keys as real models have, and the loop iterations that they need.

use super::devices::{device, same_adapter};
use super::{
    backend::WgpuBackend,
    embedding::{buffer, read},
};
use crate::shared::{cases, text};
use flashtile_core::{Call, DType, KernelKind, KeyChunks, Problem, TensorView};
use flashtile_shaders::{LoopShape, Slot};
use flashtile_testkit::{Case, Failure, Wrong, run_case};
use flashtile_wgpu::{Context, ExportedDispatch, PlanOptions, export_baseline, wgpu};
use wgpu::BufferUsages as Usage;

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

/// On a device that binds at most 64 KiB, K and V of one head take several bindings.
pub(super) fn short_bindings(context: &Context) -> Result<(), String> {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 64 << 10, ..wgpu::Limits::default() };
    let short = WgpuBackend::new(device(&same_adapter(context)?, limits)?, "short bindings");
    let mut failures = Vec::new();
    for case in cases([
        "shape=2x4x3x16 hkv=2 skv=1800 kv_lens=1800:700 causal=yes align=bottom-right \
         poison=unseen",
        "shape=1x2x70x32 skv=900 mask=bool:qk:blocks causal=yes align=800 dropout=0.2",
        "shape=1x4x2x32 hkv=2 skv=900 k=bhsd v=bhsd mask=f32:qk:blocks window_left=600 \
         align=bottom-right",
        "shape=1x2x1x32 skv=2100 dtype=f16 softcap=5.0 call_kv=1500",
    ]) {
        let problem = case.problem().map_err(text)?;
        let plan = short.context().plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
        if plan.dispatches().iter().all(|dispatch| dispatch.keys == (0..problem.seq_kv())) {
            failures.push(format!("64 KiB bindings did not split the keys of {case}"));
        }
        failures.extend(run_case(&short, KernelKind::Flash, &case).err().map(|e| e.to_string()));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// Where the instrumented kernels write the largest count of any invocation.
const COUNTER_BINDING: u32 = 9;

/// Adds a counter to every `for` of a kernel. It includes the last pass, which only ends the loop.
fn instrumented(wgsl: &str) -> String {
    let mut source = format!(
        "@group(0) @binding({COUNTER_BINDING}) var<storage, read_write> most: atomic<u32>;\n\
         var<private> passes: u32;\n"
    );
    let mut in_entry = false;
    for line in wgsl.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        in_entry |= line.starts_with("@compute");
        if line.trim_start().starts_with("for (") {
            source += &format!("{indent}passes += 1u;\n{line}\n{indent}    passes += 1u;\n");
        } else if in_entry && line == "}" {
            source += "    atomicMax(&most, passes);\n}\n";
        } else {
            source += &format!("{line}\n");
        }
    }
    source
}

/// `Variant::loop_iterations` never counts fewer iterations than a kernel runs, nor many more.
pub(super) fn loop_iterations(context: &Context) -> Result<(), String> {
    let mut problems: Vec<Problem> = Vec::new();
    for (seq_q, seq_kv, dim, dim_v) in [
        (1, 700, 64, 64),
        (70, 300, 33, 40),
        (5, 515, 128, 17),
        (40, 97, 300, 512),
        // Split into chunks.
        (1, 3000, 64, 64),
        (3, 1025, 33, 200),
    ] {
        let view = |seq, dim| TensorView::bhsd(DType::F32, [1, 2, seq, dim]).map_err(text);
        for dropout in [0.0, 0.5] {
            let (k, v) = (view(seq_kv, dim)?, view(seq_kv, dim_v)?);
            let problem = Problem::builder(view(seq_q, dim)?, k, v).dropout_p(dropout);
            problems.push(problem.build().map_err(text)?);
        }
    }
    for problem in &problems {
        for &kernel in KernelKind::ALL {
            let call = export_baseline(problem, kernel, &Call::new()).map_err(text)?;
            for (dispatch, variant) in call.dispatches.iter().zip(&call.variants) {
                let counted = count(context, problem, dispatch, call.workspace_bytes)?;
                let predicted = variant.loop_iterations(&LoopShape {
                    keys: call.chunks.map_or(problem.seq_kv(), KeyChunks::keys),
                    chunks: call.chunks.map_or(0, KeyChunks::count),
                    careful_tiles: 0,
                    head_dim: problem.head_dim(),
                    head_dim_v: problem.head_dim_v(),
                    dropout: problem.dropout().is_some(),
                });
                if predicted < counted || predicted > counted + counted / 3 + 64 {
                    return Err(format!(
                        "{problem}, {variant}: {counted} iterations, {predicted} predicted"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The most loop iterations of any invocation of one dispatch.
fn count(
    context: &Context,
    problem: &Problem,
    dispatch: &ExportedDispatch,
    workspace_bytes: u64,
) -> Result<u64, String> {
    let device = context.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(&dispatch.variant),
        source: wgpu::ShaderSource::Wgsl(instrumented(&dispatch.wgsl).into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&dispatch.variant),
        layout: None,
        module: &module,
        entry_point: Some(dispatch.entry_point),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &dispatch.constants,
            ..Default::default()
        },
        cache: None,
    });
    let tensor = |bytes: u64| buffer(context, &vec![0; bytes as usize], Usage::STORAGE);
    let span = |view: &TensorView| view.byte_span().unwrap_or(0) as u64;
    let params: &[u8] = bytemuck::cast_slice(&dispatch.params);
    let mut buffers = vec![(Slot::Params as u32, buffer(context, params, Usage::UNIFORM))];
    for binding in &dispatch.bindings {
        let bytes = match binding.slot {
            Slot::Q => span(problem.q()),
            Slot::K => span(problem.k()),
            Slot::V => span(problem.v()),
            Slot::Out => span(problem.out()),
            Slot::Workspace => workspace_bytes,
            other => return Err(format!("{other:?} is not part of these problems")),
        };
        buffers.push((binding.binding, tensor(bytes)));
    }
    let counter = buffer(context, &[0; 4], Usage::STORAGE);
    buffers.push((COUNTER_BINDING, counter.clone()));
    let entries: Vec<_> = buffers
        .iter()
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding: *binding,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        let [x, y] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, 1);
    }
    context.queue().submit([encoder.finish()]);
    let bytes = read(context, &counter)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into())
}
